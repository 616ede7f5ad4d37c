"""Rows as tables for readers: on the terminal, in Markdown, in LaTeX. Shares in percent, costs in their units."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import floor, log10

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from clrun.report.rows import Row, heading, text
from clrun.report.runs import KEPT
from clrun.report.statistics import Statistic
from clrun.results import columns
from clrun.terminal import run_tables
from clrun.terminal.console import say, titled, warn

SHARES = (*columns.SUMMARY_METRICS, "validation_accuracy", *columns.CONTINUAL_METRICS, "gap_closed", "intransigence")


PERCENT = (*SHARES, "accuracy_kept")


DEVIATION = "After ± stands the standard deviation over the seeds."


BESIDE = ("average_accuracy", "forgetting", "learning_accuracy", "validation_accuracy", "gap_closed", "intransigence")


COSTS = (
    "total_seconds",
    "relative_seconds",
    "state_mb",
    "peak_memory_mb",
    "energy_wh",
    "carbon_g",
    "money",
    *KEPT,
)


# ---------------------------------------------------------------- numbers


def number(measure: str, value: float) -> str:
    """In percent for shares, with three digits for costs; empty for nan."""
    if np.isnan(value):
        return ""
    return f"{100 * value:.1f}" if measure in PERCENT else significant(scaled(measure, value))


def scaled(measure: str, value: float) -> float:
    """What is kept for a cost is told in points."""
    return 100 * value if measure in KEPT else value


def significant(value: float, like: float | None = None) -> str:
    """With as many decimals as give `like` (by default itself) three digits."""
    size = abs(value if like is None else like)
    if 0 < size < 1e-4:
        return f"{value:.2e}"
    return f"{value:.{max(0, 2 - floor(log10(size))) if size else 0}f}"


def mean_and_deviation(measure: str, one: Statistic) -> str:
    """'98.1 ± 0.4'; a cost that does not vary has no deviation."""
    if np.isnan(one.mean):
        return ""
    if np.isnan(one.sd) or (measure not in PERCENT and one.sd <= 1e-9 * abs(one.mean)):
        return number(measure, one.mean)
    if measure in PERCENT:
        return f"{number(measure, one.mean)} ± {number(measure, one.sd)}"
    mean, sd = scaled(measure, one.mean), scaled(measure, one.sd)
    return f"{significant(mean, max(abs(mean), sd))} ± {significant(sd, max(abs(mean), sd))}"


# ---------------------------------------------------------------- tables of text


def accuracies(rows: Sequence[Row], measure: str) -> pd.DataFrame:
    """Rows of one stream: the measure in full, others as mean ± standard deviation."""
    return filled([accuracy_cells(row, measure) for row in rows])


def accuracy_cells(row: Row, measure: str) -> dict[str, str]:
    main = row[measure]
    interval = "" if np.isnan(main.low) else f"[{number(measure, main.low)}, {number(measure, main.high)}]"
    told = {"n": str(main.n), "diverged": str(row.diverged) if row.diverged else ""}
    told |= {measure: number(measure, main.mean), "sd": number(measure, main.sd), "95 % interval": interval}
    others = {name: mean_and_deviation(name, row[name]) for name in BESIDE if name != measure}
    return named(row) | told | others


def costs(rows: Sequence[Row]) -> pd.DataFrame:
    """Rows of one stream: what they cost, and what was kept for it, as mean ± standard deviation."""
    return filled([named(row) | {name: mean_and_deviation(name, row[name]) for name in COSTS} for row in rows])


def named(row: Row) -> dict[str, str]:
    """The cells that say which row it is."""
    return {key: text(row.keys[key]) for key in row.told}


def filled(lines: Sequence[dict[str, str]]) -> pd.DataFrame:
    """Without the columns in which nothing stands."""
    table = pd.DataFrame(lines).fillna("")
    return table.loc[:, (table != "").any()]


def markdown(lines: pd.DataFrame) -> str:
    """A table of text in Markdown."""
    body = [[cell.replace("|", "\\|") for cell in line] for line in lines.to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(line)} |" for line in [list(lines), ["---"] * lines.shape[1], *body])


def latex(lines: pd.DataFrame) -> str:
    """The same for LaTeX (needs its package booktabs)."""
    return lines.to_latex(index=False, escape=True).replace("±", "$\\pm$")


# ---------------------------------------------------------------- a stream


@dataclass(frozen=True)
class Section:
    """What is said of one stream."""

    title: str
    labels: int  # the first columns, which say which row it is
    tables: Sequence[pd.DataFrame]  # of text
    notes: Sequence[str]  # how to read the tables
    remarks: Sequence[str]  # what a reader must know

    def markdown(self) -> str:
        parts = [f"## {self.title}", *map(markdown, self.tables), *self.notes, *self.remarks]
        return "\n\n".join(parts)

    def latex(self) -> str:
        said = [f"% {line}".replace("±", "$\\pm$") for line in (*self.notes, *self.remarks)]
        return "\n".join([f"% {self.title}", *map(latex, self.tables), *said])

    def tell(self, console: Console) -> None:
        """On the terminal, wide tables in several pieces below each other."""
        say(console, self.title, "bold")
        for lines in self.tables:
            for piece in pieces(console, lines, self.labels):
                console.print(drawn(piece, self.labels))
        for line in self.notes:
            say(console, line)
        for remark in self.remarks:
            warn(console, remark)


def section(rows: Sequence[Row], measure: str, references: dict[str, float]) -> Section:
    """Of the rows of one stream."""
    known = accuracies(rows, measure)
    labels = sum(name in rows[0].told for name in known)
    bill = costs(rows)
    tables = [known, bill] if bill.shape[1] > labels else [known]
    return Section(heading(rows), labels, tables, notes(rows, references), remarks(rows))


def notes(rows: Sequence[Row], references: dict[str, float]) -> list[str]:
    """What ± is, where there is one; 'Average accuracy in percent: joint 98.2, finetune 58.8, guessing 50.0.'"""
    told = [f"{name.replace('chance', 'guessing')} {number('average_accuracy', v)}" for name, v in references.items()]
    said = [DEVIATION] if any(len(row.done) > 1 for row in rows) else []
    return [*said, f"Average accuracy in percent: {', '.join(told)}."] if told else said


def remarks(rows: Sequence[Row]) -> list[str]:
    """What a reader of these rows must know."""
    said = [
        f"{row.label}: {row.diverged} of {row.diverged + len(row.done)} runs diverged; they are in no mean."
        for row in rows
        if row.diverged
    ]
    lonely = sum(len(row.done) == 1 for row in rows)
    if lonely:
        whose = "One row has one run" if lonely == 1 else f"{lonely} rows have one run each"
        said.append(f"{whose}: no deviation, no interval; type e.g. 'seed=range(5)'.")
    fewer = [row.label for row in rows if 0 < row["gap_closed"].n < len(row.done)]
    if fewer:
        said.append(
            f"{', '.join(fewer)}: gap_closed and intransigence are over the seeds that joint and finetune have, too: "
            "fewer than n."
        )
    told = pd.concat([row.done for row in rows])
    if "task_id_at_test" in told and told["task_id_at_test"].astype(str).str.lower().eq("true").any():
        said.append("task_id_at_test=true: here strategies that ask for the task's number at test were given it.")
    if told["device"].nunique() > 1:
        said.append(f"Costs are of different devices: {', '.join(sorted(told['device'].dropna().unique()))}.")
    if told["carbon_g"].isna().all() and "grams_per_kwh" in told and told["grams_per_kwh"].notna().any():
        said.append("No energy is known (an NVIDIA GPU and nvidia-ml-py tell it), so carbon_g is empty.")
    return said


# ---------------------------------------------------------------- on the terminal


def pieces(console: Console, lines: pd.DataFrame, labels: int) -> Iterator[pd.DataFrame]:
    """A table in as many pieces as the width asks for, its first columns in each."""
    rest = list(lines)[labels:]
    while rest:
        count = len(rest)
        while count > 1 and run_tables.too_wide(
            console, drawn(lines[[*lines.columns[:labels], *rest[:count]]], labels)
        ):
            count -= 1
        yield lines[[*lines.columns[:labels], *rest[:count]]]
        rest = rest[count:]


def drawn(lines: pd.DataFrame, labels: int) -> Table:
    """A table of text as one for the terminal."""
    table = titled("")
    for i, name in enumerate(lines):
        table.add_column(Text(name.replace("_", "\n")), justify="left" if i < labels else "right")
    for line in lines.itertuples(index=False):
        table.add_row(*map(Text, line))
    return table
