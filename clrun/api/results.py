"""What runs have measured, as tables of pandas and figures of Matplotlib: `clrun.load`."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from clrun.config import catalog
from clrun.report import compare, own_metric, rows, tables
from clrun.report.own_metric import Metric
from clrun.report.rows import Row
from clrun.report.runs import MEASURES, read
from clrun.results import collection
from clrun.results.reading import UnreadableFile, read_table
from clrun.system.errors import UsageError
from clrun.system.messages import announce

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The types of columns, by the types of keys.
DTYPES = {"int": "Int64", "int_by_task": "Int64", "bool": "boolean"}

COUNTS = ("stack_size", "threads", "sample_count")  # columns of whole numbers besides keys

# The columns that say of which run a line of a table is: its identity, the label of its row, strategy and seed.
WHICH = ("run", "label", "strategy", "seed")


def load(
    folder: str | Path = "outputs", trials: bool = False, metrics: Mapping[str, Metric] | None = None
) -> "Results":
    """Return what the finished runs in a folder of results have measured.

    folder: what `outputs=` named. trials: whether the runs are among them that `clrun-tune` has trained in searches.
    metrics: columns of `.runs` by name, each a function of the `predictions.csv` of a run (`predictions=true`) that
    returns a number. Raise UsageError where there are no finished runs, and for a name that is taken or a metric that
    fails.
    """
    path = Path(folder).expanduser()
    runs = read(path, say=announce, trials=trials)
    own = pd.DataFrame(index=runs.index)
    for name, metric in (metrics or {}).items():
        if name in runs:
            raise UsageError(f"metrics: there is a column {name} already; give yours another name.")
        own[name] = own_metric.measured(path, runs, metric)[own_metric.NAME]
    return Results(path, runs, own.assign(run=runs["run"]))


def typed(runs: pd.DataFrame) -> pd.DataFrame:
    """Return a table of runs in which keys and counts of whole numbers are Int64, and keys that are true or false are
    boolean, also where some are missing. Other numbers are floats, with nan where they are missing."""
    keys = catalog.read()
    kinds = {name: keys.type_of(str(name)) for name in runs} | dict.fromkeys(COUNTS, "int")
    dtypes = {name: DTYPES[kind] for name, kind in kinds.items() if name in runs and kind in DTYPES}
    return runs.astype({name: dtype for name, dtype in dtypes.items() if can_be(runs[name], dtype)})


def can_be(column: pd.Series, dtype: str) -> bool:
    """Return whether a column can have a type: not where a table made by hand has words in it."""
    try:
        column.astype(dtype)  # type: ignore[call-overload]
    except (TypeError, ValueError):
        return False
    return True


@dataclass(frozen=True, eq=False)
class Results:
    """What runs have measured. Accuracies are fractions."""

    folder: Path
    read_runs: pd.DataFrame  # as clrun/report/runs.py reads them
    own: pd.DataFrame = field(default_factory=lambda: pd.DataFrame({"run": []}))  # metrics of the user's, by run

    def __len__(self) -> int:
        return len(self.read_runs)

    @cached_property
    def runs(self) -> pd.DataFrame:
        """A line for each run: its keys, metrics and costs, what compares it with joint and finetune, and your own
        metrics."""
        own = self.own.set_index("run")
        found = typed(self.read_runs)
        return found.assign(**{str(name): found["run"].map(own[name]) for name in own})

    def of(self, runs: Collection[str]) -> "Results":
        """Return the results of some runs alone, which their identities name."""
        return replace(self, read_runs=self.read_runs[self.runs["run"].isin(list(runs))].reset_index(drop=True))

    # ------------------------------------------------------------ tables of the runs

    @cached_property
    def accuracy(self) -> pd.DataFrame:
        """The accuracy matrices: a line for each run, number of tasks learnt (`after_task`), and task (`eval_task`)."""
        return self.lines("accuracy.csv")

    @cached_property
    def forgetting(self) -> pd.DataFrame:
        """Forgetting and transfer: a line for each run and task."""
        found = self.lines("forgetting.csv")
        tasks = found[found["task"].astype(str) != "average"] if len(found) else found
        return tasks.assign(task=tasks["task"].astype(int)).reset_index(drop=True) if len(tasks) else tasks

    @cached_property
    def health(self) -> pd.DataFrame:
        """What each strategy did: a line for each run and task. Columns that a strategy does not have are empty."""
        return self.lines("health.csv")

    @cached_property
    def costs(self) -> pd.DataFrame:
        """Seconds, samples and energy: a line for each run and task; task 0 is the evaluation before any training."""
        return self.lines("costs.csv")

    @cached_property
    def training(self) -> pd.DataFrame:
        """Accuracy within the tasks, of the runs with `evaluate_every`: a line for each run, step and task."""
        return self.lines("accuracy_over_training.csv")

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """The answers to all test samples, of the runs with `predictions=true`: a line for each run, number of tasks
        learnt, and sample."""
        return self.lines("predictions.csv")

    def lines(self, file: str) -> pd.DataFrame:
        """Return this file of all runs in one table, after the columns WHICH. A run without it has no lines; a file
        that cannot be read is left out, which is said."""
        named = self.read_runs[["run", "group", "strategy", "seed"]]  # a part: pandas warns of a table in many pieces
        which = named.assign(label=named["group"].map(self.labels))[list(WHICH)]
        found = [with_names(table, names) for names, table in zip(*self.read(which, file), strict=True)]
        return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=list(WHICH))

    def read(self, which: pd.DataFrame, file: str) -> tuple[list[dict[str, object]], list[pd.DataFrame]]:
        """Return of each run that has this file what it is, by the columns of `which`, and the content."""
        named, contents = list[dict[str, object]](), list[pd.DataFrame]()
        for names in which.to_dict("records"):
            path = self.directories.get(str(names["run"]), Path()) / file
            if not path.is_file():
                continue
            try:
                contents.append(read_table(path))
                named.append({str(name): value for name, value in names.items()})
            except UnreadableFile as error:
                announce(f"left out: {error}")
        return named, contents

    @cached_property
    def directories(self) -> dict[str, Path]:
        """The folders of the runs, by identity."""
        return collection.folders(self.folder, self.runs["run"].astype(str).tolist())

    # ------------------------------------------------------------ statistics over the seeds

    @cached_property
    def rows(self) -> list[Row]:
        """The rows of the report: runs that differ in nothing but the seed, stream by stream."""
        return rows.rows_of(self.read_runs) if len(self) else []

    @cached_property
    def labels(self) -> dict[str, str]:
        """What each group is called, such as 'ewc lambda=100'."""
        return {row.group: row.label for row in self.rows}

    @property
    def report(self) -> pd.DataFrame:
        """Mean, standard deviation and 95 % interval over the seeds: a line for each row and measure, as report.csv."""
        return rows.table(self.rows).infer_objects()

    def compare(self, first: str, second: str, measure: str = "average_accuracy") -> pd.DataFrame:
        """Return the difference of two rows, paired by seed, in each stream that has both: a line as in comparison.csv.

        first, second: as after `clrun-report --compare`, such as "ewc lambda=100". Raise UsageError.
        """
        if measure not in MEASURES:
            raise UsageError(f"measure={measure}: there are {', '.join(MEASURES)}.")
        return compare.table(compare.compared(self.rows, first, second, measure)).infer_objects()

    # ------------------------------------------------------------ figures

    @property
    def streams(self) -> dict[str, str]:
        """The streams of the runs: identity, and what it is called."""
        return {part[0].stream: rows.heading(part) for part in rows.streams(self.rows)}

    def figures(self, stream: str | None = None) -> "dict[str, Figure]":
        """Return the figures of a report by name, such as "average_accuracy" or "accuracy_against_cost".

        stream: which stream, where the runs are of several. Raise UsageError.
        """
        from clrun.report import figures

        part = [row for row in self.rows if stream in (None, row.stream)]
        if not part or len({row.stream for row in part}) > 1:
            listed = "; ".join(f"stream={name!r} ({called})" for name, called in self.streams.items())
            raise UsageError(f"figures are of one stream: type one of {listed or 'those that have finished runs'}.")
        return ready(figures.figures(figures.figure_data(self.folder, part)))

    def run_figures(self, run: str) -> "dict[str, Figure]":
        """Return the plots of a run, which its identity names: "accuracy_matrix" and "accuracy_over_tasks". Raise
        UsageError, and UnreadableFile."""
        from clrun.results import plots

        if run not in self.directories:
            raise UsageError(f"there is no run {run!r} here; the column run of .runs lists them.")
        return ready(plots.figures(self.directories[run]))

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the table of accuracies of each stream, over the seeds."""
        parts = rows.streams(self.rows)
        shown = [
            f"<p>{escape(rows.heading(part))}</p>{tables.accuracies(part, 'average_accuracy').to_html(index=False)}"
            for part in parts
        ]
        return "".join(shown) or "<p>no finished runs</p>"


def with_names(table: pd.DataFrame, names: dict[str, object]) -> pd.DataFrame:
    """Return a table with these columns in front, each of one value."""
    rest = table.drop(columns=[name for name in names if name in table])
    return pd.concat([pd.DataFrame(names, index=rest.index), rest], axis=1)


def ready(figures: "dict[str, Figure]") -> "dict[str, Figure]":
    """Return figures whose texts stand as they are, in fonts that have their letters: as they are saved by clrun."""
    from clrun.results import fonts, plots

    for figure in figures.values():
        plots.plain_text(figure)
        fonts.choose(figure)
    return figures
