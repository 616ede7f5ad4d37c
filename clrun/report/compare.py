"""The comparison of two rows, paired by seed: n differences, their mean and its 95 % t-interval (a paired t-test)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import yaml

from clrun.config.catalog import Loader
from clrun.report.intervals import MOST_VALUES, UNBOUNDED, Statistic, statistic, sufficient_n
from clrun.report.rows import Row, heading, streams
from clrun.report.runs import ACCURACIES
from clrun.report.tables import number
from clrun.system.errors import UsageError
from clrun.system.text import format_value

LISTED = 12  # labels in a message

ONE_OF_MANY = (
    "This interval is for a single comparison. Of 20 such intervals, about one excludes 0 by chance: if you make k "
    "comparisons, use intervals of level 1 - 0.05 / k (Bonferroni)."
)


@dataclass(frozen=True)
class Comparison:
    """Two rows of one stream, and the statistic of their differences."""

    left: Row
    right: Row
    measure: str
    heading: str  # of the stream

    @property
    def paragraph(self) -> str:
        """What the comparison allows to conclude, below the heading of the stream."""
        return f"{self.heading}\n{verdict(self.left, self.right, self.measure)}"

    @property
    def cells(self) -> dict[str, object]:
        """The comparison as a line of comparison.csv."""
        names = {"stream": self.left.stream, "first": self.left.label, "second": self.right.label}
        found = difference_statistic(self.left, self.right, self.measure)
        return names | {"measure": self.measure} | found._asdict() | {"diverged": diverged(self.left, self.right)}


def compared(rows: Sequence[Row], first: str, second: str, measure: str) -> list[Comparison]:
    """Return the comparison of the rows that `first` and `second` name, in each stream that has both.

    Raise UsageError where there is no such stream, or where a text names several rows of a stream.
    """
    by_stream = {part[0].stream: part for part in streams(rows)}
    return [
        Comparison(left, right, measure, heading(by_stream[left.stream])) for left, right in pairs(rows, first, second)
    ]


def table(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """Return comparison.csv."""
    return pd.DataFrame([one.cells for one in comparisons], dtype=object)


def rows_named(rows: Sequence[Row], text: str) -> list[Row]:
    """Return the rows that a text names: by a strategy, the hash of a group, or keys as in 'ewc lambda=100'.

    In a stream in which a row has the text as its whole label, it names this row alone. Raise UsageError if there is
    none.
    """
    words = words_of(text)
    labelled = {row.stream for row in rows if row.label == text}
    matching = [
        row
        for row in rows
        if row.label == text or (row.stream not in labelled and (row.group == text or (words and words <= row.words)))
    ]
    if not matching:
        labels = list(dict.fromkeys(row.label for row in rows))
        more = f"; and {len(labels) - LISTED} more" if len(labels) > LISTED else ""
        raise UsageError(f"--compare {text}: there is no such row; there are {'; '.join(labels[:LISTED])}{more}.")
    return matching


def words_of(text: str) -> set[str]:
    """Return the words of a text, which blanks or commas separate, as rows spell them: lambda=1e-7 is lambda=1e-07."""
    return {spelt(word) for word in re.findall(r"(?:[^\s,\[\]]|\[(?:[^\[\]]|\[[^\[\]]*\])*\])+", text)}


def spelt(word: str) -> str:
    """Return key=value with the value as clrun prints it; another word as it is."""
    key, equals, value = word.partition("=")
    try:
        typed = yaml.load(value, Loader)
    except yaml.YAMLError:
        return word
    return f"{key}={format_value(typed)}" if equals and isinstance(typed, bool | int | float | list) else word


def pairs(rows: Sequence[Row], first: str, second: str) -> list[tuple[Row, Row]]:
    """Return the pair of rows that two texts name in each stream that has both. Where they name several rows of a
    stream, such as the strategies of a sweep over lr, these are paired that were trained alike.

    Raise UsageError where there is no such stream, or where a text names several rows of a stream.
    """
    named, others = rows_named(rows, first), rows_named(rows, second)
    matched = [(left, right) for left in named for right in others if left.stream == right.stream]
    alike = [(left, right) for left, right in matched if left.setup == right.setup]
    if is_one_to_one(alike) and {left.stream for left, _ in alike} == {left.stream for left, _ in matched}:
        matched = matched if is_one_to_one(matched) else alike
    refuse_ambiguous(rows, f"--compare {first} {second}", first, matched, [right.group for _, right in matched])
    refuse_ambiguous(rows, f"--compare {first} {second}", second, matched, [left.group for left, _ in matched])
    if not matched:
        raise UsageError(
            f"--compare {first} {second}: they have no stream in common, so their accuracies do not compare."
        )
    return matched


def is_one_to_one(matched: Sequence[tuple[Row, Row]]) -> bool:
    """Return whether no row is in two pairs."""
    sides = [[(row.stream, row.group) for row in side] for side in zip(*matched, strict=True)]
    return all(len(set(side)) == len(side) for side in sides)


def refuse_ambiguous(
    rows: Sequence[Row], option: str, text: str, matched: Sequence[tuple[Row, Row]], partners: Sequence[str]
) -> None:
    """Raise UsageError if a group is the partner of several rows, which the text names then."""
    if len(set(partners)) < len(partners):
        several = [row for row in rows_named(rows, text) if row.stream == matched[0][0].stream]
        labels = " or ".join(f"'{row.label}'" for row in several[:LISTED])
        raise UsageError(f"{option}: {text} is several rows; name one of them: {labels}.")


def difference(left: Row, right: Row, measure: str) -> pd.Series:
    """Return the differences left - right of a measure by seed, over the seeds of which both rows have a run that is
    done."""
    return (left.done.set_index("seed")[measure] - right.done.set_index("seed")[measure]).dropna()


def difference_statistic(left: Row, right: Row, measure: str) -> Statistic:
    """Return the statistic of the differences left - right; those of two accuracies are between -1 and 1."""
    return statistic(difference(left, right, measure), (-1.0, 1.0) if measure in ACCURACIES else UNBOUNDED)


def diverged(left: Row, right: Row) -> int:
    """Return how many runs of two rows have diverged."""
    return left.diverged + right.diverged


def verdict(left: Row, right: Row, measure: str) -> str:
    """Return a sentence with the mean difference, its interval and n, and what they allow to conclude."""
    found = difference_statistic(left, right, measure)
    head = f"{measure}, {left.label} minus {right.label}: "
    tail = f" {diverged(left, right)} diverged runs are left out." if diverged(left, right) else ""
    if found.n < 2:
        return f"{head}n = {found.n} pairs with the same seed: too few to tell anything; run both with 5 seeds.{tail}"
    interval = f"[{number(measure, found.low)}, {number(measure, found.high)}]"
    result = f"{head}{number(measure, found.mean)} (95 % interval {interval}, n = {found.n} pairs by seed)."
    return f"{result} {conclusion(found)}{tail} {ONE_OF_MANY}"


def conclusion(found: Statistic) -> str:
    """Return whether the interval excludes 0, and if not, how many pairs it would take, all else being equal."""
    if found.low > 0 or found.high < 0:
        return "The interval excludes 0."
    if found.mean == 0:
        return f"n = {found.n} is too small to tell them apart, if they differ at all."
    sufficient = sufficient_n(found)
    needed = f"of about {sufficient} pairs" if sufficient else f"only of more than {MOST_VALUES} pairs"
    return (
        f"n = {found.n} is too small to tell: the interval includes 0. If mean and deviation stayed as they are, that "
        f"{needed} would exclude it; as they will not, with a probability of about one half. Choose n before the runs: "
        "seeds that are added until 0 is excluded make chance look like a difference."
    )
