"""Two rows, paired by seed: n differences d, their mean and its 95 % t-interval (the paired t-test's)."""

from collections.abc import Sequence

import pandas as pd

from clrun.report.rows import Row, heading, streams
from clrun.report.statistics import MOST, Statistic, enough, statistic
from clrun.report.tables import number
from clrun.system.errors import UsageError

LISTED = 12  # labels in a message


def compared(rows: Sequence[Row], a: str, b: str, measure: str) -> str:
    """A paragraph for each stream that both are in. UsageError where there is none, or a text names several rows."""
    parts = {part[0].stream: part for part in streams(rows)}
    return "\n\n".join(
        f"{heading(parts[one.stream])}\n{verdict(one, other, measure)}" for one, other in pairs(rows, a, b)
    )


def chosen(rows: Sequence[Row], said: str) -> list[Row]:
    """The rows that a text names: a strategy, a group's hash, or 'ewc lambda=100' as in a label (a whole label names
    its row alone). UsageError if none."""
    words = set(said.replace(",", " ").split())
    whole = [row for row in rows if row.label == said]
    found = whole or [row for row in rows if row.group == said or (words and words <= row.words)]
    if not found:
        labels = list(dict.fromkeys(row.label for row in rows))
        more = f"; and {len(labels) - LISTED} more" if len(labels) > LISTED else ""
        raise UsageError(f"--compare {said}: there is no such row; there are {'; '.join(labels[:LISTED])}{more}.")
    return found


def pairs(rows: Sequence[Row], a: str, b: str) -> list[tuple[Row, Row]]:
    """The rows named a and b, stream by stream. UsageError where they share no stream, or a text names several rows."""
    ours, theirs = chosen(rows, a), chosen(rows, b)
    found = [(one, other) for one in ours for other in theirs if one.stream == other.stream]
    for said, side in ((a, [other.group for _, other in found]), (b, [one.group for one, _ in found])):
        if len(set(side)) < len(side):
            several = [row for row in chosen(rows, said) if row.stream == found[0][0].stream]
            labels = " or ".join(f"'{row.label}'" for row in several[:LISTED])
            raise UsageError(f"--compare {a} {b}: {said} is several rows; name one of them: {labels}.")
    if not found:
        raise UsageError(f"--compare {a} {b}: they have no stream in common, so their accuracies do not compare.")
    return found


def difference(one: Row, other: Row, measure: str) -> pd.Series:
    """seed -> measure of one minus measure of the other, over the seeds that both are done with."""
    return (one.done.set_index("seed")[measure] - other.done.set_index("seed")[measure]).dropna()


def verdict(one: Row, other: Row, measure: str) -> str:
    """Mean difference, interval and n in a sentence, and what they allow to say."""
    found = statistic(difference(one, other, measure))
    head = f"{measure}, {one.label} minus {other.label}: "
    lost = one.diverged + other.diverged
    tail = f" {lost} diverged runs are left out." if lost else ""
    if found.n < 2:
        return f"{head}n = {found.n} pairs with the same seed: too few to tell anything; run both with 5 seeds.{tail}"
    interval = f"[{number(measure, found.low)}, {number(measure, found.high)}]"
    told = f"{head}{number(measure, found.mean)} (95 % interval {interval}, n = {found.n} pairs by seed)."
    return f"{told} {judged(found)}{tail}"


def judged(found: Statistic) -> str:
    """Whether the interval excludes 0; if not, how many pairs would be needed for it to, all else being equal."""
    if found.low > 0 or found.high < 0:
        return "The interval excludes 0."
    if found.mean == 0:
        return f"n = {found.n} is too small to tell them apart, if they differ at all."
    pairs = enough(found)
    needed = f"about {pairs} pairs would do" if pairs else f"it would take more than {MOST} pairs"
    return (
        f"n = {found.n} is too small to tell: the interval includes 0. If mean and deviation stayed as they are, "
        f"{needed}."
    )
