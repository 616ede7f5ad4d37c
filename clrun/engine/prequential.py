"""Testing before learning: what a run answers to each training sample just before it learns from it.

The accuracy over these answers is called prequential (Dawid 1984; Gama et al. 2013), or online accuracy (Cai et al.
2021). It needs no test set, and each sample is new to the network when it is answered.
"""

from typing import Any

import torch

from clrun.data.batches import Batch, StepContext
from clrun.engine.state import ONLINE_CORRECT, ONLINE_SAMPLES, Signals, TrainState
from clrun.strategy import BARRED, Strategy


def tested_first(strategy: Strategy, current: TrainState, hp: Any, batch: Batch) -> Signals:
    """Return the number () of samples of a batch that are new to one run, and of those that it answers correctly.

    What answers is what would be evaluated at this moment: the weights that the strategy deploys and its scores, with
    the running statistics of batch norm. The outputs that may answer are those with which the samples are trained.
    Samples of earlier tasks, which a memory brings back, are not new, and neither are those of a further pass.
    """
    with torch.no_grad():
        evaluated = strategy.eval_mode(current.stats)
        if evaluated.data.augment:
            context = StepContext(batch.stage, batch.horizon, batch.progress, batch.epoch, batch.noise)
            batch = evaluated.data.batch(batch.tables, batch.rows, batch.weight, context, augment=False)
        theta = evaluated.deploy(current.evaluated, current.state, hp)
        scores = evaluated.scores(theta, current.state, hp, batch.x, batch.t)
        right = scores.masked_fill(~batch.active, BARRED).argmax(-1) == batch.y
        new = (batch.weight > 0) & (batch.t >= batch.stage) & (batch.epoch == 0)
    return {
        ONLINE_CORRECT: (right & new).to(current.theta.dtype).sum(),
        ONLINE_SAMPLES: new.to(current.theta.dtype).sum(),
    }
