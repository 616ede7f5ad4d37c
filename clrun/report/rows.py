"""A row is a group: runs that differ in nothing but the seed, on one stream. A diverged run has no accuracy: it is
counted beside the mean, never in it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from clrun.report.runs import MEASURES, REFERENCES, chance, directory, keys_of
from clrun.report.statistics import Statistic, statistic
from clrun.results import tables
from clrun.results.columns import SOURCES
from clrun.results.outcome import RunStatus
from clrun.system.errors import UsageError

STREAM = ("dataset", "split", "scenario", "tasks")  # what a stream is called by


@dataclass(frozen=True)
class Row:
    """A group of runs: what it is, and what it measured."""

    stream: str
    group: str
    keys: Mapping[str, object]  # strategy, and all keys in which groups differ, in whatever stream
    told: Sequence[str]  # of these: strategy, and those in which the groups of its own stream differ
    own: Sequence[str]  # of these: those in which the groups of its own strategy differ
    runs: pd.DataFrame

    @cached_property
    def done(self) -> pd.DataFrame:
        return self.runs[self.runs["status"] == RunStatus.DONE]

    @cached_property
    def diverged(self) -> int:
        return int((self.runs["status"] == RunStatus.DIVERGED).sum())

    def __getitem__(self, measure: str) -> Statistic:
        return statistic(self.done[measure])

    @property
    def strategy(self) -> str:
        return str(self.keys["strategy"])

    @property
    def label(self) -> str:
        """'ewc lambda=100'."""
        return " ".join([self.strategy, *(f"{key}={text(self.keys[key])}" for key in self.own)])

    @property
    def words(self) -> set[str]:
        """All that it may be called by."""
        return {self.strategy, *(f"{key}={text(self.runs.iloc[0][key])}" for key in keys_of(self.runs))}


def text(value: object) -> str:
    """A key's value as it is typed; empty where it is not taken."""
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower()
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.15g}"
    return str(value)


def rows_of(runs: pd.DataFrame) -> list[Row]:
    """One row a group; runs of different streams are never in one."""
    keys = varying(runs)
    return [row for name, stream in runs.groupby("stream", sort=False) for row in rows_of_stream(name, stream, keys)]


def rows_of_stream(name: str, stream: pd.DataFrame, keys: Sequence[str]) -> list[Row]:
    told = varying(stream)
    own = {strategy: varying(runs)[1:] for strategy, runs in stream.groupby("strategy")}
    return [
        Row(name, group, runs.iloc[0][keys].to_dict(), told, own[runs.iloc[0]["strategy"]], runs)
        for group, runs in stream.groupby("group", sort=False)
    ]


def varying(runs: pd.DataFrame) -> list[str]:
    """The keys in which groups differ, strategy first: within a strategy, or between two in a value that both take."""
    firsts = runs.drop_duplicates(["stream", "group"])
    return ["strategy", *(key for key in keys_of(runs) if key != "strategy" and differs(firsts, key))]


def differs(groups: pd.DataFrame, key: str) -> bool:
    """Whether a key tells groups apart; that one strategy takes it and another does not, or has another source, is no
    difference."""
    within = groups.groupby("strategy")[key].nunique(dropna=False)
    return bool((within > 1).any()) or (groups[key].nunique() > 1 and key not in SOURCES)


def streams(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows, stream by stream."""
    names = dict.fromkeys(row.stream for row in rows)
    return [[row for row in rows if row.stream == name] for name in names]


def heading(rows: Sequence[Row]) -> str:
    """What the rows of a stream have in common, as far as other streams differ in it."""
    one = rows[0].runs.iloc[0]
    named = [text(one[key]) for key in STREAM[:2] if text(one[key])]
    named += [f"{key} {text(one[key])}" for key in STREAM[2:] if text(one[key])]
    if text(one.get("first_tasks", "")):
        named.append(f"the first {text(one['first_tasks'])} of them")
    shared = [key for key in rows[0].keys if key not in (*STREAM, "first_tasks", *rows[0].told)]
    known = [key for key in shared if not any(pd.isna(row.keys[key]) for row in rows)]
    return f"{', '.join([*named, *(f'{key}={text(one[key])}' for key in known)])} (stream {rows[0].stream})"


def references(folder: Path, rows: Sequence[Row]) -> dict[str, float]:
    """Accuracy of joint, finetune and chance on a stream, where they are known."""
    found = {row.strategy: row["average_accuracy"].mean for row in rows if len(row.done)}
    lines = {name: found[name] for name in REFERENCES if name in found}
    places = (directory(folder, run) for row in rows for run in row.runs["run"][:1])
    guess = next((chance(place) for place in places if place is not None), None)
    return lines | ({} if guess is None else {"chance": guess})


def ordered(rows: Sequence[Row], by: str, reverse: bool) -> list[Row]:
    """By a measure, the largest first, or by a key, the smallest first; what has none last. UsageError if neither."""
    keys = list(rows[0].keys)
    if by not in (*MEASURES, *keys):
        raise UsageError(
            f"--sort {by}: rows are sorted by a measure or by a key in which they differ: "
            f"{', '.join((*keys, *MEASURES))}."
        )
    found = [row[by].mean if by in MEASURES else row.keys[by] for row in rows]
    order = pd.Series(found).sort_values(ascending=(by in MEASURES) == reverse, kind="stable", na_position="last")
    return [rows[i] for i in order.index]


STATISTICS = ("n", "mean", "sd", "low", "high")


def table(rows: Sequence[Row]) -> pd.DataFrame:
    """report.csv: group, the varying keys, metric, n, mean, sd, low, high. `diverged`: of n runs the share that did."""
    lines = []
    for row in rows:
        head = {"group": row.group, **row.keys}
        found = {measure: row[measure] for measure in MEASURES}
        lines += [{**head, "metric": name, **one._asdict()} for name, one in found.items() if one.n]
        ended = len(row.done) + row.diverged
        lines.append({**head, "metric": "diverged", "n": ended, "mean": row.diverged / ended})
    return tables.objects(lines, ["group", *rows[0].keys, "metric", *STATISTICS])
