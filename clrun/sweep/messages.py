"""What a worker process reports to the process of the sweep. Each message is about the group that it trains."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from clrun.results.outcome import RunStatus


class RunResult(NamedTuple):
    """How a run has ended, and where its status is CRASHED, why."""

    status: RunStatus
    reason: str | None = None


@dataclass(frozen=True)
class GroupBegan:
    """A worker has been given a group."""


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
class GroupEnded:
    """The last message on a group: how its runs have ended, in their order."""

    results: Sequence[RunResult]


@dataclass(frozen=True)
class WorkerDied:
    """The last message on a group whose worker has ended without another."""

    cause: str


Message = GroupBegan | TaskBegan | Advanced | GroupEnded | WorkerDied


class Event(NamedTuple):
    """A message, the worker that it is from, and the index of the group that it is about."""

    worker: str
    group: int
    message: Message
