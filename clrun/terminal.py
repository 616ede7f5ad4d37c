"""What a run says on the terminal. Tables are read from the CSVs of the run, so that a finished run can be shown again.

On a terminal: colours and a progress bar. In a pipe: plain lines without escape codes, 240 characters wide.
"""

import math
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from clrun.results import BETWEEN_WARNINGS, read_summary

PIPE_WIDTH = 240
HEADER_WIDTH = 14  # class names longer than this stay out of a column's header
SHOWN_A_LINE = 12  # with more accuracies than this a progress line tells their mean


def make_console(stderr: bool = False, quiet: bool = False) -> Console:
    """A console as wide as the terminal, or PIPE_WIDTH characters where there is none; a quiet one says nothing."""
    console = Console(stderr=stderr, quiet=quiet, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    return console


# Numbers


def percent(fraction: float, unit: str = "") -> str:
    """0.9812 -> '98.1'; nan -> ''."""
    return "" if pd.isna(fraction) else f"{round(100 * fraction, 1) + 0.0:.1f}{unit}"


def with_deviation(values: pd.Series) -> str:
    """'98.1 ± 0.4' in percent: mean and standard deviation (n-1) of the values that are there."""
    spread = percent(values.std())
    return f"{percent(values.mean())} ± {spread}" if spread else percent(values.mean())


# One run


def show(console: Console, directory: Path, outputs: Path, chance: float | None, knobs: Collection[str] = ()) -> None:
    """Print a finished run: heading, warnings, accuracy matrix, forgetting table, references, costs, where it lies.

    `chance` is the accuracy of guessing, a fraction; `knobs` are the keys of the strategy's own knobs, for the heading.
    Raises UsageError where summary.csv or outputs/results.csv is cut short.
    """
    summary = read_summary(directory / "summary.csv").iloc[0]
    names = task_names(directory)
    say(console, heading(summary, knobs), "bold")
    for warning in warnings_of(summary):
        warn(console, warning)
    for table in matrix_tables(console, pd.read_csv(directory / "accuracy_matrix.csv"), names):
        console.print(table)
    console.print(forgetting_table(pd.read_csv(directory / "forgetting.csv"), names))
    say(console, scores(summary, chance), "bold")
    for line in reference_lines(summary, outputs):
        say(console, line)
    say(console, costs(summary), "dim")
    say(console, f"files: {directory}", "dim")


def say(console: Console, line: str, style: str = "") -> None:
    """One line, never broken (a path stays one), nothing in it taken for markup."""
    console.print(Text(line, style), soft_wrap=True)


def warn(console: Console, text: str, style: str = "bold yellow") -> None:
    """A warning that cannot be overlooked: a panel on a terminal, a line that begins with WARNING in a pipe."""
    if console.is_terminal:
        console.print(Panel(Text(text), title="WARNING", title_align="left", border_style=style, style=style))
    else:
        say(console, f"WARNING: {text}")


def warnings_of(summary: pd.Series) -> list[str]:
    """The run's warnings; that it diverged comes first, unless one of them says so."""
    said = [] if pd.isna(summary["warnings"]) else str(summary["warnings"]).split(BETWEEN_WARNINGS)
    if summary["status"] != "diverged" or any("diverged" in warning for warning in said):
        return said
    where = "" if pd.isna(summary["diverged_at"]) else f" at {summary['diverged_at']}"
    return [f"this run diverged{where}: its loss or its parameters are no longer finite", *said]


def heading(summary: pd.Series, knobs: Collection[str]) -> str:
    """'ewc lambda=400 · digits, classes, 5 tasks, scenario task · mlp · seed 0 · cpu (...)'."""
    told = [f"{key}={as_typed(summary[key])}" for key in knobs if key in summary and not pd.isna(summary[key])]
    tasks = f"{summary['tasks']} task{'s' if summary['tasks'] != 1 else ''}"
    if not pd.isna(summary.get("first_tasks")):
        tasks = f"the first {summary['first_tasks']:g} of {tasks}"
    stream = f"{summary['dataset']}, {summary['split']}, {tasks}, scenario {summary['scenario']}"
    method = " ".join([str(summary["strategy"]), *told])
    return " · ".join([method, stream, str(summary["model"]), f"seed {summary['seed']}", f"{summary['device']}"])


def as_typed(value: object) -> str:
    """400.0 as 400, True as true."""
    if isinstance(value, bool | np.bool_):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def task_names(directory: Path) -> dict[int, str]:
    """'cat, dog' or '30°' by task from tasks.csv; empty where tasks differ neither by classes nor by angles."""
    path = directory / "tasks.csv"
    if not path.is_file():
        return {}
    table = pd.read_csv(path, dtype={"class": str}, keep_default_na=False)
    if "angle" in table:
        return {int(task): f"{angle:.0f}°" for task, angle in zip(table["task"], table["angle"], strict=True)}
    return {int(task): ", ".join(names) for task, names in table.groupby("task")["class"]}


def matrix_tables(console: Console, matrix: pd.DataFrame, names: dict[int, str]) -> Iterator[Table]:
    """The accuracy matrix in percent, in as many tables, one below the other, as the width asks for."""
    tasks = list(range(1, matrix.shape[1] - 1))
    while tasks:
        count = len(tasks)
        while count > 1 and too_wide(console, matrix_table(matrix, tasks[:count], names)):
            count -= 1
        yield matrix_table(matrix, tasks[:count], names)
        tasks = tasks[count:]


def too_wide(console: Console, table: Table) -> bool:
    """Whether the table would have to be cut to fit."""
    unlimited = console.options.update(width=10**6)
    return Measurement.get(console, unlimited, table).maximum > console.width


def titled(title: str) -> Table:
    """An empty table, as narrow as it can be: eight columns of numbers must fit into 80 characters."""
    layout = {"box": box.SIMPLE_HEAD, "collapse_padding": True, "pad_edge": False}
    return Table(title=title, title_justify="left", title_style="bold", **layout)


def matrix_table(matrix: pd.DataFrame, tasks: Sequence[int], names: dict[int, str]) -> Table:
    """Some columns of the accuracy matrix, and the average."""
    table = titled("accuracy in percent")
    table.add_column("after")
    for task in tasks:
        table.add_column(header(task, names), justify="right", no_wrap=True)
    table.add_column("average", justify="right", no_wrap=True)
    for after, row in enumerate(matrix.itertuples(index=False)):
        cells = [Text(percent(row[task]), emphasis(after, task)) for task in tasks]
        table.add_row("untrained" if after == 0 else f"task {after}", *cells, Text(percent(row[-1])))
    return table


def header(task: int, names: dict[int, str]) -> Text:
    """'task 2', and below it its classes where they fit."""
    name = names.get(task, "")
    return Text(f"task {task}\n{name}" if 0 < len(name) <= HEADER_WIDTH else f"task {task}")


def emphasis(after: int, task: int) -> str:
    """Bold for the task just learnt, dim for one not learnt yet."""
    return "bold" if after == task else "dim" if after < task else ""


def forgetting_table(forgetting: pd.DataFrame, names: dict[int, str]) -> Table:
    """forgetting.csv in percent: one row a task, then the average."""
    table = titled("forgetting in percent")
    table.add_column("task", overflow="fold")
    for column in forgetting.columns[1:]:
        words = column.removeprefix("accuracy_").removesuffix("_accuracy").split("_")
        table.add_column("\n".join(words), justify="right", no_wrap=True)
    for number, row in enumerate(forgetting.itertuples(index=False), start=1):
        last = number == len(forgetting)
        label = f"{row[0]} ({names[number]})" if number in names else str(row[0])
        table.add_row(Text(label), *[percent(value) for value in row[1:]], style="bold" if last else "")
    return table


def scores(summary: pd.Series, chance: float | None) -> str:
    """Average accuracy, forgetting and chance in a line; what was not measured is left out."""
    told = {
        "average accuracy": percent(summary["average_accuracy"], " %"),
        "forgetting": percent(summary["forgetting"], " points"),
        "stability gap": percent(summary["stability_gap"], " points"),
        "chance": "" if chance is None else percent(chance, " %"),
    }
    return "   ".join(f"{name} {value}" for name, value in told.items() if value)


def reference_lines(summary: pd.Series, outputs: Path) -> Iterator[str]:
    """Joint and finetune on the same stream and seed, where they have been run, and the share of the gap closed."""
    found = {name: reference(summary, outputs, name) for name in ("joint", "finetune")}
    for name, row in found.items():
        if row is not None and name != summary["strategy"]:
            forgot = percent(row["forgetting"], " points")
            yield f"{name} {percent(row['average_accuracy'], ' %')}" + (f", forgetting {forgot}" if forgot else "")
    if summary["strategy"] not in found and None not in [None if row is None else "" for row in found.values()]:
        closed = gap_closed(*[row["average_accuracy"] for row in (summary, found["joint"], found["finetune"])])
        if closed is not None:
            yield f"{100 * closed:.0f} % of the gap between finetune and joint closed"


def reference(summary: pd.Series, outputs: Path, strategy: str) -> pd.Series | None:
    """The first done run of `strategy` with the same stream and seed in results.csv; None without one."""
    if not (outputs / "results.csv").is_file():
        return None
    rows = read_summary(outputs / "results.csv")
    same = (rows["stream"] == summary["stream"]) & (rows["seed"] == summary["seed"])
    rows = rows[same & (rows["strategy"] == strategy) & (rows["status"] == "done")]
    return None if rows.empty else rows.iloc[0]


def gap_closed(accuracy: float, joint: float, finetune: float) -> float | None:
    """(accuracy - finetune) / (joint - finetune); None where joint is not the better one or something is missing."""
    share = (accuracy - finetune) / (joint - finetune) if joint > finetune else math.nan
    return None if pd.isna(share) else share


def costs(summary: pd.Series) -> str:
    """Seconds of training, consolidation and evaluation, the strategy's state, energy and what it comes to, where
    known."""
    units = {
        "training": ("train_seconds", "s"),
        "consolidation": ("consolidate_seconds", "s"),
        "evaluation": ("eval_seconds", "s"),
        "strategy state": ("state_mb", "MB"),
        "energy": ("energy_wh", "Wh"),
        "carbon": ("carbon_g", "g"),
        "money": ("money", ""),
    }
    known = {name: unit for name, unit in units.items() if not pd.isna(summary[unit[0]])}
    told = [f"{name} {brief_number(summary[key])} {unit}".rstrip() for name, (key, unit) in known.items()]
    return "   ".join(["costs:", *told])


def brief_number(value: float) -> str:
    """Two decimals; three digits of what is smaller than that."""
    return f"{value:.2f}" if value == 0 or abs(value) >= 0.1 else f"{value:.3g}"


# Many runs


def runs_table(console: Console, runs: pd.DataFrame, keys: Sequence[str]) -> None:
    """Print one row a run: keys, average accuracy and forgetting in percent, status.

    runs: rows with these columns; a key is shown as it stands, nan as nothing.
    """
    table = titled("accuracy and forgetting in percent")
    for name in [*keys, "average_accuracy", "forgetting", "status"]:
        plain = name in keys or name == "status"
        table.add_column(name, justify="left" if plain else "right", overflow="fold")
    for _, row in runs.iterrows():
        measured = [percent(row[name]) for name in ("average_accuracy", "forgetting")]
        table.add_row(*(Text(plainly(row[key])) for key in keys), *measured, ended(row))
    console.print(table)


def ended(row: pd.Series) -> str:
    """Such as "diverged at task 2 step 31"."""
    return f"diverged at {row['diverged_at']}" if row["status"] == "diverged" else str(row["status"])


def plainly(value: object) -> str:
    return "" if pd.isna(value) else str(value)


def sweep_table(console: Console, summaries: pd.DataFrame, varying: Sequence[str]) -> None:
    """Print one row for each combination of the varying keys other than the seed: runs, and mean ± standard deviation.

    summaries: rows with those columns, `status` and the metrics. Diverged runs have no final accuracy: they are counted
    apart.
    """
    keys = [key for key in varying if key != "seed"] or ["strategy"]
    table = titled("mean ± standard deviation in percent")
    for name in [*keys, "runs", "diverged", "average accuracy", "forgetting", "learning accuracy"]:
        table.add_column(name.replace(" ", "\n"), justify="left" if name in keys else "right", overflow="fold")
    for values, rows in summaries.groupby(keys, sort=False, dropna=False):
        diverged = (rows["status"] == "diverged").sum()
        means = [with_deviation(rows[name]) for name in ("average_accuracy", "forgetting", "learning_accuracy")]
        table.add_row(*(Text(plainly(v)) for v in values), str(len(rows)), str(diverged) if diverged else "", *means)
    console.print(table)


def best_by_validation(console: Console, summaries: pd.DataFrame, varying: Sequence[str]) -> None:
    """Where several settings of a strategy were validated on one stream, say which one did best.

    Seeds are averaged over; a setting of which a run diverged is none to choose. Test accuracy chooses nothing.
    """
    keys = [key for key in varying if key != "seed"]
    for _, rows in summaries.groupby(["stream", "strategy"], sort=False):
        whole = rows.groupby(keys, sort=False, dropna=False).filter(lambda group: (group["status"] == "done").all())
        settings = whole.groupby(keys, sort=False, dropna=False)["validation_accuracy"].agg(["mean", "size"]).dropna()
        if len(settings) < 2:
            continue
        best = settings["mean"].idxmax()
        values = dict(zip(keys, best if isinstance(best, tuple) else (best,), strict=True))
        strategy, n = values["strategy"], int(settings.loc[best, "size"])
        told = " ".join(f"{key}={plainly(v)}" for key, v in values.items() if key != "strategy" and plainly(v))
        accuracy = percent(settings.loc[best, "mean"], " %")
        say(console, f"highest validation accuracy of {strategy}: {told} ({accuracy}, n = {n})")


# Progress


class Progress:
    """Says how training goes: a bar on a terminal and one line a task; in a pipe the lines alone. name: of the run.

    with Progress(console, tasks=5, name="ewc seed=0") as progress:
        progress.task(stage=1, steps=1000)        # stages count from 1
        progress.advance(50)                      # every now and then, not every step
        progress.end_task(stage=1, accuracies=[.981])
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

    def task(self, stage: int, steps: int) -> None:
        """A task of that many optimiser steps begins."""
        self.started = time.perf_counter()
        self.bar.reset(self.line, total=steps, description=f"{self.name}task {stage}/{self.tasks}", visible=True)

    def advance(self, steps: int) -> None:
        """That many more steps are done."""
        self.bar.advance(self.line, steps)

    def end_task(self, stage: int, accuracies: Sequence[float]) -> None:
        """A task has been learnt and evaluated: `accuracies`, fractions, of the tasks learnt so far. Where these are
        more than `stage`, they have been learnt together."""
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
