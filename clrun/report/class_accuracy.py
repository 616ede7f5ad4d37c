"""The accuracy on each class after the last task, over the seeds: `clrun-report --classes`.

The accuracy on a class is the share of its test samples that a run classifies correctly, over all tasks that have the
class (with split=permuted, these are all tasks). It is the recall of the class; the mean over the classes is the
balanced accuracy.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from clrun.report.intervals import Statistic, statistic
from clrun.report.rows import Row
from clrun.report.tables import labels_of, statistic_text, without_empty_columns
from clrun.results import collection
from clrun.results.reading import UnreadableFile, read_table
from clrun.results.tables import natural
from clrun.system.errors import UsageError
from clrun.system.messages import announce

NAME = "class_accuracy.csv"  # of a run, and in the folder of results

BOUNDS = (0.0, 1.0)

Classes = dict[str, Statistic]  # name of a class -> its accuracy over the seeds of a row


def measured(folder: Path, rows: Sequence[Row]) -> list[Classes]:
    """Return the accuracy on each class of each row, over its runs that are done. Runs of versions that did not write
    class_accuracy.csv are left out, and so, after saying so, are files that cannot be read. Raise UsageError where no
    run has one."""
    places = collection.folders(folder, [str(run) for row in rows for run in row.done["run"].dropna()])
    found = []
    for row in rows:
        runs = [of_run(places[str(run)] / NAME) for run in row.done["run"].dropna() if str(run) in places]
        table = pd.DataFrame([run for run in runs if run is not None])
        found.append({name: statistic(table[name], BOUNDS) for name in sorted(map(str, table), key=natural)})
    if not any(found):
        raise UsageError(
            f"--classes: no run in {folder} has a class_accuracy.csv, which earlier versions did not write; rerun=true "
            "trains a run again."
        )
    return found


def of_run(path: Path) -> dict[str, float] | None:
    """Return the accuracy of a run on each class after its last task; None where there is no such file, or where it
    cannot be read, which is said."""
    if not path.is_file():
        return None
    try:
        table = read_table(path)
    except UnreadableFile as error:
        announce(f"left out of the accuracy by class: {error}")
        return None
    last = table[table["after_task"] == table["after_task"].max()]
    sums = last.groupby(last["class"].astype(str), sort=False)[["correct", "n"]].sum()
    return (sums["correct"] / sums["n"]).to_dict()


def table(rows: Sequence[Row], classes: Sequence[Classes]) -> pd.DataFrame:
    """Return a line for each row and class: group, stream, label, class, and the fields of `Statistic`."""
    lines = [
        {"stream": row.stream, "group": row.group, "label": row.label, "class": name, **found._asdict()}
        for row, of_row in zip(rows, classes, strict=True)
        for name, found in of_row.items()
    ]
    return pd.DataFrame(lines)


def for_readers(rows: Sequence[Row], classes: Sequence[Classes]) -> pd.DataFrame:
    """Return the table of one stream for readers: a line for each row, a column for each class, in percent."""
    names = sorted({name for of_row in classes for name in of_row}, key=natural)
    lines = [
        labels_of(row)
        | {f"class {name}": statistic_text("average_accuracy", of_row[name]) for name in names if name in of_row}
        for row, of_row in zip(rows, classes, strict=True)
    ]
    return without_empty_columns(lines)
