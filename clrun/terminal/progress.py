"""How a sweep goes: on a terminal a line for each worker below the finished runs, in a pipe plain lines."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter
from types import TracebackType
from typing import Protocol, Self

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from clrun.terminal.console import percent, say

REDRAWS = 4  # a second


WIDTHS = {"task": 8, "step": 13, "samples/s": 9, "left": 7}  # characters; a name gives way to them


@dataclass
class Line:
    """What a worker is at."""

    name: str
    tasks: int
    samples: int  # a step, of all runs of the stack
    began: float = field(default_factory=lambda: perf_counter())
    stage: int = 0  # from 1; 0 before any training
    step: int = 0  # of the task
    steps: int = 0
    task_began: float = 0.0

    def begin_task(self, stage: int, steps: int) -> None:
        """Show a task of this many optimiser steps."""
        self.stage, self.steps, self.step, self.task_began = stage, steps, 0, perf_counter()

    def advance(self, steps: int) -> None:
        """Count this many more steps."""
        self.step += steps

    def speed(self) -> float | None:
        """Samples per second since the task began; None before the first step."""
        seconds = perf_counter() - self.task_began
        return self.step * self.samples / seconds if self.step and seconds > 0 else None

    def left(self) -> float | None:
        """Seconds, if the tasks to come are like those that were; None while there is nothing to judge by."""
        done = (self.stage - 1 + self.step / self.steps) / self.tasks if self.steps else 0
        return (perf_counter() - self.began) * (1 - done) / done if done > 0 else None

    def cells(self) -> list[str]:
        speed = self.speed()
        task = f"{self.stage}/{self.tasks}" if self.stage else "starting"
        step = f"{self.step}/{self.steps}" if self.steps else ""
        return [self.name, task, step, "" if speed is None else f"{speed:,.0f}", clock(self.left())]


def clock(seconds: float | None) -> str:
    """'1:02:03' or '2:03'; '' for None."""
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class View:
    """with View(console, runs=40) as view: view.begin("1", Line(...)); view.advance("1", 9); view.ended("1", [...])."""

    def __init__(self, console: Console, runs: int) -> None:
        self.console, self.runs, self.done, self.began = console, runs, 0, perf_counter()
        self.lines: dict[str, Line] = {}
        self.live = Live(get_renderable=self.table, console=console, refresh_per_second=REDRAWS, transient=True)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def begin(self, worker: str, line: Line) -> None:
        self.lines[worker] = line

    def begin_task(self, worker: str, stage: int, steps: int) -> None:
        """Show a task of this many optimiser steps in a worker's line."""
        self.lines[worker].begin_task(stage, steps)

    def advance(self, worker: str, steps: int) -> None:
        """Show this many more steps in a worker's line."""
        self.lines[worker].advance(steps)

    def ended(self, worker: str, runs: Sequence[str]) -> None:
        """A line for each run that a worker has ended: 'ewc/...: done'."""
        self.lines.pop(worker)
        for told in runs:
            self.done += 1
            say(self.console, f"[{self.done}/{self.runs}] {told}")
        if not self.console.is_terminal:
            self.console.file.flush()

    def table(self) -> Table:
        left = (perf_counter() - self.began) / self.done * (self.runs - self.done) if self.done else None
        footer = [f"{self.done} of {self.runs} runs done", "", "", "", clock(left)]
        table = Table(box=SIMPLE_HEAD, show_footer=True, pad_edge=False)
        room = self.console.width - sum(WIDTHS.values()) - 2 * (1 + len(WIDTHS))
        table.add_column("worker", footer[0], no_wrap=True, width=max(20, room))
        for (name, width), foot in zip(WIDTHS.items(), footer[1:], strict=True):
            table.add_column(name, foot, justify="right", no_wrap=True, width=width)
        for worker, line in sorted(self.lines.items()):
            first, *rest = line.cells()
            table.add_row(Text(f"{worker} {first}", overflow="ellipsis"), *rest)
        return table


SHOWN_A_LINE = 12  # with more accuracies than this a progress line tells their mean


class Progress(Protocol):
    """What training reports its progress to: the terminal, a pipe to another process, or a test.

    with progress:
        progress.begin_task(stage=1, steps=1000)  # stages count from 1
        progress.advance(50)                      # at intervals, not after every step
        progress.end_task(stage=1, accuracies=[.981])
    """

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def begin_task(self, stage: int, steps: int) -> None:
        """A task of this many optimiser steps begins."""

    def advance(self, steps: int) -> None:
        """This many more steps are done."""

    def end_task(self, stage: int, accuracies: Sequence[float]) -> None:
        """A task has been learnt and evaluated; `accuracies` are fractions, of the tasks learnt so far. Where there are
        more of them than `stage`, these tasks have been learnt together."""


class TerminalProgress:
    """A `Progress` that draws a bar on a terminal and prints a line per task; in a pipe it prints the lines alone.

    `tasks` is the number of tasks of the stream; `name`, of the run, begins every line.
    """

    def __init__(self, console: Console, tasks: int, name: str = "") -> None:
        self.console = console
        self.tasks = tasks
        self.name = f"{name}: " if name else ""
        self.started = time.perf_counter()
        self.bar = bar_on(console)
        self.line = self.bar.add_task("", total=None, visible=False)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self.bar.stop()

    def begin_task(self, stage: int, steps: int) -> None:
        """Show an empty bar for a task of this many optimiser steps."""
        self.started = time.perf_counter()
        self.bar.reset(self.line, total=steps, description=f"{self.name}task {stage}/{self.tasks}", visible=True)

    def advance(self, steps: int) -> None:
        """Move the bar by this many steps."""
        self.bar.advance(self.line, steps)

    def end_task(self, stage: int, accuracies: Sequence[float]) -> None:
        """Print how long the task took and the accuracies of the tasks learnt so far."""
        seconds = time.perf_counter() - self.started
        told = brief(accuracies)
        learnt = f"task {stage}/{self.tasks}" if len(accuracies) <= stage else f"{len(accuracies)} tasks together"
        line = f"{self.name}{learnt} learnt in {seconds:.1f} s"
        say(self.console, line + (f": {told} %" if told else ""))


def bar_on(console: Console) -> Bar:
    """A progress bar that vanishes at the end and redraws four times a second."""
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps")]
    return Bar(*columns, TimeRemainingColumn(), console=console, transient=True, refresh_per_second=4)


def brief(accuracies: Sequence[float]) -> str:
    """'98.1 99.0'; the mean alone where there are many; '-' for one that was not measured."""
    if len(accuracies) > SHOWN_A_LINE:
        return f"mean {percent(sum(accuracies) / len(accuracies))}"
    return " ".join(percent(accuracy) or "-" for accuracy in accuracies)
