"""A progress that ends training after so many reports, for tests of what is saved and how a run continues."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest

from clrun.runs import train
from clrun.runs.train import train_stack
from clrun.terminal.console import make_console
from clrun.terminal.progress import TerminalProgress

SHORT_BLOCKS = partial(train_stack, block_steps=7)  # a trainer whose blocks are of 7 steps: three in a task of 20


class Killed(BaseException):
    """SIGKILL, as seen from within: nothing is cleaned up on purpose."""


class InterruptingProgress(TerminalProgress):
    """A progress whose report number `reports` raises `end`."""

    def __init__(self, reports: int, end: type[BaseException] = KeyboardInterrupt) -> None:
        super().__init__(make_console(quiet=True), 1)
        self.reports, self.end = reports, end

    def report(self, *_: object, **__: object) -> None:
        self.reports -= 1
        if self.reports == 0:
            raise self.end

    advance = begin_task = end_task = report


def ends_as_one_that_is_not(prepared_of, outputs: Path, typed: Sequence[str], reports: int) -> None:
    """Assert that a run which is killed at report number `reports`, and then continued, has the tables of one that is
    not killed, which writes below `outputs`."""
    killed = prepared_of(*typed, "checkpoint_every=1e-9")
    with pytest.raises(Killed):
        train.train_runs([killed], progress=InterruptingProgress(reports, Killed), trainer=SHORT_BLOCKS)
    train.train_run(killed, quiet=True, trainer=SHORT_BLOCKS)
    whole = prepared_of(*typed, f"outputs={outputs}")
    train.train_run(whole, quiet=True)
    for name in ("accuracy.csv", "class_counts.csv", "confusion.csv"):
        assert (killed.directory / name).read_bytes() == (whole.directory / name).read_bytes()


class NoTraining(TerminalProgress):
    """A progress that fails as soon as a task begins."""

    def __init__(self) -> None:
        super().__init__(make_console(quiet=True), 1)

    def begin_task(self, stage: int, steps: int) -> None:
        raise AssertionError(f"task {stage} is trained")
