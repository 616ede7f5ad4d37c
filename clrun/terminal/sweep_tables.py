"""The tables of a sweep on the terminal."""

from collections.abc import Sequence

import pandas as pd
from rich.console import Console
from rich.text import Text

from clrun.results.outcome import RunStatus
from clrun.terminal.console import mean_and_deviation, percent, say, titled


def runs_table(console: Console, runs: pd.DataFrame, keys: Sequence[str]) -> None:
    """Print one row a run: keys, average accuracy and forgetting in percent, status.

    runs: rows with these columns; a key is shown as it stands, nan as nothing.
    """
    table = titled("accuracy and forgetting in percent")
    for name in [*keys, "average_accuracy", "forgetting", "status"]:
        plain = name in keys or name == "status"
        table.add_column(name, justify="left" if plain else "right", overflow="fold")
    for _, row in runs.iterrows():
        measured = [percent(row[name]) for name in ("average_accuracy", "forgetting")]
        table.add_row(*(Text(plainly(row[key])) for key in keys), *measured, ended(row))
    console.print(table)


def ended(row: pd.Series) -> str:
    """Such as "diverged at task 2 step 31"."""
    return f"diverged at {row['diverged_at']}" if row["status"] == RunStatus.DIVERGED else str(row["status"])


def plainly(value: object) -> str:
    return "" if pd.isna(value) else str(value)


def sweep_table(console: Console, summaries: pd.DataFrame, varying: Sequence[str]) -> None:
    """Print one row for each combination of the varying keys other than the seed: runs, and mean ± standard deviation.

    summaries: rows with those columns, `status` and the metrics. Diverged runs have no final accuracy: they are counted
    apart.
    """
    keys = [key for key in varying if key != "seed"] or ["strategy"]
    table = titled("mean ± standard deviation in percent")
    for name in [*keys, "runs", "diverged", "average accuracy", "forgetting", "learning accuracy"]:
        table.add_column(name.replace(" ", "\n"), justify="left" if name in keys else "right", overflow="fold")
    for values, rows in summaries.groupby(keys, sort=False, dropna=False):
        diverged = (rows["status"] == RunStatus.DIVERGED).sum()
        means = [mean_and_deviation(rows[name]) for name in ("average_accuracy", "forgetting", "learning_accuracy")]
        table.add_row(*(Text(plainly(v)) for v in values), str(len(rows)), str(diverged) if diverged else "", *means)
    console.print(table)


def best_by_validation(console: Console, summaries: pd.DataFrame, varying: Sequence[str]) -> None:
    """Where several settings of a strategy were validated on one stream, say which one did best.

    Seeds are averaged over; a setting of which a run diverged is none to choose. Test accuracy chooses nothing.
    """
    keys = [key for key in varying if key != "seed"]
    for _, rows in summaries.groupby(["stream", "strategy"], sort=False):
        whole = rows.groupby(keys, sort=False, dropna=False).filter(
            lambda group: (group["status"] == RunStatus.DONE).all()
        )
        settings = whole.groupby(keys, sort=False, dropna=False)["validation_accuracy"].agg(["mean", "size"]).dropna()
        if len(settings) < 2:
            continue
        best = settings["mean"].idxmax()
        values = dict(zip(keys, best if isinstance(best, tuple) else (best,), strict=True))
        strategy, n = values["strategy"], int(settings.loc[best, "size"])
        told = " ".join(f"{key}={plainly(v)}" for key, v in values.items() if key != "strategy" and plainly(v))
        accuracy = percent(settings.loc[best, "mean"], " %")
        say(console, f"highest validation accuracy of {strategy}: {told} ({accuracy}, n = {n})")
