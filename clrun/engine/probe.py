"""A linear probe of the representation: how much of a task can still be read off the features (probe=true).

The features phi(x) are what the last layer is given, by the weights that the strategy deploys, in evaluation mode.
After each task, and before any training, a linear map is fitted for each task by itself: on all of its training
samples, with the network frozen, and with targets e(y) that are 1 at the output of the label and 0 at the others,

    W, b = argmin  1/n sum_i || W phi_i + b - e(y_i) ||^2  +  r || W ||^2        r = RIDGE trace(S) / d
    W = K (S + r 1)^-1        b = mean of e(y) - W (mean of phi)

S is the covariance of the d features, and K that of the targets with them. As r grows with the features, their scale
does not matter. Of the outputs of the task's classes, the one with the largest value of W phi + b answers. What of a
task is lost here is forgotten in the features; what only the run's own answers have lost, in the last layer (Davari et
al. 2022, who train the probe by steps). Nothing is drawn, and nothing of the run changes.
"""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clrun.data.batches import Batch, StepContext, pad_rows
from clrun.data.seeding import DRAWS
from clrun.data.tasks import TaskTables
from clrun.engine import hooks
from clrun.engine.evaluation import Evaluator, right
from clrun.engine.state import TrainState
from clrun.strategy import Strategy, one_hot, solved

RIDGE = 1e-3  # share of the mean variance of a feature
# Variance that is added, so that features which are all constant can be solved for: then the commonest label answers.
LEAST = 1e-12


class Sums(NamedTuple):
    """Sums over samples, in float64. A feature that is always 1 stands behind the others."""

    features: Tensor  # (d + 1, d + 1) sum of phi phi^T
    targets: Tensor  # (C, d + 1) sum of e(y) phi^T


def probed(evaluator: Evaluator, current: TrainState, tasks: Iterable[int]) -> Tensor:
    """Return (R, T) int64: the test samples of each task that the probe of that task answers correctly, for all runs;
    -1 for other tasks and for those without samples."""
    correct = torch.full((len(evaluator.streams), evaluator.strategy.data.tasks), -1)
    for task in tasks:
        if all(len(stream.train[task]) and len(stream.test[task]) for stream in evaluator.streams):
            correct[:, task] = answered(evaluator, current, task)
    return correct


def answered(evaluator: Evaluator, current: TrainState, task: int) -> Tensor:
    """Return (R,) int64: the test samples of one task that its probe answers correctly."""
    strategy, vectorize = evaluator.strategy, evaluator.vectorizer.vectorize
    given = current, evaluator.hp, evaluator.tables
    add = vectorize(partial(sums, strategy))
    parts = [add(*given, rows, weight) for rows, weight in chunks(evaluator, "train", task)]
    total = Sums(*(torch.stack(v).sum(0) for v in zip(*parts, strict=True)))
    head = vectorize(fitted)(total)
    answer = vectorize(partial(answers, strategy))
    found = [answer(*given, rows, head) for rows, _ in chunks(evaluator, "test", task)]
    predicted, labels = (evaluator.vectorizer.unstack_to_host(torch.cat(v, -1)) for v in zip(*found, strict=True))
    _, valid = padded(evaluator, "test", task)
    return right(predicted, labels, valid.bool())


def padded(evaluator: Evaluator, part: str, task: int) -> tuple[Tensor, Tensor]:
    """Return the rows (R, n) of the samples of a task, and which of them are there (R, n). part: "train" or "test"."""
    data = evaluator.strategy.data
    return pad_rows([data.rows(getattr(stream, part)[task], task) for stream in evaluator.streams])


def chunks(evaluator: Evaluator, part: str, task: int) -> Iterable[tuple[Tensor, Tensor]]:
    """Yield the same on the device, so many samples at a time."""
    rows, weight = (evaluator.vectorizer.stack_trees(list(v)) for v in padded(evaluator, part, task))
    return zip(rows.split(evaluator.chunk_size, -1), weight.split(evaluator.chunk_size, -1), strict=True)


def features(
    strategy: Strategy, current: TrainState, hp: Any, tables: TaskTables, rows: Tensor
) -> tuple[Tensor, Batch]:
    """Return phi (B, d + 1) float64 of one run for samples of one task, and their batch."""
    evaluated = strategy.eval_mode(current.stats)
    zero = torch.zeros((), dtype=torch.long, device=rows.device)
    context = StepContext(zero, zero, zero.to(current.theta), zero, torch.zeros(DRAWS, 0, device=rows.device))
    batch = evaluated.data.batch(tables, rows, torch.ones_like(rows), context, augment=False)
    theta = hooks.deployed(evaluated, current, hp)
    seen: list[Tensor] = []
    reading = replace(evaluated, net=evaluated.net.recording(seen))
    reading.logits(theta, current.state, hp, batch.x, batch.t)
    # a strategy that reads the network several times has a network of its own for each task
    of_task = torch.stack(seen).index_select(0, batch.t[:1] % len(seen))[0]
    phi = (of_task if of_task.dim() == 2 else of_task.flatten(2).mean(-1)).double()
    return torch.cat([phi, torch.ones_like(phi[:, :1])], 1), batch


def sums(strategy: Strategy, current: TrainState, hp: Any, tables: TaskTables, rows: Tensor, weight: Tensor) -> Sums:
    """Return the sums of one run over the samples at `rows` (B,) of weight (B,) 1, those of weight 0 left out."""
    phi, batch = features(strategy, current, hp, tables, rows)
    there = phi * weight[:, None].double()
    return Sums(there.mT @ phi, one_hot(batch.y, strategy.data.outputs).to(there).mT @ there)


def fitted(total: Sums) -> Tensor:
    """Return the probe (C, d + 1) of one run: W and, behind it, b. For outputs without a sample, b is -infinity."""
    n, d = total.features[-1, -1], len(total.features) - 1
    mean, share = total.features[-1, :-1] / n, total.targets[:, -1] / n
    S = total.features[:-1, :-1] / n - mean[:, None] * mean
    K = total.targets[:, :-1] / n - share[:, None] * mean
    r = RIDGE * S.diagonal().sum() / max(d, 1) + LEAST
    W = solved(S + r * torch.eye(d, dtype=S.dtype, device=S.device), K.mT).mT
    b = torch.where(share > 0, share - W @ mean, -torch.inf)
    return torch.cat([W, b[:, None]], 1)


def answers(
    strategy: Strategy, current: TrainState, hp: Any, tables: TaskTables, rows: Tensor, head: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the outputs (B,) that the probe of one run answers with, and the labels (B,)."""
    phi, batch = features(strategy, current, hp, tables, rows)
    return (phi[:, :-1] @ head[:, :-1].mT + head[:, -1]).argmax(-1), batch.y
