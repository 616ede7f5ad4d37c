"""The rows of a report as tables for readers: on the terminal and in Markdown; clrun/report/latex.py has LaTeX."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, log10

import numpy as np
import pandas as pd
from rich.console import Console

from clrun.report.intervals import Statistic
from clrun.report.rows import Row, heading
from clrun.report.runs import KEPT, MEASURES, REFERENCES
from clrun.results import columns
from clrun.results.outcome import RunStatus
from clrun.terminal.console import print_line, warn, with_deviation
from clrun.terminal.fitting import Cells, Column, print_table

# Measures that are fractions of samples, and are shown in percent; the costs are shown in their units.
SHARES = (
    *columns.SUMMARY_METRICS,
    *columns.OVERALL_METRICS,
    "validation_accuracy",
    "task_aware_accuracy",
    *columns.CONTINUAL_METRICS,
    *columns.ONLINE_MEANINGS,
    "gap_closed",
    "intransigence",
)
PERCENT = (*SHARES, "accuracy_kept")

# The measures that are shown beside the main one, and the costs.
BESIDE = (
    "average_accuracy",
    "overall_accuracy",
    "forgetting",
    "learning_accuracy",
    "validation_accuracy",
    "task_aware_accuracy",
    *columns.ONLINE_MEANINGS,
    "gap_closed",
    "intransigence",
    "own_metric",
)

# What is shown as well where the tasks differ in size: the two definitions of the average incremental accuracy.
INCREMENTAL = ("average_incremental_accuracy", "overall_incremental_accuracy")

COSTS = (
    "total_seconds",
    "wall_seconds",
    "cpu_seconds",
    "relative_seconds",
    "state_mb",
    "peak_memory_mb",
    "energy_wh",
    "carbon_g",
    "money",
    *KEPT,
)

# Fraction: the mean over the tasks and the accuracy over all samples differ where they are so far apart.
UNEQUAL = 0.005

# What stands in LaTeX for characters that mean something else there.
LATEX = str.maketrans(
    {character: "\\" + character for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
    | {"\N{MINUS SIGN}": "$-$", "<": "$<$", ">": "$>$"}
)

LISTED = 4  # labels in a remark

# What is measured against a reference.
REFERENCE_FOR = {
    "finetune": "accuracy_kept, relative_seconds and gap_closed",
    "joint": "gap_closed and intransigence",
}

DEVIATION_NOTE = "After ± stands the standard deviation over the seeds."


# ---------------------------------------------------------------- numbers


def number(measure: str, value: float) -> str:
    """Return a value in percent for fractions, with three significant digits for costs; '' for nan."""
    if np.isnan(value):
        return ""
    return f"{100 * value:.1f}" if measure in PERCENT else significant(scaled(measure, value))


def scaled(measure: str, value: float) -> float:
    """Return a cost in the unit in which it is shown: the accuracy kept per cost is shown in points of percent."""
    return 100 * value if measure in KEPT else value


def significant(value: float, like: float | None = None) -> str:
    """Return a value with as many decimals as give `like` (by default the value itself) three significant digits."""
    size = abs(value if like is None else like)
    if 0 < size < 1e-4:
        return f"{value:.2e}"
    return f"{value:.{max(0, 2 - floor(log10(size))) if size else 0}f}"


def statistic_text(measure: str, found: Statistic) -> str:
    """Return mean ± standard deviation, such as '98.1 ± 0.4'; the mean alone of a cost that does not vary."""
    if np.isnan(found.mean):
        return ""
    if np.isnan(found.sd) or (measure not in PERCENT and found.sd <= 1e-9 * abs(found.mean)):
        return number(measure, found.mean)
    if measure in PERCENT:
        return with_deviation(number(measure, found.mean), number(measure, found.sd))
    mean, sd = scaled(measure, found.mean), scaled(measure, found.sd)
    larger = max(abs(mean), sd)
    return with_deviation(significant(mean, larger), significant(sd, larger))


# ---------------------------------------------------------------- tables of text


def accuracies(rows: Sequence[Row], measure: str) -> pd.DataFrame:
    """Return the table of accuracies of one stream: the main measure in full, others as mean ± standard deviation."""
    beside = (*BESIDE, *INCREMENTAL) if differ_in_size(rows) else BESIDE
    return without_empty_columns([accuracy_cells(row, measure, beside) for row in rows])


def accuracy_cells(row: Row, measure: str, beside: Sequence[str]) -> dict[str, str]:
    """Return the texts of a row of that table by column. beside: the measures beside the main one."""
    main = row[measure]
    interval = "" if np.isnan(main.low) else f"[{number(measure, main.low)}, {number(measure, main.high)}]"
    counts = {"n": str(main.n), "diverged": str(row.diverged) if row.diverged else ""}
    full = {measure: number(measure, main.mean), "sd": number(measure, main.sd), "95 % interval": interval}
    others = {name: statistic_text(name, row[name]) for name in beside if name != measure}
    return labels_of(row) | counts | full | others


def costs(rows: Sequence[Row]) -> pd.DataFrame:
    """Return the table of the costs of one stream, and of the accuracy kept for them, as mean ± standard deviation."""
    lines = [labels_of(row) | {name: statistic_text(name, row[name]) for name in COSTS} for row in rows]
    return without_empty_columns(lines)


def labels_of(row: Row) -> dict[str, str]:
    """Return the cells that identify a row, by key."""
    return {key: row.text(key) for key in row.stream_keys}


def without_empty_columns(lines: Sequence[dict[str, str]]) -> pd.DataFrame:
    """Return lines of text as a table, without the columns that are empty."""
    table = pd.DataFrame(lines).fillna("")
    return table.loc[:, (table != "").any()]


def markdown(lines: pd.DataFrame) -> str:
    """Return a table of text in Markdown."""
    head = [[str(name) for name in lines], ["---"] * lines.shape[1]]
    body = [[cell.replace("|", "\\|") for cell in line] for line in lines.to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(line)} |" for line in head + body)


def in_latex(cell: str) -> str:
    """Return a text in which nothing is a command of LaTeX."""
    return cell.translate(LATEX)


# ---------------------------------------------------------------- the section of a stream


@dataclass(frozen=True)
class Section:
    """The part of a report on one stream."""

    title: str
    labels: int  # number of the first columns, which identify a row
    tables: Sequence[pd.DataFrame]  # of text
    notes: Sequence[str]  # how to read the tables
    remarks: Sequence[str]  # warnings about the rows

    def markdown(self) -> str:
        """Return the section in Markdown."""
        parts = [f"## {self.title}", *map(markdown, self.tables), *self.notes, *self.remarks]
        return "\n\n".join(parts)

    def print(self, console: Console) -> None:
        """Print the section; wide tables are split into several pieces below each other."""
        print_line(console, self.title, "bold")
        for lines in self.tables:
            print_table(console, terminal_table(lines, self.labels))
        for line in self.notes:
            print_line(console, line)
        for remark in self.remarks:
            warn(console, remark)


def section(rows: Sequence[Row], measure: str, references: dict[str, float], order: str = "settings") -> Section:
    """Return the section on the rows of one stream. references: accuracies of joint, finetune and chance; order: what
    the rows are sorted by."""
    accuracy_table, cost_table = accuracies(rows, measure), costs(rows)
    labels = sum(name in rows[0].stream_keys for name in accuracy_table)
    tables = [accuracy_table, cost_table] if cost_table.shape[1] > labels else [accuracy_table]
    unmeasured = order in MEASURES and not any(row[order].n for row in rows)
    sorted_by = f"their settings, as none has a {order}" if unmeasured else order.replace("settings", "their settings")
    lines = [*notes(rows, references), *([f"Rows are sorted by {sorted_by}."] if len(rows) > 1 else [])]
    return Section(heading(rows), labels, tables, lines, remarks(rows))


def notes(rows: Sequence[Row], references: dict[str, float]) -> list[str]:
    """Return what ± means, where there is one, and the references, such as 'Average accuracy in percent: joint 98.2,
    finetune 58.8, guessing 50.0.'"""
    names = {"chance": "guessing"}
    texts = [f"{names.get(name, name)} {number('average_accuracy', value)}" for name, value in references.items()]
    lines = [DEVIATION_NOTE] if any(row.n > 1 for row in rows) else []
    return [*lines, f"Average accuracy in percent: {', '.join(texts)}."] if texts else lines


def remarks(rows: Sequence[Row]) -> list[str]:
    """Return warnings about the rows of a stream."""
    return [*remarks_on_runs(rows), *remarks_on_references(rows), *remarks_on_settings(rows)]


def remarks_on_runs(rows: Sequence[Row]) -> list[str]:
    """Return warnings about the number of runs: that runs diverged, or are too few."""
    lines = [
        f"{row.label}: {row.diverged} of {row.diverged + row.n} runs diverged; they are in no mean."
        for row in rows
        if row.diverged
    ]
    single = sum(row.n == 1 for row in rows)
    if single:
        which = "One row has one run" if single == 1 else f"{single} rows have one run each"
        lines.append(f"{which}: no deviation, no interval; type e.g. 'seed=range(5)'.")
    fewer = [row.label for row in rows if 0 < row["gap_closed"].n < row.n]
    if fewer:
        lines.append(
            f"{', '.join(fewer)}: gap_closed and intransigence are over the seeds that joint and finetune have, too: "
            "fewer than n."
        )
    return lines


def remarks_on_references(rows: Sequence[Row]) -> list[str]:
    """Return a warning about the rows that have no reference in their own setup, while others of the stream have."""
    setups = {name: {row.setup for row in rows if row.strategy == name and row.n} for name in REFERENCES}
    lines = []
    for name, measures in REFERENCE_FOR.items():
        without = [row.label for row in rows if row.strategy not in REFERENCES and row.setup not in setups[name]]
        if setups[name] and without:
            more = f" and {len(without) - LISTED} more rows" if len(without) > LISTED else ""
            lines.append(
                f"{', '.join(without[:LISTED])}{more}: there is no {name} with the same lr, epochs, network and so on, "
                f"so {measures} cannot be told; type their command with strategy={name}."
            )
    return lines


def remarks_on_settings(rows: Sequence[Row]) -> list[str]:
    """Return warnings about settings that make rows differ in more than their keys."""
    lines = []
    runs = done_of(rows)
    if "task_id_at_test" in runs and runs["task_id_at_test"].astype(str).str.lower().eq("true").any():
        lines.append("task_id_at_test=true: here strategies that ask for the task's number at test were given it.")
    if differ_in_size(rows):
        lines.append(
            "The tasks differ in size: average_accuracy is the mean over the tasks, overall_accuracy that over all "
            "test samples, which papers report for such a stream; so it is with the two incremental accuracies."
        )
    if runs["device"].nunique() > 1:
        lines.append(f"Costs are of different devices: {', '.join(sorted(runs['device'].dropna().unique()))}.")
    if runs["carbon_g"].isna().all() and "grams_per_kwh" in runs and runs["grams_per_kwh"].notna().any():
        lines.append("No energy is known (an NVIDIA GPU and nvidia-ml-py tell it), so carbon_g is empty.")
    return lines


def differ_in_size(rows: Sequence[Row]) -> bool:
    """Return whether the two definitions of accuracy part in runs of one class-incremental stream."""
    if rows[0].first["scenario"] != "class":
        return False
    runs = done_of(rows)
    return any(
        bool(((runs[f"overall_{metric}"] - runs[f"average_{metric}"]).astype(float).abs() >= UNEQUAL).any())
        for metric in ("accuracy", "incremental_accuracy")
    )


def done_of(rows: Sequence[Row]) -> pd.DataFrame:
    """Return the runs of rows of one stream that are done."""
    if any(row.places is None for row in rows):
        return pd.concat([row.done for row in rows])
    source = rows[0].source
    runs = source.iloc[np.concatenate([row.places for row in rows if row.places is not None])]
    return runs[runs["status"] == RunStatus.DONE]


# ---------------------------------------------------------------- on the terminal


def terminal_table(lines: pd.DataFrame, labels: int) -> Cells:
    """Return a table of text as one for the terminal, whose first `labels` columns identify a row."""
    columns = [Column(str(name).replace("_", "\n"), text=number < labels) for number, name in enumerate(lines)]
    return Cells("", columns, lines.to_numpy().tolist(), labels)
