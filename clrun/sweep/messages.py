"""What a worker process reports to the process of the sweep. Each message is about the stack that it trains."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from clrun.results.outcome import RunStatus


class RunResult(NamedTuple):
    """How a run has ended, and where its status is CRASHED, why."""

    status: RunStatus
    reason: str | None = None


@dataclass(frozen=True)
class StackBegan:
    """A worker has been given a stack."""


@dataclass(frozen=True)
class TaskBegan:
    """Training on a task begins."""

    stage: int  # from 1
    steps: int


@dataclass(frozen=True)
class Advanced:
    """So many more optimizer steps are done."""

    steps: int


@dataclass(frozen=True)
class StackEnded:
    """The last message on a stack: how its runs have ended, in their order."""

    results: Sequence[RunResult]


@dataclass(frozen=True)
class StackTooLarge:
    """The last message on a stack for which the device's memory did not suffice: its halves are trained in another
    process. They become the last two stacks of the sweep."""


@dataclass(frozen=True)
class WorkerDied:
    """The last message on a stack whose worker has ended without another."""

    cause: str


Message = StackBegan | TaskBegan | Advanced | StackEnded | StackTooLarge | WorkerDied


class Event(NamedTuple):
    """A message, the worker that it is from, and the index of the stack that it is about."""

    worker: str
    stack: int
    message: Message
