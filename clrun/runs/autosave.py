"""When a checkpoint is written, and how a stack becomes named tensors and back."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_map, tree_unflatten

from clrun.engine.stack import Stack
from clrun.engine.state import PartialStage, Run
from clrun.results.outcome import Outcome
from clrun.runs import checkpoint
from clrun.runs.checkpoint import Checkpoint, InvalidCheckpoint, Position

# of an outcome, JSON as they are
MEASURED = ("status", "diverged_at", "warnings", "health", "costs", "task_costs", "over_training")


COUNTED = ("correct", "validation_correct")  # integer tables, or None


def named(tree: Any) -> dict[str, Tensor]:
    """Return the leaves of a run by where they lie: "run.theta", "run.opt.m", "run.own[0]" ..."""
    return {name_of(path): v for path, v in tree_flatten_with_path(tree)[0]}


def name_of(path: Any) -> str:
    """Return the name of a leaf in checkpoints, in which a strategy's state has been called `own` since format 2."""
    place = keystr(path)
    return f"run.own{place.removeprefix('.state')}" if place.startswith(".state") else f"run{place}"


def slice_of(tree: Any, r: int, alone: bool) -> Any:
    """Run r of a stack, on the host; a view where it lies there already."""
    return tree_map(lambda v: (v if alone else v[r]).detach().cpu(), tree)


def revived(stack: Stack, saved: Sequence[Checkpoint]) -> Run:
    """The stack's state from the checkpoints of its runs. Raises InvalidCheckpoint where the strategy's state has
    another form, as after its code was changed."""
    form = stack.initialize()
    flat, structure = tree_flatten_with_path(form)
    trees = []
    for one in saved:
        mine = {name: v for name, v in one.tensors.items() if name.startswith("run")}
        same_form(named(slice_of(form, 0, stack.alone)), mine)
        trees.append(tree_unflatten([mine[name_of(path)] for path, _ in flat], structure))
    return stack.vectorizer.stack_trees(trees)


def same_form(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    for name in sorted({*expected, *found}):
        one, other = ((v.shape, v.dtype) if v is not None else None for v in (expected.get(name), found.get(name)))
        if one != other:
            changed = "has the strategy or the network been changed?"
            raise InvalidCheckpoint(f"{name} is not as the code wants it: {changed}")


def signals_of(half: PartialStage, r: int) -> dict[str, Tensor]:
    """The signals of run r so far: "signals.PASS.NAME" (S,)."""
    passes = enumerate(half.signals)
    return {f"signals.{i}.{name}": v[r].clone() for i, seen in passes for name, v in seen.items()}


def noted(outcome: Outcome) -> dict[str, Any]:
    """What an outcome knows, as JSON."""
    tables = {name: getattr(outcome, name) for name in COUNTED}
    plain = {name: v if v is None else v.tolist() for name, v in tables.items()}
    return json.loads(json.dumps(plain | {name: getattr(outcome, name) for name in MEASURED}))


def recall(outcome: Outcome, notes: Mapping[str, Any]) -> None:
    """Enter what `noted` has kept."""
    for name in MEASURED:
        setattr(outcome, name, notes[name])
    for name in COUNTED:
        setattr(outcome, name, None if notes[name] is None else np.array(notes[name]))


def partial_stage_notes(half: PartialStage, runs: int) -> list[dict[str, Any]]:
    """[r]: each run's share of a stage that is under way, as JSON."""
    report = half.report
    shared = {"samples": report.samples / runs, "seconds": {name: s / runs for name, s in report.seconds.items()}}
    shared["signals"] = [list(seen) for seen in half.signals]  # in their order, which the file of tensors does not keep
    return [
        shared | {"over_training": [[step, correct[r].tolist()] for step, correct in report.over_training]}
        for r in range(runs)
    ]


def partial_stage_of(stack: Stack, saved: Sequence[Checkpoint]) -> PartialStage | None:
    """What a stage had gathered, from the checkpoints of a stack's runs; None between stages."""
    place, notes = saved[0].place, [one.notes["half"] for one in saved]
    if not place.passes:
        return None
    report = stack.blank_report(place.stage)
    report.samples = round(sum(n["samples"] for n in notes))
    report.seconds = {name: sum(n["seconds"][name] for n in notes) for name in report.seconds}
    evaluations = zip(*(n["over_training"] for n in notes), strict=True)
    report.over_training = [(each[0][0], torch.tensor([row for _, row in each])) for each in evaluations]
    signals = [
        {name: torch.stack([one.tensors[f"signals.{i}.{name}"] for one in saved]) for name in names}
        for i, names in enumerate(notes[0]["signals"])
    ]
    return PartialStage(report, len(place.passes) - 1, place.passes[-1], signals)


@dataclass
class Point:
    """A point that a stack can be continued from. Its tensors are never changed; all else here is a copy."""

    place: Position
    run: Run
    notes: list[dict[str, Any]]
    half: PartialStage | None


class Checkpointer:
    """Knows the last point that a stack can be continued from, and writes it: after every task, every `every` seconds
    within one (0: never), and when the process is told to end.

    A checkpoint that cannot be written (a full disk) is said and does not end the run: the one before it stays.

    spent: costs of this process's time that are not in the outcomes yet, a run's share.
    """

    def __init__(
        self,
        stack: Stack,
        outcomes: Sequence[Outcome],
        every: float,
        say: Callable[[str], None],
        spent: Callable[[], Mapping[str, float]],
    ):
        self.stack, self.outcomes, self.every, self.say, self.spent = stack, outcomes, every, say, spent
        self.written_at = monotonic()
        self.latest: Point | None = None
        self.written: Point | None = None

    def start(self, run: Run, stage: int, half: PartialStage | None) -> None:
        """`stage` tasks are over, and of the next this much; all that is on the disk."""
        self.arrive(run, stage)
        if half is not None:
            self.block(run, half)
        self.written = self.latest

    def task(self, run: Run, stage: int) -> None:
        """`stage` tasks are over."""
        self.arrive(run, stage)
        self.write()

    def arrive(self, run: Run, stage: int) -> None:
        self.latest = Point(Position(stage, (), self.stack.step), run, [noted(o) for o in self.outcomes], None)

    def block(self, run: Run, half: PartialStage) -> None:
        """Within a task; what was measured is as it was at the task's start."""
        passes = tuple(seen["loss"].shape[1] for seen in half.signals)
        shares = partial_stage_notes(half, len(self.outcomes))
        notes = [n | {"half": share} for n, share in zip(self.latest.notes, shares, strict=True)]
        self.latest = Point(Position(self.latest.place.stage, passes, self.stack.step), run, notes, half)
        if self.every and monotonic() - self.written_at >= self.every:
            self.write()

    def rescue(self) -> None:
        """The process is to end: what is not yet written is written now, and how far that is is said."""
        if self.latest is None or self.latest.place == Position():
            return
        if self.latest is self.written or self.write():
            self.say(f"saved after {self.latest.place}; the same command continues from there.")

    def write(self) -> bool:
        """Every run's checkpoint into its directory; whether that succeeded."""
        point = self.latest
        try:
            for r, outcome in enumerate(self.outcomes):
                checkpoint.write(outcome.directory, outcome.run, self.of(point, r))
            self.written = point
        except OSError as error:
            self.say(f"no checkpoint could be written ({error}); the run goes on without a new one.")
        self.written_at = monotonic()
        return self.written is point

    def of(self, point: Point, r: int) -> Checkpoint:
        """Run r's part of a point."""
        tensors = named(slice_of(point.run, r, self.stack.alone))
        signals = signals_of(point.half, r) if point.half else {}
        notes = dict(point.notes[r])
        notes["costs"] = notes["costs"] | {name: notes["costs"][name] + more for name, more in self.spent().items()}
        return Checkpoint(point.place, tensors | signals, {"half": None} | notes)
