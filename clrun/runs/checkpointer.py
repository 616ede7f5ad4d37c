"""When checkpoints are written, and how the state of a stack becomes named tensors and is restored from them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import KeyPath, keystr, tree_flatten_with_path, tree_map, tree_unflatten

from clrun.engine.stack import Stack
from clrun.engine.state import PartialStage, TrainState
from clrun.results.outcome import Outcome, RunStatus
from clrun.runs import checkpoint
from clrun.runs.checkpoint import Checkpoint, InvalidCheckpoint, Position
from clrun.system.locks import LockLost
from clrun.system.signals import postponed

CHECKPOINT_SHARE = 0.1  # of the time, at most, for checkpoints after tasks

# Fields of an Outcome that a checkpoint keeps: as JSON, and as tensors of integers, where they are not None.
JSON_FIELDS = ("status", "diverged_at", "warnings", "health", "costs", "task_costs", "over_training")
LATER_FIELDS = ("online", "calibration", "task_aware")  # which older checkpoints do not have
ARRAY_FIELDS = ("correct", "validation_correct", "predictions", "probe_correct")
CONFUSIONS = "confusions"  # the tensor that keeps this field


# ---------------------------------------------------------------- a run's state as named tensors, and back


def named_tensors(current: TrainState) -> dict[str, Tensor]:
    """Return the leaves of a run by their path: "run.theta", "run.opt.m", "run.own[0]" ..."""
    return {tensor_name(path): v for path, v in tree_flatten_with_path(current)[0]}


def tensor_name(path: KeyPath) -> str:
    """Return the name of a leaf in checkpoints, in which a strategy's state has been called `own` since format 2."""
    place = keystr(path)
    return f"run.own{place.removeprefix('.state')}" if place.startswith(".state") else f"run{place}"


def run_of_stack(current: TrainState, r: int, alone: bool) -> TrainState:
    """Return run r of a stack's state, on the host: views of tensors that are there already."""
    return tree_map(lambda v: (v if alone else v[r]).detach().cpu(), current)


def restore_run(stack: Stack, saved: Sequence[Checkpoint]) -> TrainState:
    """Return the state of a stack from the checkpoints of its runs.

    Raise InvalidCheckpoint where the state's shapes differ, as after the code of the strategy was changed.
    """
    expected = stack.initialize()
    leaves, structure = tree_flatten_with_path(expected)
    trees = []
    for one_run in saved:
        tensors = {name: v for name, v in one_run.tensors.items() if name.startswith("run")}
        refuse_other_shapes(named_tensors(run_of_stack(expected, 0, stack.alone)), tensors)
        trees.append(tree_unflatten([tensors[tensor_name(path)] for path, _ in leaves], structure))
    return stack.vectorizer.stack_trees(trees)


def refuse_other_shapes(expected: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Raise InvalidCheckpoint where the names, shapes or types of tensors differ."""
    for name in sorted({*expected, *saved}):
        if shape_and_type(expected.get(name)) != shape_and_type(saved.get(name)):
            changed = "has the strategy or the network been changed?"
            raise InvalidCheckpoint(f"{name} is not as the code wants it: {changed}")


def shape_and_type(tensor: Tensor | None) -> tuple[torch.Size, torch.dtype] | None:
    """Return what must be equal for a tensor to take the place of another."""
    return None if tensor is None else (tensor.shape, tensor.dtype)


# ---------------------------------------------------------------- what has been measured


def outcome_notes(outcome: Outcome) -> dict[str, Any]:
    """Return what an outcome has measured so far, but for arrays, as what JSON can hold. Rows are added to an outcome
    and never changed, so that a copy of a list is enough."""
    return {name: copy(getattr(outcome, name)) for name in (*JSON_FIELDS, *LATER_FIELDS)}


def outcome_arrays(outcome: Outcome) -> dict[str, np.ndarray]:
    """Return copies of the arrays that an outcome has measured so far, by the name of their tensor in checkpoints.

    In a run of 800 tasks they hold hundreds of thousands of numbers, for which JSON would take seconds after each task.
    """
    arrays = {f"outcome.{name}": getattr(outcome, name) for name in ARRAY_FIELDS}
    return {CONFUSIONS: outcome.confusions} | {name: v.copy() for name, v in arrays.items() if v is not None}


def restore_outcome(outcome: Outcome, saved: Checkpoint) -> None:
    """Write into an outcome what `outcome_notes` and `outcome_arrays` have returned. A checkpoint of an earlier version
    has no confusions, and the other arrays in its notes."""
    notes = saved.notes
    if CONFUSIONS in saved.tensors:
        outcome.confusions = saved.tensors[CONFUSIONS].numpy()
    for name in JSON_FIELDS:
        setattr(outcome, name, notes[name])
    for name in LATER_FIELDS:
        setattr(outcome, name, notes.get(name))
    outcome.costs = {"cpu_seconds": 0.0} | outcome.costs  # a checkpoint of an earlier version has none
    outcome.status = RunStatus(outcome.status)
    for name in ARRAY_FIELDS:
        noted = None if notes.get(name) is None else torch.tensor(notes[name])
        found = saved.tensors.get(f"outcome.{name}", noted)
        setattr(outcome, name, None if found is None else found.numpy())


def partial_stage_notes(partial: PartialStage, runs: int) -> list[dict[str, Any]]:
    """Return [r]: each run's share of what an incomplete stage has gathered, as JSON."""
    report = partial.report
    shared: dict[str, Any] = {
        "samples": report.samples / runs,
        "seconds": {name: s / runs for name, s in report.seconds.items()},
        "signals": [list(signals) for signals in partial.signals],  # in their order, which the file does not keep
    }
    return [
        shared | {"over_training": [[step, correct[r].tolist()] for step, correct in report.over_training]}
        for r in range(runs)
    ]


def named_signals(partial: PartialStage, r: int) -> dict[str, Tensor]:
    """Return the signals of run r so far: "signals.PASS.NAME" (S,)."""
    passes = enumerate(partial.signals)
    return {f"signals.{i}.{name}": v[r].clone() for i, signals in passes for name, v in signals.items()}


def restore_partial_stage(stack: Stack, saved: Sequence[Checkpoint]) -> PartialStage | None:
    """Return what an incomplete stage had gathered, from the checkpoints of a stack's runs; None between stages."""
    position, notes = saved[0].position, [one_run.notes["half"] for one_run in saved]
    if not position.passes:
        return None
    report = stack.blank_report(position.stage)
    report.samples = round(sum(n["samples"] for n in notes))
    report.seconds = {name: sum(n["seconds"][name] for n in notes) for name in report.seconds}
    evaluations = zip(*(n["over_training"] for n in notes), strict=True)
    report.over_training = [(each[0][0], torch.tensor([row for _, row in each])) for each in evaluations]
    signals = [
        {name: torch.stack([one_run.tensors[f"signals.{i}.{name}"] for one_run in saved]) for name in names}
        for i, names in enumerate(notes[0]["signals"])
    ]
    return PartialStage(report, len(position.passes) - 1, position.passes[-1], signals)


# ---------------------------------------------------------------- when a checkpoint is written


@dataclass(frozen=True)
class ResumePoint:
    """A point from which a stack can continue. Its tensors are never changed; all else in it is a copy."""

    position: Position
    current: TrainState
    notes: Sequence[Mapping[str, Any]]  # [r]
    arrays: Sequence[Mapping[str, np.ndarray]]  # [r], of the outcomes
    partial: PartialStage | None


def on_host(point: ResumePoint) -> ResumePoint:
    """Return a point whose state lies on the host: one copy for each tensor of a stack, and none of what is there."""
    return replace(point, current=tree_map(lambda v: v.detach().cpu(), point.current))


class Written(NamedTuple):
    """How the writing of a point ended."""

    ended_at: float  # as `monotonic` tells it
    seconds: float
    trouble: OSError | None  # of the disk
    lost: LockLost | None  # a run that another process has taken over; the checkpoints of the others are written


class Checkpointer:
    """An object that keeps the latest point from which a stack can continue, and writes it to the disk.

    It writes after a task, every `every` seconds within a task (0: never), and when the process is interrupted. After a
    task that was so short that writing would take more than CHECKPOINT_SHARE of the time, it does not write, unless
    that task was the last. A checkpoint that cannot be written (a full disk) is reported and does not end the run: the
    one before it stays.

    unrecorded_costs: returns the costs of this process's time that are not in the outcomes yet, per run.

    beside: whether a thread writes while training goes on, as on a GPU, whose steps leave the host idle. It is given
    copies on the host and makes no call of CUDA's, which would break a graph that is recorded meanwhile. No other point
    is written while it writes, but for the last one, which waits for it.
    """

    def __init__(
        self,
        stack: Stack,
        outcomes: Sequence[Outcome],
        every: float,
        report: Callable[[str], None],
        unrecorded_costs: Callable[[], Mapping[str, float]],
        beside: bool = False,
    ) -> None:
        self.stack, self.outcomes, self.every = stack, outcomes, every
        self.report, self.unrecorded_costs = report, unrecorded_costs
        self.written_at = monotonic()  # seconds
        self.writing_seconds = 0.0  # that the last checkpoint took
        self.latest: ResumePoint | None = None
        self.written: Position | None = None  # of the last point on the disk, whose tensors nobody needs any more
        self.thread = ThreadPoolExecutor(1, "checkpoints") if beside else None
        self.pending: tuple[Position, Future[Written]] | None = None  # what the thread writes

    def start(self, current: TrainState, stage: int, partial: PartialStage | None) -> None:
        """Remember the point from which training starts, which needs no writing. `stage` tasks are over."""
        self.latest = point = self.after_tasks(current, stage)
        if partial is not None:
            self.latest = self.within_task(point, current, partial)
        self.written = self.latest.position

    def end_task(self, current: TrainState, stage: int) -> None:
        """Remember the point at which `stage` tasks are over, and write it, unless the last was written just before."""
        self.latest = self.after_tasks(current, stage)
        if stage == self.stack.strategy.data.tasks:
            self.write(self.latest)
        elif not self.is_writing() and monotonic() - self.written_at >= self.writing_seconds / CHECKPOINT_SHARE:
            self.write_beside(self.latest)

    def end_block(self, current: TrainState, partial: PartialStage) -> None:
        """Remember a point within a task, and write it if the last checkpoint is older than `every` seconds."""
        if self.latest is None:
            raise RuntimeError("the checkpointer was not started")
        self.latest = self.within_task(self.latest, current, partial)
        if self.every and not self.is_writing() and monotonic() - self.written_at >= self.every:
            self.write_beside(self.latest)

    @contextmanager
    def writing_on_interrupt(self) -> Iterator[None]:
        """Write the latest point if the block is interrupted: by Ctrl-C, a signal that raises SystemExit, or the loss
        of the lock of a run, without which the other runs of the stack go on. In the end, nothing is being written."""
        try:
            yield
            self.settle()
        except (KeyboardInterrupt, SystemExit, LockLost):
            with suppress(LockLost):  # a run that another process has taken over needs no checkpoint of this one
                self.settle()
            if self.latest is not None and self.latest.position != Position():
                with suppress(LockLost):
                    self.write_unwritten(self.latest)
            raise
        except Exception:  # after which nothing is written, but what became of the last point is reported
            with suppress(LockLost):
                self.settle()
            raise
        finally:
            if self.thread is not None:
                self.thread.shutdown()  # which waits

    def write_unwritten(self, point: ResumePoint) -> None:
        """Write a point unless that is done, and report it."""
        if point.position == self.written or self.write(point):
            self.report(f"saved after {point.position}; the same command continues from there.")

    def after_tasks(self, current: TrainState, stage: int) -> ResumePoint:
        """Return the point at which `stage` tasks are over."""
        position = Position(stage, (), self.stack.step)
        notes = [outcome_notes(outcome) for outcome in self.outcomes]
        return ResumePoint(position, current, notes, [outcome_arrays(outcome) for outcome in self.outcomes], None)

    def within_task(self, start: ResumePoint, current: TrainState, partial: PartialStage) -> ResumePoint:
        """Return a point within a task. What the outcomes have measured is as it was at the start of the task."""
        passes = tuple(signals["loss"].shape[1] if signals else 0 for signals in partial.signals)
        shares = partial_stage_notes(partial, len(self.outcomes))
        notes = [{**n, "half": share} for n, share in zip(start.notes, shares, strict=True)]
        position = Position(start.position.stage, passes, self.stack.step)
        return ResumePoint(position, current, notes, start.arrays, partial)

    def is_writing(self) -> bool:
        """Return whether a thread is writing, and take note of what it has written. Raise LockLost."""
        if self.pending is not None and self.pending[1].done():
            self.settle()
        return self.pending is not None

    def write_beside(self, point: ResumePoint) -> None:
        """Write a point while training goes on, where a thread does so, and at once otherwise. Raise LockLost."""
        if self.thread is None:
            self.write(point)
            return
        copied, costs = on_host(point), self.unrecorded_costs()
        with postponed():  # a signal that arrived here would leave a thread that writes, and for which nobody waits
            self.pending = point.position, self.thread.submit(self.write_files, copied, costs)

    def settle(self) -> None:
        """Wait until what a thread writes is written. Raise LockLost."""
        if self.pending is not None:
            position, writing = self.pending
            wait([writing])  # a signal that arrives here leaves it pending: it may not end after a later point's
            self.pending = None
            self.conclude(position, writing.result())

    def write(self, point: ResumePoint) -> bool:
        """Write the checkpoint of every run into its directory, and return whether that succeeded.

        Raise LockLost, after that, if another process has taken a run over.
        """
        self.settle()
        self.conclude(point.position, self.write_files(on_host(point), self.unrecorded_costs()))
        return self.written == point.position

    def write_files(self, point: ResumePoint, unrecorded_costs: Mapping[str, float]) -> Written:
        """Write the checkpoint of every run into its directory."""
        trouble: OSError | None = None
        lost: LockLost | None = None
        began = monotonic()
        try:
            for r, outcome in enumerate(self.outcomes):
                try:
                    saved = self.checkpoint_of(point, r, unrecorded_costs)
                    checkpoint.write(outcome.directory, outcome.run, saved, outcome.guard)
                except LockLost as error:
                    lost = error
        except OSError as error:
            trouble = error
        ended = monotonic()
        return Written(ended, ended - began, trouble, lost)

    def conclude(self, position: Position, how: Written) -> None:
        """Take note of how the writing of the point at this position ended. Raise LockLost."""
        if how.trouble is None:
            self.written = position
        else:
            self.report(f"no checkpoint could be written ({how.trouble}); the run goes on without a new one.")
        self.written_at, self.writing_seconds = how.ended_at, how.seconds
        if how.lost is not None:
            raise how.lost

    def checkpoint_of(self, point: ResumePoint, r: int, unrecorded_costs: Mapping[str, float]) -> Checkpoint:
        """Return run r's part of a point."""
        tensors = named_tensors(run_of_stack(point.current, r, self.stack.alone))
        signals = named_signals(point.partial, r) if point.partial else {}
        measured = {name: torch.from_numpy(v) for name, v in point.arrays[r].items()}
        costs = dict(point.notes[r]["costs"])
        for name, value in unrecorded_costs.items():
            costs[name] += value
        return Checkpoint(
            point.position, tensors | signals | measured, {"half": None, **point.notes[r], "costs": costs}
        )
