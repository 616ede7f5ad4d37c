"""What every strategy promises, as checks: `clrun-check` makes them of a user's class, and the tests of all of clrun's.

A check returns None where the promise is kept, else a clause that says what is wrong. Runs are trained in float64, in
which the rounding of one order of sums or another stays far below TOLERANCE.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from clrun.data.batches import StepContext
from clrun.engine.stack import Stack
from clrun.engine.state import PAIR, StageReport, TrainState
from clrun.engine.step import make_step
from clrun.results.columns import TIMED_FILES
from clrun.runs.prepared import Prepared
from clrun.runs.train import train_runs, train_stack
from clrun.terminal.console import make_console
from clrun.terminal.progress import TerminalProgress

TOLERANCE = 1e-9  # of float64: two computations of the same numbers agree to it
HEALTH_TOLERANCE = 1e-6  # relative: of means over the steps of a task

PRESENT, PADDED = 5, 3  # samples of a batch that are there, and of weight 0
BLOCK = 7  # steps between two points from which an interrupted run can continue
KILLED_IN = (1, 2)  # numbers of the tasks within which a run is interrupted
STEPS_BEFORE = 3  # steps of the second task before the one that is checked: at its start, theta may be an anchor


# ---------------------------------------------------------------- helpers


def trained(stack: Stack, stages: int | None = None) -> tuple[TrainState, list[StageReport]]:
    """Return the runs after all stages, or after so many, and the report of each."""
    current, reports = stack.initialize(), []
    for stage in range(stack.strategy.data.tasks if stages is None else stages):
        current, report = stack.learn(current, stage)
        reports.append(report)
    return current, reports


def difference(a: Any, b: Any) -> float:
    """Return the largest absolute difference between the tensors of two states; infinity where one is nan alone."""
    pairs = [(x.double(), y.double()) for x, y in zip(tree_leaves(a), tree_leaves(b), strict=True)]
    if any(not torch.equal(x.isnan(), y.isnan()) for x, y in pairs):
        return math.inf
    return max(((x - y).nan_to_num().abs().max().item() for x, y in pairs if x.numel()), default=0.0)


def equal(a: Any, b: Any) -> bool:
    """Return whether the tensors of two states are equal, bit for bit."""
    return all(torch.equal(x, y) for x, y in zip(tree_leaves(a), tree_leaves(b), strict=True))


@dataclass(frozen=True)
class SecondTask:
    """A run within its second task, and a step of it, whose batch has PADDED samples of weight 0 at its end."""

    stack: Stack
    run: TrainState
    rows: Tensor  # (B,)
    noise: Tensor  # (K, B)

    @classmethod
    def of(cls, stack: Stack) -> "SecondTask":
        """Return it for a stack of one run."""
        run, _ = trained(stack, 1)
        size, task = PRESENT + PADDED, min(1, stack.strategy.data.tasks - 1)
        pool = stack.pool(0, stack.strategy.phases[0], run.theta.dtype)
        rows = stack.strategy.data.rows(stack.streams[0].train[task], task)[:size]
        begun = cls(stack, run, rows, pool.noise[:, : len(rows)])
        for _ in range(STEPS_BEFORE):
            begun = replace(begun, run=begun.step(begun.run, torch.ones(len(rows))))
        return begun

    def step(self, given: TrainState, weight: Tensor) -> TrainState:
        """Return the run after a step on the first samples of the batch, with this weight (n,)."""
        n, stack = len(weight), self.stack
        device, stage = self.rows.device, min(1, stack.strategy.data.tasks - 1)
        samples = stack.strategy.data.index(stack.tables, self.rows[:n], weight.to(given.theta))
        task, progress, epoch = (torch.tensor(v, device=device) for v in (stage, 0.5, 0))
        context = StepContext(task, task, progress, epoch, self.noise[:, :n])
        new, _ = make_step(stack.strategy, stack.optimizer)(given, stack.lr, stack.hp, stack.tables, samples, context)
        return new


# ---------------------------------------------------------------- the promises


def pure(second: SecondTask) -> str | None:
    """Check that a step leaves what it is given as it was, gives the same again, and keeps the shapes of the state; and
    that no state is theta itself, which would move with it."""
    stack = second.stack
    before, weight = tree_map(torch.clone, second.run), torch.ones(len(second.rows))
    first, again = (second.step(second.run, weight) for _ in range(2))
    if not equal(before, second.run):
        return "a step changes what it is given; return new tensors, and write into none"
    if not equal(first, again):
        return "a step gives something else the second time; take random numbers from batch.noise, and keep none aside"
    for one in (first, stack.initialize()):
        if [(v.shape, v.dtype) for v in tree_leaves(one)] != [(v.shape, v.dtype) for v in tree_leaves(before)]:
            return "the state changes its shapes or types; let init return them as they are in the end"
    for one in (stack.initialize(), second.run):
        if one.theta.data_ptr() in {v.data_ptr() for v in tree_leaves(one.state) if v.numel()}:
            return "the state is theta itself, and would follow it"
    return None


def padding(second: SecondTask) -> str | None:
    """Check that samples of weight 0, by which the batches of a stack are filled up, change nothing in a step."""
    n = len(second.rows) - PADDED
    weight = (torch.arange(n + PADDED) < n).double()
    away = difference(second.step(second.run, weight[:n]), second.step(second.run, weight))
    if away < TOLERANCE:
        return None
    return (
        f"samples of weight 0 change a step by {away:.2g}; take means with batch.mean(values), not values.mean(), and "
        "sums with batch.weight"
    )


def stacked(together: Stack, alone: Callable[[int], Stack], names: Sequence[object]) -> str | None:
    """Check that runs that are trained as one program equal the same runs alone. alone: r -> a stack of run r; names
    [r]: what to call it."""
    current, reports = trained(together)
    for r, name in enumerate(names):
        one, of_one = trained(alone(r))
        away = difference(tree_map(lambda v, r=r: v[r], current), one)
        if away >= TOLERANCE:
            return f"the run of {name} differs by {away:.2g} from the same run alone"
        for stacked_report, report in zip(reports, of_one, strict=True):
            if not torch.equal(stacked_report.correct[r], report.correct[0]):
                return f"the run of {name} answers otherwise than the same run alone"
            for column, value in report.health[0].items():
                if not alike(value, stacked_report.health[r].get(column)):
                    return f"health column {column} of {name} is {stacked_report.health[r].get(column)}, alone {value}"
    return None


def alike(a: object, b: object) -> bool:
    """Return whether two cells of health.csv agree."""
    if not (isinstance(a, int | float) and isinstance(b, int | float)):
        return a == b
    return math.isclose(a, b, rel_tol=HEALTH_TOLERANCE, abs_tol=TOLERANCE) or (math.isnan(a) and math.isnan(b))


def neutral(mine: Stack, plain: Stack) -> str | None:
    """Check that a method at its neutral strength is plain training: the weights bit for bit, and the answers after
    each task. mine and finetune."""
    (run, reports), (other, of_other) = trained(mine), trained(plain)
    theta = run.theta[: len(other.theta)]
    if not torch.equal(theta, other.theta):
        return f"the weights differ from those of finetune by {difference(theta, other.theta):.2g}"
    for report, of_finetune in zip(reports, of_other, strict=True):
        if not torch.equal(report.correct, of_finetune.correct):
            return f"with the weights of finetune, it answers otherwise after task {report.stage + 1}"
    return None


def health(reports: Sequence[StageReport]) -> str | None:
    """Check that the columns of health.csv are finite numbers, or empty, and the scores of the test samples numbers."""
    for report in reports:
        if report.evaluation is not None and report.evaluation.undefined[0] > 0:
            asked = int(report.evaluation.pairs[:, PAIR.index("count")].sum())
            count = int(report.evaluation.undefined[0])
            return f"{count} of {asked} test samples had a score that is no number (NaN) after task {report.stage + 1}"
        for column, value in report.health[0].items():
            if value is not None and not math.isfinite(value):
                return f"column {column} is {value} after task {report.stage + 1}"
    return None


class Interruption(BaseException):
    """The end of a process, as seen from within: nothing is cleaned up on purpose."""


class InterruptingTask(TerminalProgress):
    """A progress that ends training within a task, after its second block of steps, or where it has one block when the
    task has ended. Where a task is not trained at all, it is the next one that is trained."""

    def __init__(self, task: int) -> None:
        super().__init__(make_console(quiet=True), 1)
        self.task, self.now, self.blocks = task, 0, 0

    def begin_task(self, stage: int, steps: int) -> None:
        """Note the number of the task."""
        self.now, self.blocks = stage, 0

    def advance(self, steps: int) -> None:
        """Raise Interruption at the second block of the task, before which a checkpoint was written. A pass that begins
        says so with the steps that it has taken already, which are 0 where it is new."""
        self.blocks += steps > 0
        if self.now >= self.task and self.blocks == 2:
            raise Interruption

    def end_task(self, stage: int, accuracies: Sequence[float]) -> None:
        """Raise Interruption where the task had one block."""
        if stage >= self.task:
            raise Interruption


def resumed(whole: Prepared, interrupted: Prepared) -> str | None:
    """Check that a run that is killed within its first task and again within its second writes the files of one that
    was not, byte for byte. The two are of the same settings, in two folders, and write a checkpoint at every point."""
    in_short_blocks = partial(train_stack, block_steps=BLOCK)
    train_runs([whole], quiet=True, trainer=in_short_blocks)
    for task in KILLED_IN:
        try:
            train_runs([interrupted], progress=InterruptingTask(task), trainer=in_short_blocks)
        except Interruption:
            continue
        break
    else:
        train_runs([interrupted], quiet=True, trainer=in_short_blocks)
    other = [path.name for path in tables(whole.directory) if not same_bytes(path, interrupted.directory / path.name)]
    return f"{', '.join(other)} of the run that went on is not that of the run that was not killed" if other else None


def tables(directory: Path) -> list[Path]:
    """Return the CSV files of a run that hold no times."""
    return sorted(path for path in directory.glob("*.csv") if path.name not in TIMED_FILES)


def same_bytes(path: Path, other: Path) -> bool:
    """Return whether two files are there and equal."""
    return other.is_file() and path.read_bytes() == other.read_bytes()
