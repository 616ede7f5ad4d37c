"""The tables of a sweep on the terminal."""

from collections.abc import Sequence

import pandas as pd
from rich.console import Console

from clrun.results.outcome import RunStatus
from clrun.results.tables import is_missing
from clrun.terminal.console import mean_and_deviation, percent, print_line
from clrun.terminal.fitting import Cells, Column, print_table


def runs_table(console: Console, runs: pd.DataFrame, keys: Sequence[str]) -> None:
    """Print one row per run: keys, average accuracy and forgetting in percent, status.

    runs: rows of summary.csv, with the keys as text; nan is shown as nothing.
    """
    print_table(console, runs_cells(runs, keys))


def runs_cells(runs: pd.DataFrame, keys: Sequence[str]) -> Cells:
    """Return the table that `runs_table` prints."""
    columns = [Column(name, text=True) for name in keys]
    columns += [Column("average_accuracy"), Column("forgetting"), Column("status", text=True)]
    rows = []
    for _, row in runs.iterrows():
        measured = [percent(row[name]) for name in ("average_accuracy", "forgetting")]
        rows.append([*(key_text(row[key]) for key in keys), *measured, status_text(row)])
    return Cells("accuracy and forgetting in percent", columns, rows, labels=len(keys))


def status_text(row: pd.Series) -> str:
    """Return the status of a run, such as "done" or "diverged at task 2 step 31"."""
    return f"diverged at {row['diverged_at']}" if row["status"] == RunStatus.DIVERGED else str(row["status"])


def key_text(value: object) -> str:
    """Return the value of a key, which is text already; '' where the strategy does not take the key."""
    return "" if is_missing(value) else str(value)


def sweep_table(console: Console, summaries: pd.DataFrame, varying: Sequence[str]) -> None:
    """Print one row for each combination of the varying keys other than the seed: runs, and mean ± standard deviation.

    summaries: rows of summary.csv. Diverged runs have no final accuracy: they are counted in a column of their own.
    """
    print_table(console, sweep_cells(summaries, varying))


def sweep_cells(summaries: pd.DataFrame, varying: Sequence[str]) -> Cells:
    """Return the table that `sweep_table` prints."""
    keys = [key for key in varying if key != "seed"] or ["strategy"]
    measures = ["runs", "diverged", "average accuracy", "forgetting", "learning accuracy"]
    columns = [Column(name, text=True) for name in keys] + [Column(name.replace(" ", "\n")) for name in measures]
    lines = []
    for values, rows in summaries.groupby(keys, sort=False, dropna=False):
        diverged = (rows["status"] == RunStatus.DIVERGED).sum()
        means = [mean_and_deviation(rows[name]) for name in ("average_accuracy", "forgetting", "learning_accuracy")]
        lines.append([*(key_text(v) for v in values), str(len(rows)), str(diverged) if diverged else "", *means])
    return Cells("mean ± standard deviation in percent", columns, lines, labels=len(keys))


def best_by_validation(console: Console, summaries: pd.DataFrame, varying: Sequence[str]) -> None:
    """Print, for each strategy of which several settings were validated on one stream, the setting with the highest
    validation accuracy, averaged over the seeds.

    A setting of which a run has diverged is left out. The test accuracy has no influence.
    """
    keys = [key for key in varying if key != "seed"]
    for _, rows in summaries.groupby(["stream", "strategy"], sort=False):
        settings = validated_settings(rows, keys)
        if len(settings) >= 2:
            best = settings.iloc[int(settings["mean"].argmax())]
            others = [key for key in keys if key != "strategy" and key_text(best[key])]
            text = " ".join(f"{key}={key_text(best[key])}" for key in others)
            accuracy = f"({percent(best['mean'], ' %')}, n = {best['size']})"
            print_line(console, f"highest validation accuracy of {best['strategy']}: {text} {accuracy}")


def validated_settings(rows: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Return a row per combination of the keys all of whose runs are done: the keys, and of the validation accuracy the
    columns `mean` and `size` (the number of runs)."""
    done = rows.groupby(list(keys), sort=False, dropna=False).filter(
        lambda group: (group["status"] == RunStatus.DONE).all()
    )
    accuracies = done.groupby(list(keys), sort=False, dropna=False)["validation_accuracy"].agg(["mean", "size"])
    return accuracies.dropna().reset_index()
