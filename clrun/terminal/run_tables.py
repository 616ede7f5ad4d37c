"""The tables of one run on the terminal, read from its CSV files."""

import math
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from clrun.results.columns import WARNING_SEPARATOR
from clrun.results.outcome import RunStatus
from clrun.results.run_files import read_summary
from clrun.system.text import format_value
from clrun.terminal.console import percent, say, titled, warn

HEADER_WIDTH = 14  # class names longer than this stay out of a column's header


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


def warnings_of(summary: pd.Series) -> list[str]:
    """The run's warnings; that it diverged comes first, unless one of them says so."""
    said = [] if pd.isna(summary["warnings"]) else str(summary["warnings"]).split(WARNING_SEPARATOR)
    if summary["status"] != RunStatus.DIVERGED or any("diverged" in warning for warning in said):
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
    return format_value(value)


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
    rows = rows[same & (rows["strategy"] == strategy) & (rows["status"] == RunStatus.DONE)]
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
