"""The toolkit of a method: everything that a strategy file imports."""

from clrun.data.stream import Batch, Data, Pool
from clrun.strategy.base import Strategy, Tree
from clrun.strategy.fisher import fisher
from clrun.strategy.gradients import Aux, gradient_by_leaf, gradient_of, lifted
from clrun.strategy.loss import BARRED, cross_entropy, log_softmax, losses
from clrun.strategy.multitask import MultiTask
from clrun.strategy.per_sample import Score, of_network, summed
from clrun.strategy.quadratic import Gaussian, Quadratic
from clrun.strategy.regularization import QuadraticPenalty
from clrun.strategy.replay import Memory, Replay, buffer_stats, write_slots

__all__ = [
    "BARRED",
    "Aux",
    "Batch",
    "Data",
    "Gaussian",
    "Memory",
    "MultiTask",
    "Pool",
    "Quadratic",
    "QuadraticPenalty",
    "Replay",
    "Score",
    "Strategy",
    "Tree",
    "buffer_stats",
    "cross_entropy",
    "fisher",
    "gradient_by_leaf",
    "gradient_of",
    "lifted",
    "log_softmax",
    "losses",
    "of_network",
    "summed",
    "write_slots",
]
