"""The training of a sweep: in stacks (clrun/plan.py), in this process or in workers (clrun/workers.py)."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from time import sleep
from typing import TYPE_CHECKING, Any

from clrun.runs.failures import write_reason
from clrun.sweep import plan, workers
from clrun.system import locks
from clrun.terminal.console import make_console
from clrun.terminal.progress import Line, View

if TYPE_CHECKING:
    from clrun.runs.prepared import Prepared


SECONDS_BETWEEN_LOOKS = 1.0  # at runs that other processes are training


def train_all(todo: Sequence["Prepared"]) -> dict[str, str]:
    """Train them in stacks and workers; one that crashes leaves the others alone. id -> why it crashed.

    What another process is training is left to it, and looked at again when all else is done.
    """
    errors: dict[str, str] = {}
    with View(make_console(), len(todo)) as view:
        held = train_free(todo, view, errors)
        while held:
            sleep(SECONDS_BETWEEN_LOOKS)
            free = [one for one in held if locks.holder(one.directory) is None]
            held = [one for one in held if one not in free] + train_free(free, view, errors)
    return errors


def train_free(todo: Sequence["Prepared"], view: View, errors: dict[str, str]) -> list["Prepared"]:
    """Train those that no other process is training; returns the others. errors: id -> why it crashed, added to."""
    sweep = Sweep(plan.batches(todo), view, errors)
    count = plan.processes(sweep.batches)
    with closing(sweep.here() if count < 2 else sweep.in_workers(count)) as said:
        for worker, number, word in said:
            sweep.hear(worker, number, word)
    return sweep.held


@dataclass
class Sweep:
    """Batches being trained, and what comes of them."""

    batches: Sequence[Sequence["Prepared"]]
    view: View
    errors: dict[str, str]  # id -> why it crashed
    held: list["Prepared"] = field(default_factory=list)

    def here(self) -> Iterator[workers.Said]:
        """Train them in this process, one after another."""
        for number, batch in enumerate(self.batches):
            yield "1", number, ("began",)
            yield "1", number, ("ended", workers.attempt(batch, workers.Relay(lambda word: self.view.hear("1", word))))

    def in_workers(self, count: int) -> Iterator[workers.Said]:
        """Train them in so many others."""
        return workers.work([[one.settings for one in batch] for batch in self.batches], count)

    def hear(self, worker: str, number: int, word: tuple[Any, ...]) -> None:
        """What a worker says of its batch."""
        batch = self.batches[number]
        if word[0] == "began":
            self.view.begin(worker, Line(label(batch), len(batch[0].stream.train), samples_a_step(batch)))
        elif word[0] == "ended":
            self.conclude(worker, batch, word[1])
        elif word[0] == "killed":
            for one in batch:
                write_reason(one, f"Killed: {word[1]}")
            self.conclude(worker, batch, [workers.Ended("crashed", f"Killed: {word[1]}")] * len(batch))
        else:
            self.view.hear(worker, word)

    def conclude(self, worker: str, batch: Sequence["Prepared"], ended: Sequence[workers.Ended]) -> None:
        """How the runs of a batch have ended."""
        told = []
        for one, (status, reason) in zip(batch, ended, strict=True):
            if status == "held":
                self.held.append(one)
                continue
            if reason is not None:
                self.errors[one.id] = reason
                if not (one.directory / "failed.txt").is_file():  # it never came to training
                    write_reason(one, reason)
            why = "" if reason is None else f": {reason}"
            told.append(f"{one.settings['strategy']}/{one.directory.name}: {status}{why}")
        self.view.ended(worker, told)


def label(batch: Sequence["Prepared"]) -> str:
    """What a worker is at: 'ewc lambda=100 seed=0'."""
    from clrun.runs import train

    return train.name_of(batch)


def samples_a_step(batch: Sequence["Prepared"]) -> int:
    return len(batch) * batch[0].settings["batch_size"]
