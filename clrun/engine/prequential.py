"""Testing before learning: what a run answers to each training sample just before it learns from it.

The accuracy over these answers is called prequential (Dawid 1984; Gama et al. 2013), or online accuracy (Cai et al.
2021). It needs no test set, and each sample is new to the network when it is answered.
"""

from typing import Any

import torch
from torch import Tensor

from clrun.data.batches import Batch, StepContext
from clrun.engine import hooks
from clrun.engine.state import ANSWERS, ONLINE_CORRECT, ONLINE_SAMPLES, Signals, TrainState
from clrun.strategy import BARRED, Strategy


def answered_first(strategy: Strategy, current: TrainState, hp: Any, batch: Batch) -> Tensor:
    """Return for each sample of a batch (B,) whether one run answers it correctly, as 1 or 0.

    What answers is what would be evaluated at this moment: the weights that the strategy deploys and its scores, with
    the running statistics of batch norm. The outputs that may answer are those with which the samples are trained.
    """
    with torch.no_grad():
        evaluated = strategy.eval_mode(current.stats)
        if evaluated.data.augment is not None:
            context = StepContext(batch.stage, batch.horizon, batch.progress, batch.epoch, batch.noise)
            batch = evaluated.data.batch(batch.tables, batch.rows, batch.weight, context, augment=False)
        scores = hooks.scores(evaluated, current, hp, batch)
        right = scores.masked_fill(~batch.active, BARRED).argmax(-1) == batch.y
    return right.to(current.theta.dtype)


def counted(signals: Signals, new: Tensor) -> Signals:
    """Return the signals of some steps with counts (R, S) in place of the answers to single samples.

    new (R, S, B): which samples are new to a run. The others are those that a memory brings back or that a further step
    is taken on.
    """
    right = signals[ANSWERS].movedim(1, 2) > 0  # (R, S, B)
    others = {name: v for name, v in signals.items() if name != ANSWERS}
    return others | {ONLINE_CORRECT: (right & new).sum(2), ONLINE_SAMPLES: new.sum(2)}
