"""A progress that ends training after so many reports, for tests of what is saved and how a run continues."""

from functools import partial

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


class NoTraining(TerminalProgress):
    """A progress that fails as soon as a task begins."""

    def __init__(self) -> None:
        super().__init__(make_console(quiet=True), 1)

    def begin_task(self, stage: int, steps: int) -> None:
        raise AssertionError(f"task {stage} is trained")
