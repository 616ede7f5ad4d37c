"""The rows of a report: groups of runs that differ in nothing but the seed, on one stream.

A diverged run has no accuracy: it is counted beside the mean, never in it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from clrun.report.intervals import Statistic, statistic
from clrun.report.runs import MEASURES, REFERENCES, directory, guessing_accuracy, keys_of
from clrun.results import tables
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
    runs: pd.DataFrame

    @cached_property
    def done(self) -> pd.DataFrame:
        """The runs that are done."""
        return self.runs[self.runs["status"] == RunStatus.DONE]

    @cached_property
    def diverged(self) -> int:
        """The number of runs that have diverged."""
        return int((self.runs["status"] == RunStatus.DIVERGED).sum())

    @cached_property
    def statistics(self) -> dict[str, Statistic]:
        """The statistic of every measure over the runs that are done."""
        return {measure: statistic(self.done[measure]) for measure in MEASURES}

    def __getitem__(self, measure: str) -> Statistic:
        return self.statistics[measure]

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
        cells = {key: text(self.runs.iloc[0][key]) for key in keys_of(self.runs)}
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
    return [
        Row(name, str(group), values(runs, keys), stream_keys, label_keys[runs.iloc[0]["strategy"]], runs)
        for group, runs in stream.groupby("group", sort=False)
    ]


def values(runs: pd.DataFrame, keys: Sequence[str]) -> dict[str, object]:
    """Return the values of these keys, which are equal in all runs of a group."""
    return {str(key): value for key, value in runs.iloc[0][list(keys)].to_dict().items()}


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
    run = rows[0].runs.iloc[0]
    parts = [text(run[key]) for key in STREAM[:2] if text(run[key])]
    parts += [f"{key} {text(run[key])}" for key in STREAM[2:] if text(run[key])]
    if text(run.get("first_tasks", "")):
        parts.append(f"the first {text(run['first_tasks'])} of them")
    shared = [key for key in rows[0].keys if key not in (*STREAM, "first_tasks", *rows[0].stream_keys)]
    parts += [f"{key}={text(run[key])}" for key in shared if not any(is_missing(row.keys[key]) for row in rows)]
    return f"{', '.join(parts)} (stream {rows[0].stream})"


def references(folder: Path, rows: Sequence[Row], say: Callable[[str], None] = announce) -> dict[str, float]:
    """Return the accuracies of joint, of finetune and of guessing (`chance`) on a stream, where they are known. say:
    prints which files of the runs cannot be read."""
    means = {row.strategy: row["average_accuracy"].mean for row in rows if len(row.done)}
    accuracies = {name: means[name] for name in REFERENCES if name in means}
    directories = (directory(folder, run) for row in rows for run in row.runs["run"][:1])
    guess = first_guess((path for path in directories if path is not None), say)
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
    lines: list[dict[str, object]] = []
    for row in rows:
        head = {"group": row.group, **row.keys}
        statistics = {measure: row[measure] for measure in MEASURES}
        lines += [{**head, "metric": name, **values._asdict()} for name, values in statistics.items() if values.n]
        ended = len(row.done) + row.diverged
        lines.append({**head, "metric": "diverged", "n": ended, "mean": row.diverged / ended})
    return tables.objects(lines, ["group", *rows[0].keys, "metric", *Statistic._fields])
