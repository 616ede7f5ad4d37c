"""What strategies are built from; the strategies themselves are in clrun.strategies."""

from clrun.data.batches import Batch, Data, Pool
from clrun.data.tasks import TaskTables
from clrun.models import BatchNormMode, Network, RunningStatistics, Weights, Window
from clrun.strategy.base import NEGLIGIBLE, HealthRows, Knobs, Strategy, Tree, later_tasks
from clrun.strategy.closed_form import ROUNDING, ClassSums, ClosedForm, LinearHead, lowered, nearest_mean, solved
from clrun.strategy.exemplars import Exemplars, Past, distillation
from clrun.strategy.fisher_information import diagonal_fisher
from clrun.strategy.generator import Autoencoder, flat_inputs, values_of
from clrun.strategy.gradients import Aux, dot, gradient_by_leaf, gradient_of, inside_transform
from clrun.strategy.herding import class_means
from clrun.strategy.loss import BARRED, cross_entropy, log_softmax, losses, one_hot, smoothed
from clrun.strategy.multitask import MultiTask
from clrun.strategy.per_sample import PerSampleMeasure, network_mask, sum_over_samples
from clrun.strategy.quadratic import Gaussian, Quadratic
from clrun.strategy.quadratic_program import bounded_minimum
from clrun.strategy.ranked import AnyMemory, RankedMemory, ranks
from clrun.strategy.regularization import QuadraticPenalty
from clrun.strategy.replay import Replay, buffer_stats
from clrun.strategy.reservoir import Memory, named, write_slots
from clrun.strategy.uniform import normal, uniform
from clrun.strategy.walk import Walk
from clrun.system.text import format_value

# The former name of `diagonal_fisher`; it goes away in the next release.
fisher = diagonal_fisher

lifted = inside_transform  # the former name, which goes away in the next release

__all__ = [
    "BARRED",
    "NEGLIGIBLE",
    "ROUNDING",
    "AnyMemory",
    "Autoencoder",
    "Aux",
    "Batch",
    "BatchNormMode",
    "ClassSums",
    "ClosedForm",
    "Data",
    "Exemplars",
    "Gaussian",
    "HealthRows",
    "Knobs",
    "LinearHead",
    "Memory",
    "MultiTask",
    "Network",
    "Past",
    "PerSampleMeasure",
    "Pool",
    "Quadratic",
    "QuadraticPenalty",
    "RankedMemory",
    "Replay",
    "RunningStatistics",
    "Strategy",
    "TaskTables",
    "Tree",
    "Walk",
    "Weights",
    "Window",
    "bounded_minimum",
    "buffer_stats",
    "class_means",
    "cross_entropy",
    "diagonal_fisher",
    "distillation",
    "dot",
    "fisher",
    "flat_inputs",
    "format_value",
    "gradient_by_leaf",
    "gradient_of",
    "inside_transform",
    "later_tasks",
    "lifted",
    "log_softmax",
    "losses",
    "lowered",
    "named",
    "nearest_mean",
    "network_mask",
    "normal",
    "one_hot",
    "ranks",
    "smoothed",
    "solved",
    "sum_over_samples",
    "uniform",
    "values_of",
    "write_slots",
]
