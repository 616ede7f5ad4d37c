"""The rows of a report: groups of runs that differ in nothing but the seed, on one stream.

The rows of a stream differ in the strategy, its keys, and everything that says how is learnt: lr, epochs, the network.

A diverged run has no accuracy: it is counted beside the mean, never in it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from clrun.report.intervals import Statistic, statistic, statistics_of
from clrun.report.runs import MEASURES, REFERENCES, bounds_of, guessing_accuracy, keys_of
from clrun.results import collection
from clrun.results.columns import SOURCES
from clrun.results.outcome import RunStatus
from clrun.results.reading import UnreadableFile
from clrun.results.tables import is_missing
from clrun.system.errors import UsageError
from clrun.system.messages import announce
from clrun.system.text import format_cell

STREAM = ("dataset", "split", "scenario", "tasks")  # the keys by which a stream is called


@dataclass(frozen=True)
class Row:
    """A group of runs: its keys, and what was measured.

    row["forgetting"] is the statistic of a measure over the runs that are done.
    """

    stream: str
    group: str
    keys: Mapping[str, object]  # strategy, and all keys in which any groups differ
    stream_keys: Sequence[str]  # of these: strategy, and those in which the groups of this stream differ
    label_keys: Sequence[str]  # of these: those in which the groups of this strategy differ
    source: pd.DataFrame  # the runs of a stream
    places: np.ndarray | None = None  # of the row's runs in `source`; None for all

    # What `measured` has computed of all rows of a stream at once; None: it is computed where it is asked for.
    known: Mapping[str, Statistic] | None = None
    ended: tuple[int, int] | None = None  # the numbers of runs that are done, and that have diverged

    @cached_property
    def runs(self) -> pd.DataFrame:
        """The runs of the row."""
        return self.source if self.places is None else self.source.iloc[self.places]

    @cached_property
    def done(self) -> pd.DataFrame:
        """The runs that are done."""
        return self.runs[self.runs["status"] == RunStatus.DONE]

    @cached_property
    def counts(self) -> tuple[int, int]:
        """The numbers of runs that are done, and that have diverged."""
        if self.ended is not None:
            return self.ended
        return len(self.done), int((self.runs["status"] == RunStatus.DIVERGED).sum())

    @property
    def n(self) -> int:
        """The number of runs that are done."""
        return self.counts[0]

    @property
    def diverged(self) -> int:
        """The number of runs that have diverged."""
        return self.counts[1]

    @property
    def first_place(self) -> int:
        """The place of the first run in `source`."""
        return 0 if self.places is None else int(self.places[0])

    @property
    def first(self) -> pd.Series:
        """The first run."""
        return self.source.iloc[self.first_place]

    @cached_property
    def statistics(self) -> Mapping[str, Statistic]:
        """The statistic of every measure over the runs that are done."""
        if self.known is not None:
            return self.known
        return {measure: statistic(self.done[measure], bounds_of(measure)) for measure in MEASURES}

    def __getitem__(self, measure: str) -> Statistic:
        return self.statistics[measure]

    @property
    def setup(self) -> str:
        """How the stream is learnt, but for the strategy: see clrun/report/runs.py."""
        return str(self.source["setup"].iat[self.first_place])

    @property
    def strategy(self) -> str:
        return str(self.keys["strategy"])

    @property
    def label(self) -> str:
        """The strategy and the keys that distinguish the row from others of it, such as 'ewc lambda=100'."""
        return " ".join([self.strategy, *(f"{key}={self.text(key)}" for key in self.label_keys if self.text(key))])

    @property
    def words(self) -> set[str]:
        """Every word by which `--compare` may name the row."""
        first = self.first
        cells = {key: text(first[key]) for key in keys_of(self.source)}
        return {self.strategy, *(f"{key}={cell or 'null'}" for key, cell in cells.items())}

    def text(self, key: str) -> str:
        """Return the value of a key as it is typed; '' where the row does not take the key.

        An empty cell is null where the row's strategy has other values of the key, unless the key belongs to an option
        that the row may not have chosen, such as model.widths.
        """
        return text(self.keys[key]) or ("null" if key in self.label_keys and "." not in key else "")


def text(value: object) -> str:
    """Return the value of a key as it is typed; '' for nan, where the strategy does not take the key."""
    return format_cell(value)


def rows_of(runs: pd.DataFrame) -> list[Row]:
    """Return one row per group; runs of different streams are never in one row."""
    keys = differing_keys(runs)
    return [
        row for name, stream in runs.groupby("stream", sort=False) for row in rows_of_stream(str(name), stream, keys)
    ]


def rows_of_stream(name: str, stream: pd.DataFrame, keys: Sequence[str]) -> list[Row]:
    """Return the rows of one stream. keys: those in which any groups differ."""
    stream_keys = differing_keys(stream)
    label_keys = {str(strategy): differing_keys(runs)[1:] for strategy, runs in stream.groupby("strategy")}
    numbers, groups = pd.factorize(stream["group"])
    firsts = stream.iloc[first_places(numbers)][list(keys)].astype(object)
    values = [dict(zip(keys, cells, strict=True)) for cells in firsts.to_numpy().tolist()]
    places = np.split(np.argsort(numbers, kind="stable"), np.cumsum(np.bincount(numbers))[:-1])
    found = zip(groups, values, places, measured(stream, numbers, len(groups)), ended(stream, numbers), strict=True)
    return [
        Row(name, str(group), keyed, stream_keys, label_keys[str(keyed["strategy"])], stream, place, known, counts)
        for group, keyed, place, known, counts in found
    ]


def first_places(numbers: np.ndarray) -> np.ndarray:
    """Return the place of the first row of each group. numbers: of the groups of the rows, in the order of groups."""
    return np.unique(numbers, return_index=True)[1]


def measured(stream: pd.DataFrame, numbers: np.ndarray, count: int) -> Iterator[dict[str, Statistic]]:
    """Yield the statistics of every measure over the runs of each group that are done. numbers: of the group of each
    run, below `count`."""
    done = (stream["status"] == RunStatus.DONE).to_numpy(dtype=bool)
    values = np.column_stack([stream[name].to_numpy(dtype=float, na_value=np.nan) for name in MEASURES])
    bounds = [bounds_of(name) for name in MEASURES]
    n, *others = (field.tolist() for field in statistics_of(values[done], numbers[done], count, bounds))
    for group in range(count):
        fields = zip(map(int, n[group]), *(field[group] for field in others), strict=True)
        yield {name: Statistic(*cells) for name, cells in zip(MEASURES, fields, strict=True)}


def ended(stream: pd.DataFrame, numbers: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield, for each group, how many of its runs are done, and how many have diverged."""
    counts = [
        np.bincount(numbers, weights=(stream["status"] == status).to_numpy(dtype=bool)).astype(int).tolist()
        for status in (RunStatus.DONE, RunStatus.DIVERGED)
    ]
    yield from zip(*counts, strict=True)


def differing_keys(runs: pd.DataFrame) -> list[str]:
    """Return `strategy` and the keys in which groups differ: within a strategy, or between two strategies that both
    take the key."""
    firsts = runs.drop_duplicates(["stream", "group"])
    return ["strategy", *(key for key in keys_of(runs) if key != "strategy" and differs(firsts, key))]


def differs(groups: pd.DataFrame, key: str) -> bool:
    """Return whether groups differ in a key. That one strategy takes it and another does not, or that their classes
    have different sources, is no difference."""
    within = groups.groupby("strategy")[key].nunique(dropna=False)
    return bool((within > 1).any()) or (groups[key].nunique() > 1 and key not in SOURCES)


def streams(rows: Sequence[Row]) -> list[list[Row]]:
    """Return the rows, stream by stream."""
    names = dict.fromkeys(row.stream for row in rows)
    return [[row for row in rows if row.stream == name] for name in names]


def heading(rows: Sequence[Row]) -> str:
    """Return a title of the rows of a stream: the keys of the stream, and those in which it differs from others."""
    run = rows[0].first
    parts = [text(run[key]) for key in STREAM[:2] if text(run[key])]
    parts += [f"{key} {text(run[key])}" for key in STREAM[2:] if text(run[key])]
    if text(run.get("first_tasks", "")):
        parts.append(f"the first {text(run['first_tasks'])} of them")
    shared = [key for key in rows[0].keys if key not in (*STREAM, "first_tasks", *rows[0].stream_keys)]
    parts += [f"{key}={text(run[key])}" for key in shared if not any(is_missing(row.keys[key]) for row in rows)]
    return f"{', '.join(parts)} (stream {rows[0].stream})"


def references(folder: Path, rows: Sequence[Row], say: Callable[[str], None] = announce) -> dict[str, float]:
    """Return the accuracies of joint, of finetune and of guessing (`chance`) on a stream, where they are known. A
    strategy with several rows, such as joint with several values of lr, is no reference: its rows are there. say:
    prints which files of the runs cannot be read."""
    found = {name: [row for row in rows if row.strategy == name and row.n] for name in REFERENCES}
    accuracies = {name: of[0]["average_accuracy"].mean for name, of in found.items() if len(of) == 1}
    named = [str(row.source["run"].iat[row.first_place]) for row in rows]
    there = collection.folders(folder, named)
    guess = first_guess((there[run] for run in named if run in there), say)
    return accuracies | ({} if guess is None else {"chance": guess})


def first_guess(directories: Iterable[Path], say: Callable[[str], None]) -> float | None:
    """Return the accuracy of guessing from the first of these runs whose files can be read; None without any."""
    for run in directories:
        try:
            return guessing_accuracy(run)
        except UnreadableFile as error:
            say(f"not used for the accuracy of guessing: {error}")
    return None


def default_order(rows: Sequence[Row]) -> str:
    """Return by what rows are sorted if nothing is typed: `validation_accuracy` where there is one, else `settings`.

    It is never a test accuracy, by which the best of several settings must not be chosen.
    """
    return "validation_accuracy" if any(row["validation_accuracy"].n for row in rows) else "settings"


def settings_of(row: Row) -> list[tuple[bool, bool, float, str]]:
    """Return the values of the keys of a row as what can be sorted: numbers by size, then texts, then what is empty."""
    numbers = {key: isinstance(v, int | float) and not is_missing(v) for key, v in row.keys.items()}
    return [
        (is_missing(v), not numbers[key], float(str(v)) if numbers[key] and not isinstance(v, bool) else 0.0, text(v))
        for key, v in row.keys.items()
    ]


def ordered(rows: Sequence[Row], by: str, reverse: bool) -> list[Row]:
    """Return the rows sorted by a measure, the largest first, or by a key, the smallest first; nan is last. `settings`
    sorts by all keys, the strategy first.

    Raise UsageError if `by` is neither.
    """
    keys = list(rows[0].keys)
    if by == "settings":
        return sorted(rows, key=settings_of, reverse=reverse)
    if by not in (*MEASURES, *keys):
        raise UsageError(
            f"--sort {by}: rows are sorted by a measure or by a key in which they differ: "
            f"{', '.join(('settings', *keys, *MEASURES))}."
        )
    sorted_by = [row[by].mean if by in MEASURES else row.keys[by] for row in rows]
    order = pd.Series(sorted_by).sort_values(ascending=(by in MEASURES) == reverse, kind="stable", na_position="last")
    return [rows[i] for i in order.index]


def table(rows: Sequence[Row]) -> pd.DataFrame:
    """Return report.csv: a line per row and metric, and one for the share of the runs that have diverged."""
    lines: list[list[object]] = []
    for row in rows:
        head = [row.group, *row.keys.values()]
        lines += [[*head, name, *row[name]] for name in MEASURES if row[name].n]
        lines.append([*head, "diverged", sum(row.counts), row.diverged / sum(row.counts), None, None, None])
    names = ["group", *rows[0].keys, "metric", *Statistic._fields]
    return pd.DataFrame(dict(zip(names, zip(*lines, strict=True), strict=True)), dtype=object)
