"""Progress on the terminal: of the training of a run, and of a sweep.

A sweep shows a line for each worker, below a line for each finished run; in a pipe it prints the latter alone.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from types import TracebackType
from typing import Protocol, Self

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from clrun.terminal.console import percent, print_line

REDRAWS_PER_SECOND = 4

# Characters of the columns of the live table. The column of names gets the remaining width, but at least NAME_WIDTH;
# where that is too much, columns are left out in the order of LEAST.
WIDTHS = {"task": 8, "step": 13, "samples/s": 9, "left": 7}
NAME_WIDTH = 20
LEAST = ("samples/s", "step", "left")

# Characters beside a bar: of the steps, such as "60000/77000 steps", of the remaining time, and of the gaps.
FIGURES = 28
BAR, BAR_LEAST = 40, 10  # characters of a bar at most, and at least: where there is less room, there is none

LISTED_ACCURACIES = 12  # a line lists up to this many accuracies, and prints the mean of more


# ---------------------------------------------------------------- a sweep


@dataclass
class Line:
    """The line of a worker in the live table: which runs it is training, and how far it is."""

    name: str  # of the run, or of the stack of runs
    tasks: int  # in the stream
    samples: int  # per step, of all runs of the stack
    now: Callable[[], float] = perf_counter  # returns seconds
    began: float = field(init=False)  # seconds of `now`, as `task_began`
    stage: int = 0  # the number of the task that is being learnt, from 1; 0 before any training
    step: int = 0  # steps of this task that are done
    steps: int = 0  # of this task
    task_began: float = 0.0

    def __post_init__(self) -> None:
        self.began = self.now()

    def begin_task(self, stage: int, steps: int) -> None:
        """Show a task of this many optimizer steps."""
        self.stage, self.steps, self.step, self.task_began = stage, steps, 0, self.now()

    def advance(self, steps: int) -> None:
        """Count this many more steps."""
        self.step += steps

    def speed(self) -> float | None:
        """Return samples per second since the task began; None before the first step."""
        seconds = self.now() - self.task_began
        return self.step * self.samples / seconds if self.step and seconds > 0 else None

    def left(self) -> float | None:
        """Return the remaining seconds, if the remaining tasks take as long as the tasks so far; None before the first
        step."""
        done = (self.stage - 1 + self.step / self.steps) / self.tasks if self.steps else 0
        return (self.now() - self.began) * (1 - done) / done if done > 0 else None

    def cells(self) -> list[str]:
        """Return the texts of the columns."""
        speed = self.speed()
        task = f"{self.stage}/{self.tasks}" if self.stage else "starting"
        step = f"{self.step}/{self.steps}" if self.steps else ""
        return [self.name, task, step, "" if speed is None else f"{speed:,.0f}", clock(self.left())]


def clock(seconds: float | None) -> str:
    """Return a duration as '1:02:03' or '2:03'; '' for None."""
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class View:
    """The live view of a sweep: a table with the line of each worker, which is redrawn while the block runs.

    with View(console, runs=40) as view:
        view.begin("1", Line(...))          # worker 1 begins a stack of runs
        view.begin_task("1", stage=1, steps=100)
        view.advance("1", steps=50)
        view.ended("1", ["ewc/...: done"])  # a line for each run of the stack
    """

    def __init__(self, console: Console, runs: int) -> None:
        self.console, self.runs, self.done, self.began = console, runs, 0, perf_counter()
        self.lines: dict[str, Line] = {}
        self.live = Live(
            get_renderable=self.table, console=console, refresh_per_second=REDRAWS_PER_SECOND, transient=True
        )

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
        """Show a worker that begins to train a stack."""
        self.lines[worker] = line

    def begin_task(self, worker: str, stage: int, steps: int) -> None:
        """Show a task of this many optimizer steps in a worker's line."""
        self.lines[worker].begin_task(stage, steps)

    def advance(self, worker: str, steps: int) -> None:
        """Show this many more steps in a worker's line."""
        self.lines[worker].advance(steps)

    def say(self, line: str) -> None:
        """Print a line above the table."""
        print_line(self.console, line)
        if not self.console.is_terminal:
            self.console.file.flush()

    def ended(self, worker: str, runs: Sequence[str]) -> None:
        """Print a line for each run that a worker has ended, such as 'ewc/...: done', and remove the worker's line."""
        self.lines.pop(worker)
        for line in runs:
            self.done += 1
            print_line(self.console, f"[{self.done}/{self.runs}] {line}")
        if not self.console.is_terminal:
            self.console.file.flush()

    def table(self) -> Table:
        """Return the live table. Its footer states how many runs are done and how long the others will take."""
        left = (perf_counter() - self.began) / self.done * (self.runs - self.done) if self.done else None
        table = Table(box=SIMPLE_HEAD, show_footer=True, pad_edge=False)
        widths = live_widths(self.console.width)
        rest_of_width = self.console.width - table_width(widths)
        footer = {"left": clock(left)}
        ended = f"{self.done} of {self.runs} runs done"
        table.add_column("worker", ended, no_wrap=True, width=max(NAME_WIDTH, rest_of_width))
        for name, width in widths.items():
            table.add_column(name, footer.get(name, ""), justify="right", no_wrap=True, width=width)
        for worker, line in sorted(self.lines.items()):
            first, *rest = line.cells()
            figures = [cell for name, cell in zip(WIDTHS, rest, strict=True) if name in widths]
            table.add_row(Text(f"{worker} {first}", overflow="ellipsis"), *figures)
        return table


def table_width(widths: dict[str, int]) -> int:
    """Return the characters that columns of the live table take, but for those of the first column's names."""
    return sum(widths.values()) + 2 * (1 + len(widths))


def live_widths(width: int) -> dict[str, int]:
    """Return those columns of the live table, with their widths, that fit into a terminal of this width."""
    widths = dict(WIDTHS)
    for name in LEAST:
        if NAME_WIDTH + table_width(widths) > width:
            del widths[name]
    return widths


# ---------------------------------------------------------------- a run


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
        """A task of this many optimizer steps begins."""

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
        self.bar = make_bar(console, cell_len(self.described(tasks)))
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
        """Show an empty bar for a task of this many optimizer steps."""
        self.started = time.perf_counter()
        self.bar.reset(self.line, total=steps, description=self.described(stage), visible=True)

    def described(self, stage: int) -> str:
        """Return 'ewc seed=0: task 1/5', in which the name gives way where the terminal is narrow."""
        task, name = f"task {stage}/{self.tasks}", Text(self.name)
        name.truncate(max(0, self.console.width - FIGURES - len(task)), overflow="ellipsis")
        return f"{name} {task}" if str(name).endswith("…") else f"{name}{task}"

    def advance(self, steps: int) -> None:
        """Move the bar by this many steps."""
        self.bar.advance(self.line, steps)

    def end_task(self, stage: int, accuracies: Sequence[float]) -> None:
        """Print how long the task took and the accuracies of the tasks learnt so far."""
        seconds = time.perf_counter() - self.started
        shown = accuracies_text(accuracies)
        learnt = f"task {stage}/{self.tasks}" if len(accuracies) <= stage else f"{len(accuracies)} tasks together"
        line = f"{self.name}{learnt} learnt in {seconds:.1f} s"
        print_line(self.console, line + (f": {shown} %" if shown else ""))


def make_bar(console: Console, described: int) -> Bar:
    """Return a progress bar that disappears at the end. described: characters of its description."""
    width = min(BAR, console.width - FIGURES - described - 1)
    bar: list[ProgressColumn] = [BarColumn(width)] if width >= BAR_LEAST else []
    return Bar(
        TextColumn("{task.description}", markup=False),
        *bar,
        MofNCompleteColumn(),
        TextColumn("steps"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        refresh_per_second=REDRAWS_PER_SECOND,
    )


def accuracies_text(accuracies: Sequence[float]) -> str:
    """Return accuracies in percent, such as '98.1 99.0', with '-' for one that was not measured; of more than
    LISTED_ACCURACIES the mean alone."""
    if len(accuracies) > LISTED_ACCURACIES:
        return f"mean {percent(sum(accuracies) / len(accuracies))}"
    return " ".join(percent(accuracy) or "-" for accuracy in accuracies)
