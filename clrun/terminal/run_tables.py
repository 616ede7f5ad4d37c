"""The tables of a finished run on the terminal, read from its CSV files."""

import math
from collections.abc import Collection, Iterator
from pathlib import Path

import pandas as pd
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from clrun.results import collection
from clrun.results.columns import WARNING_SEPARATOR
from clrun.results.metrics import gap_closed
from clrun.results.outcome import RunStatus
from clrun.results.reading import TASKS, read_table, task_names
from clrun.results.run_files import read_summary
from clrun.results.tables import is_missing
from clrun.results.thinning import remark, shown_tasks
from clrun.system.text import format_cell
from clrun.terminal.console import percent, print_line, warn
from clrun.terminal.fitting import Cells, Column, print_table

HEADER_WIDTH = 14  # characters of a terminal; longer class names are left out of the header of a column


def show(console: Console, directory: Path, outputs: Path, chance: float | None, knobs: Collection[str] = ()) -> None:
    """Print a finished run: heading, warnings, accuracy matrix, forgetting table, references, costs, and its folder.

    `chance` is the accuracy of guessing, a fraction; `knobs` are the keys of the strategy to show in the heading.
    Raise UnreadableFile, before anything is printed, where a file of the run or outputs/results.csv is damaged.
    """
    summary, names = read_summary(directory / "summary.csv").iloc[0], task_names(directory)
    matrix, forgetting = read_table(directory / "accuracy_matrix.csv"), read_table(directory / "forgetting.csv")
    print_line(console, heading(summary, knobs), "bold")
    for warning in warnings_of(summary):
        warn(console, warning)
    print_table(console, matrix_table(matrix, names))
    print_table(console, forgetting_table(forgetting, names))
    print_line(console, scores(summary, chance), "bold")
    for line in reference_lines(summary, outputs):
        print_line(console, line)
    print_line(console, costs(summary), "dim")
    print_line(console, f"files: {directory}", "dim")


def warnings_of(summary: pd.Series) -> list[str]:
    """Return the run's warnings, preceded by one that it has diverged, unless a warning states that already."""
    warnings = [] if pd.isna(summary["warnings"]) else str(summary["warnings"]).split(WARNING_SEPARATOR)
    if summary["status"] != RunStatus.DIVERGED or any("diverged" in warning for warning in warnings):
        return warnings
    where = "" if pd.isna(summary["diverged_at"]) else f" at {summary['diverged_at']}"
    return [f"this run diverged{where}: its loss or its parameters are no longer finite", *warnings]


def heading(summary: pd.Series, knobs: Collection[str]) -> str:
    """Return 'ewc lambda=400 · digits, classes, 5 tasks, scenario task · mlp · seed 0 · cpu (...)', with 'mlp on
    features of resnet18' in place of 'mlp' where there is a frozen network."""
    shown = [f"{key}={format_cell(summary[key])}" for key in knobs if key in summary and not pd.isna(summary[key])]
    tasks = f"{summary['tasks']} task{'s' if summary['tasks'] != 1 else ''}"
    if not pd.isna(summary.get("first_tasks")):
        tasks = f"the first {format_cell(summary['first_tasks'])} of {tasks}"
    stream = f"{summary['dataset']}, {summary['split']}, {tasks}, scenario {summary['scenario']}"
    method = " ".join([str(summary["strategy"]), *shown])
    frozen = [summary.get(f"features.{key}") for key in ("arch", "target")]
    named = [f" on features of {name}" for name in frozen if not pd.isna(name)]
    network = f"{summary['model']}{named[0] if named else ''}"
    return " · ".join([method, stream, network, f"seed {summary['seed']}", f"{summary['device']}"])


def matrix_table(matrix: pd.DataFrame, names: dict[int, str]) -> Cells:
    """Return the accuracy matrix in percent: a column for each task, the average over tasks and, where it is another
    number, the accuracy over all samples."""
    accuracies = matrix.filter(regex=TASKS)
    count, ends = accuracies.shape[1], ends_of(matrix)
    tasks = shown_tasks(count)
    rows: list[list[str | Text]] = []
    start = rows_before_start(matrix)
    for after in [k for k in range(start, count + 1) if k in (0, start, *tasks)]:
        row = accuracies.iloc[after]
        cells = [Text(percent(row.iloc[task - 1]), emphasis(after, task)) for task in tasks]
        name = "untrained" if after == 0 else "at start" if after == start else f"task {after}"
        rows.append([name, *cells, *(percent(matrix[end].iloc[after]) for end in ends)])
    columns = [Column("after", text=True), *(Column(header(task, names)) for task in tasks), *map(Column, ends)]
    title = "accuracy in percent"
    if len(ends) > 1:
        title += " (average: over tasks, overall: over all test samples)"
    title += said_in(count, "accuracy_matrix.csv")
    return Cells(title, columns, rows, labels=1, ends=len(ends))


def said_in(tasks: int, file: str) -> str:
    """Return ' (12 of 800 tasks; FILE has all)', or '' where all tasks are shown."""
    return f" ({remark(tasks)}; {file} has all)" if remark(tasks) else ""


def ends_of(matrix: pd.DataFrame) -> list[str]:
    """Return which averages of an accuracy matrix are shown: the overall accuracy only where it is printed otherwise
    than the mean over the tasks."""
    if "overall" not in matrix:  # of an earlier version
        return ["average"]
    pairs = zip(matrix["average"], matrix["overall"], strict=True)
    return ["average", "overall"] if any(percent(mean) != percent(overall) for mean, overall in pairs) else ["average"]


def rows_before_start(matrix: pd.DataFrame) -> int:
    """Return how many rows lie before the beginning of a run: those of the tasks that an earlier run has learnt, whose
    cells are empty; 0 for a run that begins untrained, or was not measured at all."""
    measured = matrix.filter(regex=TASKS).notna().any(axis=1).to_numpy()
    return int(measured.argmax())


def header(task: int, names: dict[int, str]) -> str:
    """Return the header of a task's column: 'task 2', and below it the names of its classes where they fit."""
    name = names.get(task, "")
    return f"task {task}\n{name}" if 0 < cell_len(name) <= HEADER_WIDTH else f"task {task}"


def emphasis(after: int, task: int) -> str:
    """Return the style of a cell: bold for the task that was just learnt, dim for one that is not learnt yet."""
    return "bold" if after == task else "dim" if after < task else ""


def forgetting_table(forgetting: pd.DataFrame, names: dict[int, str]) -> Cells:
    """Return forgetting.csv in percent: one row per task, then the average."""
    columns = [Column("task", text=True)]
    for column in forgetting.columns[1:]:
        words = column.removeprefix("accuracy_").removesuffix("_accuracy").split("_")
        columns.append(Column("\n".join(words)))
    rows, tasks = [], len(forgetting) - 1
    shown = {*shown_tasks(tasks), len(forgetting)}  # the last row is the average
    for number, row in enumerate(forgetting.itertuples(index=False), start=1):
        if number not in shown:
            continue
        label = f"{row[0]} ({names[number]})" if number in names else str(row[0])
        rows.append([label, *(percent(value) for value in row[1:])])
    styles = [*[""] * (len(rows) - 1), "bold"]
    title = "forgetting in percent" + said_in(tasks, "forgetting.csv")
    return Cells(title, columns, rows, labels=1, styles=styles)


def scores(summary: pd.Series, chance: float | None) -> str:
    """Return average, overall, task-aware and online accuracy, forgetting, stability gap and chance in a line, without
    what was not measured.

    Accuracies over all samples are left out where they are those over the tasks in print.
    """
    values = {
        "average accuracy": percent(summary["average_accuracy"], " %"),
        "overall accuracy": percent(overall_if_other(summary, "accuracy"), " %"),
        "overall incremental accuracy": percent(overall_if_other(summary, "incremental_accuracy"), " %"),
        "accuracy with the task given": percent(float(summary.get("task_aware_accuracy", math.nan)), " %"),
        "online accuracy": percent(float(summary.get("online_accuracy", math.nan)), " %"),
        "forgetting": percent(summary["forgetting"], " points"),
        "stability gap": percent(summary["stability_gap"], " points"),
        "chance": "" if chance is None else percent(chance, " %"),
    }
    return "   ".join(f"{name} {value}" for name, value in values.items() if value)


def overall_if_other(summary: pd.Series, metric: str) -> float:
    """Return `overall_<metric>`, over all test samples; nan where it is printed like `average_<metric>`, the mean over
    the tasks, and of a run whose folder does not tell it."""
    overall = float(summary.get(f"overall_{metric}", math.nan))
    return math.nan if percent(overall) == percent(summary[f"average_{metric}"]) else overall


def reference_lines(summary: pd.Series, outputs: Path) -> Iterator[str]:
    """Yield lines on joint and finetune with the same setup and seed, where they have been run, and on the share of
    the gap between them that is closed."""
    setup, seed = summary.get("setup"), str(summary["seed"])
    setup = str(summary["stream"] if is_missing(setup) else setup)  # earlier versions wrote it there
    joint, finetune = (collection.first_done(outputs, name, setup, seed) for name in ("joint", "finetune"))
    for name, row in (("joint", joint), ("finetune", finetune)):
        if row is not None and name != summary["strategy"]:
            forgetting = percent(row["forgetting"], " points")
            yield f"{name} {percent(row['average_accuracy'], ' %')}" + (
                f", forgetting {forgetting}" if forgetting else ""
            )
    if joint is not None and finetune is not None and summary["strategy"] not in ("joint", "finetune"):
        lower = finetune["average_accuracy"]
        share = gap_closed(summary["average_accuracy"], lower, gap=joint["average_accuracy"] - lower)
        if not pd.isna(share):
            yield f"{100 * share:.0f} % of the gap between finetune and joint closed"


def costs(summary: pd.Series) -> str:
    """Return a line with the seconds of training, consolidation and evaluation, the size of the strategy's state, the
    energy, and carbon and money, where they are known."""
    units = {
        "training": ("train_seconds", "s"),
        "consolidation": ("consolidate_seconds", "s"),
        "evaluation": ("eval_seconds", "s"),
        "strategy state": ("state_mb", "MB"),
        "energy": ("energy_wh", "Wh"),
        "carbon": ("carbon_g", "g"),
        "money": ("money", ""),
    }
    amounts = [
        f"{name} {amount_text(summary[key])} {unit}".rstrip()
        for name, (key, unit) in units.items()
        if not pd.isna(summary[key])
    ]
    return "   ".join(["costs:", *amounts])


def amount_text(value: float) -> str:
    """Return an amount with two decimals, or with three digits if it is below 0.1."""
    return f"{value:.2f}" if value == 0 or abs(value) >= 0.1 else f"{value:.3g}"
