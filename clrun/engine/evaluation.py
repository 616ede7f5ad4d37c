"""How many samples of every task a stack classifies correctly, and which classes it confuses."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clrun.data.batches import StepContext, pad_rows
from clrun.data.seeding import DRAWS, generator
from clrun.data.tasks import TaskStream, TaskTables
from clrun.engine import hooks
from clrun.engine.state import Evaluation, TrainState
from clrun.engine.vectorize import PER_RUN, SHARED, Vectorizer
from clrun.strategy import BARRED, Strategy

CHUNK_SAMPLES = 1024  # of a forward pass; on a GPU, those of all runs of a stack together, but LEAST of each
LEAST = 256

BINS = 15  # of equal width, for calibration; as in Guo et al. 2017

# What answers samples: `predict_outputs`, or another function of its arguments that returns three values for each
# sample, of which the third says whether its scores are undefined.
Answer = Callable[[Strategy, TrainState, Any, TaskTables, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Evaluator:
    """Evaluates the runs of a stack on all tasks. It changes no run and draws no random numbers."""

    strategy: Strategy
    vectorizer: Vectorizer
    streams: Sequence[TaskStream]  # [r]
    tables: TaskTables  # of all runs
    hp: Any  # the strategy's Hyper of all runs
    seeds: Sequence[int] = ()  # [r]
    within: int | None = None  # of each task, the most test samples that `within_task` evaluates; None: all
    chunk_size: int = CHUNK_SAMPLES  # samples per forward pass
    every_answer: bool = False  # whether `evaluate` returns the answers to all samples, too

    def evaluate(self, current: TrainState, horizon: int | None, part: str) -> Evaluation:
        """Return the evaluation of all runs.

        horizon: the newest task seen so far, which decides on the outputs that may answer; None before any training.
        part: "test" or "validation".
        """
        answers = list(self.predictions(current, horizon, part))
        correct = [right(predicted, labels, valid) for predicted, labels, _, valid in answers]
        samples = [pad_rows(pools)[0] for pools in zip(*(getattr(one, part) for one in self.streams), strict=True)]
        task = [torch.full_like(labels, t) for t, (_, labels, _, _) in enumerate(answers)]
        predicted, labels, undefined, valid = (torch.cat(parts, -1) for parts in zip(*answers, strict=True))
        size = self.strategy.data.tasks, self.strategy.data.outputs
        numbers, tasks = torch.cat(samples, -1), torch.cat(task, -1)
        pairs = pairs_of(predicted, labels, numbers, tasks, valid, *size)
        every = answers_of(predicted, labels, numbers, tasks, valid) if self.every_answer else None
        return Evaluation(torch.stack(correct, -1), pairs, (undefined & valid).sum(-1), every)

    def correct(self, current: TrainState, horizon: int | None, part: str) -> Tensor:
        """Return (R, T) int64: the correct answers of all runs on each task. The arguments are those of `evaluate`."""
        answers = self.predictions(current, horizon, part)
        return torch.stack([right(predicted, labels, valid) for predicted, labels, _, valid in answers], -1)

    def correct_within_task(self, current: TrainState, horizon: int | None) -> Tensor:
        """Return (R, T) int64: the correct answers of all runs on each task within a task, where at most `within` test
        samples of each are asked. horizon: as of `evaluate`."""
        some = self if self.within is None else replace(self, streams=self.smaller_streams)
        return some.correct(current, horizon, "test")

    @cached_property
    def smaller_streams(self) -> list[TaskStream]:
        """The streams [r] with at most `within` test samples of each task, the same ones for equal seeds, in order."""
        pairs = zip(self.streams, self.seeds, strict=True)
        pools = [[self.few(pool, seed, task) for task, pool in enumerate(stream.test)] for stream, seed in pairs]
        return [stream._replace(test=few) for stream, few in zip(self.streams, pools, strict=True)]

    def few(self, pool: Tensor, seed: int, task: int) -> Tensor:
        """Return at most `within` of the test samples (n,) of a task, drawn for a seed, in their order."""
        order = torch.randperm(len(pool), generator=generator(seed, f"evaluated within tasks {task}"))
        return pool[order[: self.within].sort().values]

    def calibration(self, current: TrainState, horizon: int) -> Tensor:
        """Return (R, T, BINS, 3) float64: for each task the test samples whose confidence lies in a bin - how many, the
        sum of the confidences, and how many are answered correctly. Bin m of 0 ... BINS-1 is (m/BINS, (m+1)/BINS].
        horizon: as of `evaluate`."""
        answers = self.predictions(current, horizon, "test", confidences)
        return torch.stack([binned(confidence, correct, valid) for confidence, correct, _, valid in answers], 1)

    def task_aware(self, current: TrainState) -> Tensor:
        """Return (R, T) int64: the correct answers of all runs on each task where its own outputs alone may answer, as
        in a task-incremental test of runs that were not trained so; -1 for a task with one output, which is no
        question."""
        correct = self.knowing_the_task.correct(current, 0, "test")
        several = torch.stack([own_outputs(stream).sum(-1) > 1 for stream in self.streams])
        return torch.where(several, correct, -1)

    @cached_property
    def knowing_the_task(self) -> "Evaluator":
        """This evaluator with a table of one horizon, in which a task's own outputs alone may answer."""
        own = self.vectorizer.stack_trees([own_outputs(stream) for stream in self.streams])
        return replace(self, tables=self.tables._replace(active=own.unsqueeze(-3)))

    def predictions(
        self, current: TrainState, horizon: int | None, part: str, answer: Answer | None = None
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Yield for every task, on the host: predicted outputs (R, n), labels (R, n), whether a sample's scores are
        undefined (R, n) bool, and (R, n) bool, False where a run has fewer than n samples. answer: what takes the place
        of `predict_outputs`, with other values than these.
        """
        one = predict_outputs if answer is None else answer
        predict = self.vectorizer.vectorize(partial(one, self.strategy), (PER_RUN, PER_RUN, PER_RUN, PER_RUN, SHARED))
        last = self.strategy.data.tasks - 1
        seen = torch.tensor(last if horizon is None else horizon, device=self.vectorizer.device)
        tables = self.tables if horizon is not None else untrained_tables(self.tables)
        for tasks in self.together(part):
            padded = [
                pad_rows([self.strategy.data.rows(getattr(one, part)[t], t) for one in self.streams]) for t in tasks
            ]
            widths = [rows.shape[1] for rows, _ in padded]
            if not any(widths):  # tasks of which the data have no sample
                yield from ((rows, rows, valid.bool(), valid.bool()) for rows, valid in padded)
                continue
            rows = self.vectorizer.stack_trees(list(torch.cat([rows for rows, _ in padded], -1)))
            chunks = [predict(current, self.hp, tables, chunk, seen) for chunk in rows.split(self.chunk_size, -1)]
            answers = [self.vectorizer.unstack_to_host(torch.cat(v, -1)) for v in zip(*chunks, strict=True)]
            for *values, (_, valid) in zip(*(v.split(widths, -1) for v in answers), padded, strict=True):
                yield (*values, valid.bool())

    def together(self, part: str) -> list[list[int]]:
        """Return the tasks in lists, in order, that are asked in one forward pass: as many as fit into a chunk, so that
        hundreds of small tasks take few passes. A strategy with answers of its own, such as by the weights of a task,
        is asked one task at a time."""
        kind = type(self.strategy)
        if kind.logits is not Strategy.logits or kind.scores is not Strategy.scores:
            return [[task] for task in range(self.strategy.data.tasks)]
        lists: list[list[int]] = []
        filled = 0
        for task in range(self.strategy.data.tasks):
            size = max(len(getattr(stream, part)[task]) for stream in self.streams)
            if not lists or filled + size > self.chunk_size:
                lists.append([])
                filled = 0
            lists[-1].append(task)
            filled += size
        return lists


def own_outputs(stream: TaskStream) -> Tensor:
    """Return the outputs (T, C) bool of the classes of each task."""
    own = torch.zeros_like(stream.tables.unlearnt)
    for task, labels in enumerate(stream.labels):
        own[task, list(labels.values())] = True
    return own


def binned(confidence: Tensor, correct: Tensor, valid: Tensor) -> Tensor:
    """Return (R, BINS, 3): the numbers, the sums of the confidences, and the numbers of correct ones of the samples in
    each bin, of confidences (R, n), correct (R, n) bool and valid (R, n) bool."""
    level = torch.where(valid, confidence.double().nan_to_num(), 0)
    place = ((level * BINS).ceil().long() - 1).clamp(0, BINS - 1)
    values = torch.stack([torch.ones_like(level), level, correct.double()], -1) * valid[..., None]
    bins = torch.zeros(len(level), BINS, 3, dtype=torch.float64)
    return bins.scatter_add(1, place[..., None].expand_as(values), values)


def right(predicted: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    """Return how many answers of each run to the samples of a task are correct (R,), of those that are valid (R, n)."""
    return ((predicted == labels) & valid).sum(-1)


def pairs_of(
    predicted: Tensor, labels: Tensor, samples: Tensor, task: Tensor, valid: Tensor, tasks: int, outputs: int
) -> np.ndarray:
    """Return the columns PAIR (K, 6) of the answers of R runs to the samples of all tasks, run by run and task by task.

    predicted, labels, samples, task: (R, n); valid: (R, n) bool, the samples that count; tasks: T; outputs: C.
    """
    run = valid.nonzero(as_tuple=True)[0]
    sizes = tasks, outputs, outputs
    codes = ((run * tasks + task[valid]) * outputs + labels[valid]) * outputs + predicted[valid]
    found, first, counts = np.unique(codes.numpy(), return_index=True, return_counts=True)
    columns = np.unravel_index(found, (len(valid), *sizes))
    return np.stack([*columns, counts, samples[valid].numpy()[first]], axis=1)


def answers_of(predicted: Tensor, labels: Tensor, samples: Tensor, task: Tensor, valid: Tensor) -> np.ndarray:
    """Return the answers (N, 5) of R runs to the samples of all tasks: run, task, true and predicted output, sample.

    The arguments are those of `pairs_of`.
    """
    run = valid.nonzero(as_tuple=True)[0]
    return torch.stack([run, *(column[valid] for column in (task, labels, predicted, samples))], -1).numpy()


def untrained_tables(tables: TaskTables) -> TaskTables:
    """Return the tables for an untrained network: a task is answered by the first task's outputs and its own."""
    return tables._replace(active=tables.unlearnt.unsqueeze(-3).expand(tables.active.shape))


def predict_outputs(
    strategy: Strategy, current: TrainState, hp: Any, tables: TaskTables, rows: Tensor, horizon: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return one run's predicted outputs (n,), the labels (n,) of the samples at `rows` (n,), and whether one of a
    sample's scores is no number (n,) bool, when the predicted output means nothing."""
    logits, labels = deployed_logits(strategy, current, hp, tables, rows, horizon)
    return logits.argmax(-1), labels, logits.isnan().any(-1)


def confidences(
    strategy: Strategy, current: TrainState, hp: Any, tables: TaskTables, rows: Tensor, horizon: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return one run's confidence (n,) in each of its answers to the samples at `rows` (n,), the largest value of the
    softmax over the outputs that may answer, whether they are correct (n,) bool, and whether one of a sample's scores
    is no number (n,) bool."""
    logits, labels = deployed_logits(strategy, current, hp, tables, rows, horizon)
    confidence, predicted = logits.softmax(-1).max(-1)
    return confidence, predicted == labels, logits.isnan().any(-1)


def deployed_logits(
    strategy: Strategy, current: TrainState, hp: Any, tables: TaskTables, rows: Tensor, horizon: Tensor
) -> tuple[Tensor, Tensor]:
    """Return one run's scores (n, C) for the samples at `rows` (n,), which most methods call logits, and their labels
    (n,).

    The weights are those that the strategy deploys, and batch norm uses its running statistics. The score of an output
    that may not answer, horizon () being the newest task seen, is BARRED.
    """
    evaluated = strategy.eval_mode(current.stats)
    noise = torch.zeros(DRAWS, 0, device=rows.device)
    start = torch.zeros((), device=rows.device)
    context = StepContext(horizon, horizon, start, torch.zeros_like(horizon), noise)
    batch = evaluated.data.batch(tables, rows, torch.ones_like(rows), context, augment=False)
    scores = hooks.scores(evaluated, current, hp, batch)
    return scores.masked_fill(~batch.active, BARRED), batch.y
