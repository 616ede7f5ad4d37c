"""Which method, on a budget: the rows of a stream whose measures keep some limits, the best of them first.

A row keeps a limit if the mean of the measure over its seeds does. A row is on the Pareto front if no other row within
the budget is at least as good in the main measure and in every cost, and better in one of them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, isnan

import pandas as pd

from clrun.report.compare import difference_statistic
from clrun.report.rows import Row, heading
from clrun.report.runs import COSTS, MEASURES
from clrun.report.tables import SHARES, Section, labels_of, number, statistic_text, without_empty_columns
from clrun.system.errors import UsageError

# The costs of the Pareto front, where the budget names none.
USUAL_COSTS = ("total_seconds", "state_mb")

# Measures of which less is better, besides the costs.
LOSSES = ("forgetting", "stability_gap", "intransigence")

LISTED = 6  # labels in a sentence


@dataclass(frozen=True)
class Limit:
    """A limit of a measure, such as state_mb<1."""

    measure: str
    sign: str  # <, <=, > or >=
    value: float

    def kept_by(self, row: Row) -> bool:
        """Return whether the mean of a row keeps the limit; one that is not known does not."""
        mean = row[self.measure].mean
        kept = {
            "<": mean < self.value,
            "<=": mean <= self.value,
            ">": mean > self.value,
            ">=": mean >= self.value,
        }
        return kept[self.sign]

    def nearest(self, rows: Sequence[Row]) -> str:
        """Return a clause on the row that comes nearest to the limit."""
        known = [row for row in rows if not isnan(row[self.measure].mean)]
        if not known:
            return f"{self.measure} was measured of none"
        row = (min if self.sign.startswith("<") else max)(known, key=lambda one: one[self.measure].mean)
        least = "least" if self.sign.startswith("<") else "most"
        return f"the {least} {self.measure} is {number(self.measure, row[self.measure].mean)} ({row.label})"


def limits(text: str) -> list[Limit]:
    """Return the limits that a text states, such as 'state_mb<1,total_seconds<30'. Raise UsageError."""
    return [limit(part, text) for part in text.split(",")]


def limit(part: str, text: str) -> Limit:
    """Return the limit that a part of a text states. Raise UsageError."""
    found = re.fullmatch(r"\s*(\w+)\s*(<=|>=|<|>)\s*(\S+)\s*", part)
    if found is None:
        raise UsageError(f"--budget '{text}': type limits such as 'state_mb<1,total_seconds<30'.")
    measure, sign, typed = found.groups()
    if measure not in MEASURES:
        raise UsageError(f"--budget '{text}': there is no measure {measure}; there are {', '.join(MEASURES)}.")
    try:
        value = float(typed)
    except ValueError:
        value = float("nan")
    if not isfinite(value):
        raise UsageError(f"--budget '{text}': {typed} is no number; type a limit such as {measure}{sign}10.")
    if measure in SHARES and abs(value) > 1:
        raise UsageError(
            f"--budget '{text}': {measure} is a fraction, so {value:g} is no limit; type "
            f"{measure}{sign}{value / 100:g} for {value:g} %."
        )
    return Limit(measure, sign, value)


def costs_of(budget: Sequence[Limit]) -> list[str]:
    """Return the costs that count for the Pareto front: those of the budget, or else USUAL_COSTS."""
    return list(dict.fromkeys(one.measure for one in budget if one.measure in COSTS)) or list(USUAL_COSTS)


def sign_of(measure: str) -> int:
    """Return 1 for a measure of which more is better, and -1 for one of which less is."""
    return -1 if measure in (*COSTS, *LOSSES) else 1


def front(rows: Sequence[Row], measure: str, costs: Sequence[str]) -> set[str]:
    """Return the groups of the rows on the Pareto front; rows of which a value is not known are none of them."""
    names = [measure, *(cost for cost in costs if cost != measure)]
    points = {row.group: tuple(sign_of(name) * row[name].mean for name in names) for row in rows}
    known = {group: point for group, point in points.items() if not any(map(isnan, point))}
    return {group for group, point in known.items() if not any(beats(other, point) for other in known.values())}


def beats(one: Sequence[float], other: Sequence[float]) -> bool:
    """Return whether a point is at least as good as another everywhere, and better somewhere."""
    return all(a >= b for a, b in zip(one, other, strict=True)) and tuple(one) != tuple(other)


def section(rows: Sequence[Row], measure: str, text: str) -> Section:
    """Return the section on the rows of one stream that keep the budget that a text states. Raise UsageError."""
    budget = limits(text)
    ended = [row for row in rows if row.n]
    within = [row for row in ended if all(one.kept_by(row) for one in budget) and not isnan(row[measure].mean)]
    within.sort(key=lambda row: -sign_of(measure) * row[measure].mean)
    if not within:
        nearest = "; ".join(one.nearest(ended) for one in budget)
        return Section(heading(rows), 0, [], [f"No row keeps {text}: {nearest}."], [])
    costs = costs_of(budget)
    lines = table(within, measure, budget, front(within, measure, costs))
    labels = sum(name in rows[0].stream_keys for name in lines)
    return Section(heading(rows), labels, [lines], notes(within, ended, measure, text, costs), remarks(within, measure))


def table(rows: Sequence[Row], measure: str, budget: Sequence[Limit], on_front: set[str]) -> pd.DataFrame:
    """Return the table of the rows: what they are, the main measure, all that the budget limits, and the front."""
    shown = dict.fromkeys([measure, *(one.measure for one in budget), *costs_of(budget)])
    lines = [
        labels_of(row)
        | {"n": str(row.n)}
        | {name: statistic_text(name, row[name]) for name in shown}
        | {"front": "*" if row.group in on_front else ""}
        for row in rows
    ]
    return without_empty_columns(lines)


def notes(within: Sequence[Row], ended: Sequence[Row], measure: str, text: str, costs: Sequence[str]) -> list[str]:
    """Return how many rows keep the budget, what the front is, and which row is best."""
    best, word = within[0], "Highest" if sign_of(measure) > 0 else "Lowest"
    found = best[measure]
    interval = f" [{number(measure, found.low)}, {number(measure, found.high)}]" if found.n > 1 else ""
    alike = [row.label for row in within[1:] if not told_apart(best, row, measure)]
    more = f" and {len(alike) - LISTED} more" if len(alike) > LISTED else ""
    equal = f" Not told apart from it, paired by seed: {', '.join(alike[:LISTED])}{more}." if alike else ""
    return [
        f"{len(within)} of {len(ended)} rows keep {text}, in the mean over their seeds.",
        f"* marks the Pareto front: no other of these rows has as good {measure} for as little of {', '.join(costs)}.",
        f"{word} {measure}: {best.label}, {number(measure, found.mean)}{interval}, n = {found.n}.{equal}",
    ]


def told_apart(one: Row, other: Row, measure: str) -> bool:
    """Return whether the 95 % interval of the difference of two rows, paired by seed, excludes 0."""
    found = difference_statistic(one, other, measure)
    return found.low > 0 or found.high < 0


def remarks(within: Sequence[Row], measure: str) -> list[str]:
    """Return a warning where the best row is the best of several settings by a test accuracy."""
    settings = sum(row.strategy == within[0].strategy for row in within)
    if settings == 1 or measure == "validation_accuracy" or measure in COSTS:
        return []
    return [
        f"{within[0].label} is the best of {settings} settings of {within[0].strategy} by {measure}, which flatters "
        "it; choose settings by --measure validation_accuracy (validation=0.1)."
    ]
