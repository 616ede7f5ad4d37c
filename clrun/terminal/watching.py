"""How far the runs of a folder are, from their files alone: for `clrun-watch`.

Nothing is written, and no process is asked: a run is under way if the process in its lock.json lives, seen from the
same host, or has renewed the lock lately, seen from another, as with the jobs of a cluster on a shared disk.
"""

import json
import os
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import pandas as pd
import yaml

from clrun.results import run_files
from clrun.results.outcome import RunStatus
from clrun.results.reading import UnreadableFile, read_config, read_table
from clrun.results.tables import is_missing
from clrun.system import locks
from clrun.terminal.console import percent
from clrun.terminal.fitting import Cells, Column
from clrun.terminal.progress import clock

# Seconds without a heartbeat after which a process on another host counts as dead here. Clocks of hosts differ.
STALE_SECONDS = 3 * locks.STALE_SECONDS

CHECKPOINT = "checkpoint.safetensors"  # as in clrun/runs/checkpoint.py, which imports torch

MOST_BYTES = 100_000_000  # of the header of a checkpoint

SHOWN = 10  # finished runs, the latest


class State(StrEnum):
    """How far a run is."""

    RUNNING = "running"
    CRASHED = "crashed"
    INTERRUPTED = "interrupted"
    ENDED = "ended"


@dataclass(frozen=True)
class Seen:
    """What the files of a run tell. What is not known yet is None, and nan for numbers."""

    directory: Path
    state: State
    status: str = ""  # of a run that has ended: done or diverged
    host: str = ""  # that trains it
    tasks_learnt: int | None = None
    tasks: int | None = None
    steps: int | None = None  # of the tasks that have been learnt
    accuracy: float = float("nan")  # mean over the tasks learnt so far
    seconds_left: float | None = None

    def cells(self) -> list[str]:
        """Return the run as a row of the table."""
        how_far = "" if self.tasks_learnt is None or self.tasks is None else f"{self.tasks_learnt}/{self.tasks}"
        steps = "" if self.steps is None else str(self.steps)
        left = "" if self.seconds_left is None else clock(self.seconds_left)
        name = f"{self.directory.parent.name}/{self.directory.name}"
        return [name, self.status or str(self.state), self.host, how_far, steps, percent(self.accuracy), left]


@dataclass
class Watcher:
    """What looks at a folder of results again and again. A run that has ended is not listed anew."""

    outputs: Path
    ended: dict[Path, float] = field(default_factory=dict)  # folder -> time of its summary.csv, in seconds
    unreadable: dict[Path, str] = field(default_factory=dict)  # damaged file of those that were shown -> what to do

    def look(self, now: float) -> tuple[list[Seen], list[Path]]:
        """Return the runs that have not ended, those under way first, and the folders of those that have, the latest
        first. now: seconds since the epoch."""
        found = []
        for directory in self.directories():
            if trained_again(directory, now):
                self.ended.pop(directory, None)
                found.append(seen(directory, now, self.unreadable))
                continue
            if directory in self.ended:
                continue
            with suppress(OSError):
                self.ended[directory] = (directory / "summary.csv").stat().st_mtime
                continue
            found.append(seen(directory, now, self.unreadable))
        order = list(State)
        found.sort(key=lambda one: (order.index(one.state), str(one.directory)))
        return found, sorted(self.ended, key=lambda directory: -self.ended[directory])

    def directories(self) -> Iterator[Path]:
        """Yield the folders of all runs, and forget those that were removed."""
        there = [path for path in self.outputs.glob("runs/*/*") if path.is_dir()]
        self.ended = {directory: when for directory, when in self.ended.items() if directory in set(there)}
        yield from there


def trained_again(directory: Path, now: float) -> bool:
    """Return whether a run that has a lock is trained, which one of rerun=true may be although it has a summary.csv."""
    return (directory / locks.NAME).is_file() and living_owner(directory, now) is not None


def seen(directory: Path, now: float, unreadable: dict[Path, str]) -> Seen:
    """Return what is known of a run that has not ended. Its checkpoint is newer than its tables, if there is one.

    unreadable: gets the files that cannot be read, each with what to do.
    """
    owner = living_owner(directory, now)
    crashed = (directory / "failed.txt").is_file()
    state = State.RUNNING if owner is not None else State.CRASHED if crashed else State.INTERRUPTED
    matrix, place = table(directory / "accuracy_matrix.csv", unreadable), checkpoint_place(directory)
    tasks = tasks_of(directory) if matrix is None else sum(str(name).startswith("task_") for name in matrix)
    learnt, steps = (0, None) if place is None else place
    left = None
    if owner is not None and learnt and tasks is not None:
        left = seconds_left(directory, learnt, tasks, now, unreadable)
    accuracy = float("nan") if matrix is None else last_average(matrix)
    host = "" if owner is None else owner.host
    return Seen(directory, state, "", host, learnt, tasks, steps, accuracy, left)


def checkpoint_place(directory: Path) -> tuple[int, int] | None:
    """Return how many tasks and optimizer steps lie behind a run by the header of its checkpoint, which is that of
    safetensors (8 bytes with its length, then JSON); None where there is none, or where it cannot be read."""
    try:
        with (directory / CHECKPOINT).open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, MOST_BYTES)))["__metadata__"]["clrun"]
        stage, _, step = json.loads(header)["place"]
        return int(stage), int(step)
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return None


def ended(directory: Path, unreadable: dict[Path, str]) -> Seen:
    """Return what is known of a run that has ended. unreadable: as of `seen`."""
    try:
        summary = run_files.summary_of(directory)
    except UnreadableFile as error:
        unreadable[error.path] = str(error)
        return Seen(directory, State.ENDED, status="damaged")
    health = table(directory / "health.csv", unreadable)
    first = summary.get("first_tasks")
    tasks = int(summary["tasks"]) if first is None or is_missing(first) else int(first)
    learnt = tasks if summary["status"] == RunStatus.DONE else None if health is None else len(health)
    return Seen(
        directory, State.ENDED, str(summary["status"]), "", learnt, tasks,
        None if health is None or "steps" not in health else int(health["steps"].sum()),
        float(summary["average_accuracy"]),
    )  # fmt: skip


def living_owner(directory: Path, now: float) -> locks.Owner | None:
    """Return the process that trains a run; None if there is none. now: seconds since the epoch."""
    owner, heartbeat = locks.read(directory)
    here = locks.this_process()
    if owner is None:
        return None
    if (owner.host, owner.space) == (here.host, here.space):
        return owner if locks.alive(owner) else None
    return owner if now - heartbeat < STALE_SECONDS else None


def table(path: Path, unreadable: dict[Path, str]) -> pd.DataFrame | None:
    """Return a table of a run; None where it is not there yet, or cannot be read. unreadable: as of `seen`."""
    try:
        return read_table(path)
    except UnreadableFile as error:
        if os.path.lexists(path):
            unreadable[path] = str(error)
        return None


def tasks_of(directory: Path) -> int | None:
    """Return the number of tasks that a run trains on, from its config.yaml; None where that is not known."""
    try:
        config = read_config(directory)
        return int(config.get("first_tasks") or config["tasks"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError):
        return None


def last_average(matrix: pd.DataFrame) -> float:
    """Return the mean accuracy on the tasks learnt so far; nan before the first is."""
    known = matrix.loc[matrix["after_task"] > 0, "average"].dropna()
    return float(known.iloc[-1]) if len(known) else float("nan")


def seconds_left(directory: Path, learnt: int, tasks: int, now: float, unreadable: dict[Path, str]) -> float | None:
    """Return how many seconds a run is likely to take from now on, if its tasks take as long as those before.

    A task takes as long as its share in the time from the start of the process (when config.yaml was written) to the
    last checkpoint, or as its costs say, whichever is longer: of a run that goes on from a checkpoint that time is too
    short, and of a run in a stack its costs are its share alone.
    """
    try:
        began, last = ((directory / name).stat().st_mtime for name in ("config.yaml", CHECKPOINT))
    except OSError:
        return None
    per_task = max((last - began) / learnt, seconds_of_task(directory, unreadable))
    return max(0.0, per_task * (tasks - learnt) - (now - last))


def seconds_of_task(directory: Path, unreadable: dict[Path, str]) -> float:
    """Return the seconds that a task has taken by costs.csv, in the mean; 0 where that is not known."""
    costs = table(directory / "costs.csv", unreadable)
    measured = None if costs is None else costs[costs["task"] > 0].filter(regex="_seconds$")
    return 0.0 if measured is None or measured.empty else float(measured.to_numpy(float).sum()) / len(measured)


# ---------------------------------------------------------------- the table


def cells_of(outputs: Path, watcher: Watcher, now: float, everything: bool = False) -> Cells:
    """Return the table of the runs of a folder: all that have not ended, and the latest of those that have. everything:
    all of these, too."""
    watcher.unreadable.clear()
    found, finished = watcher.look(now)
    shown = finished if everything else finished[:SHOWN]
    rows = [one.cells() for one in [*found, *(ended(directory, watcher.unreadable) for directory in shown)]]
    return Cells(title(outputs, found, finished, shown), COLUMNS, rows, labels=2)


COLUMNS = (
    Column("run", text=True), Column("status", text=True), Column("host", text=True), Column("tasks"), Column("steps"),
    Column("accuracy"), Column("time left"),
)  # fmt: skip


def title(outputs: Path, found: Sequence[Seen], finished: Sequence[Path], shown: Sequence[Path]) -> str:
    """Return how many runs there are in which state."""
    counts = {str(state): sum(one.state == state for one in found) for state in State} | {"ended": len(finished)}
    texts = [f"{count} {state}" for state, count in counts.items() if count]
    more = f", the latest {len(shown)} of which are shown" if len(shown) < len(finished) else ""
    at = time.strftime("%H:%M:%S")
    return f"{os.fspath(outputs)}, {at}: {', '.join(texts)}{more}"
