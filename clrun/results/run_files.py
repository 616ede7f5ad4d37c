"""The files of a run, each written under a temporary name and then renamed, so that nobody ever reads half a file."""

import csv
import io
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

import pandas as pd
import yaml

from clrun.results.columns import FILES, HASH_COLUMNS, SUMMARY_HEAD, SUMMARY_TAIL
from clrun.results.outcome import Outcome
from clrun.results.tables import (
    angles_table,
    confusion_table,
    forgetting_of,
    health_table,
    long_table,
    matrix_table,
    objects,
    over_training_table,
    summary_row,
    tasks_table,
)
from clrun.system.atomic_files import replacing, write_text
from clrun.system.errors import UsageError

SECONDS_BETWEEN_LOOKS = 5.0  # at the tables of a run that is under way


HALVES = (".*.tmp", ".tmp*")  # files that are being written: ours, and those of the library that writes tensors


# Writing


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a CSV, all or nothing: floats in full, nan and None as empty cells, lines end in a newline."""
    with replacing(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n", encoding="utf-8")


def write_config(directory: Path, nested: Mapping[str, Any]) -> None:
    """config.yaml: the checked configuration, groups nested, in the order given."""
    plain = json.loads(json.dumps(nested, default=str))
    write_text(
        directory / "config.yaml", yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, default_flow_style=None)
    )


def write_failed(directory: Path, reason: str, traceback: str) -> None:
    """failed.txt of a crashed run: the reason, an empty line, the traceback."""
    write_text(directory / "failed.txt", f"{reason.rstrip()}\n\n{traceback.rstrip()}\n")


def clear_failed(directory: Path) -> None:
    """Remove failed.txt: the run is being tried again."""
    (directory / "failed.txt").unlink(missing_ok=True)


def clear_halves(directory: Path) -> None:
    """Remove what a process that was killed has left of files that it was writing; for the owner of the run alone."""
    for path in (path for pattern in HALVES for path in directory.glob(pattern)):
        path.unlink(missing_ok=True)


def finished(directory: Path) -> bool:
    """Whether the run has ended: summary.csv is written last."""
    return (directory / "summary.csv").is_file()


def pictured(directory: Path) -> bool:
    """Whether a run's pictures are drawn: this one is drawn last."""
    return (directory / "accuracy_over_tasks.png").is_file()


def show_progress(outcome: Outcome) -> None:
    """`write_progress`, unless that was a moment ago: nobody can read faster, and tasks can be shorter than writing."""
    if monotonic() - outcome.shown_at >= SECONDS_BETWEEN_LOOKS:
        write_progress(outcome)
        outcome.shown_at = monotonic()


def write_progress(outcome: Outcome) -> None:
    """All that is known after a task: the matrices, forgetting.csv, accuracy.csv, health.csv, costs.csv, and where
    there is something to say tasks.csv and accuracy_over_training.csv."""
    directory = outcome.directory
    write_table(directory / "accuracy_matrix.csv", matrix_table(outcome.accuracy, not outcome.forgetting_defined))
    if outcome.validation is not None:
        write_table(
            directory / "validation_matrix.csv", matrix_table(outcome.validation, not outcome.forgetting_defined)
        )
    write_table(directory / "forgetting.csv", forgetting_of(outcome))
    write_table(directory / "accuracy.csv", long_table(outcome))
    write_table(directory / "health.csv", health_table(outcome.health))
    write_table(directory / "costs.csv", objects(outcome.task_costs, list(FILES["costs.csv"])))
    if outcome.task_classes is not None:
        write_table(directory / "tasks.csv", tasks_table(outcome.task_classes))
    if outcome.task_angles is not None:
        write_table(directory / "tasks.csv", angles_table(outcome.task_angles))
    if outcome.over_training is not None:
        write_table(directory / "accuracy_over_training.csv", over_training_table(outcome))


def write_final(outcome: Outcome, pictures: bool = True) -> None:
    """The files of `write_progress`, confusion.csv, the pictures, and summary.csv last: its presence is the end."""
    write_progress(outcome)
    write_confusion(outcome)
    if pictures:
        from clrun.results import plots  # matplotlib costs half a second

        plots.draw(outcome.directory)
    write_summary(outcome)


def write_confusion(outcome: Outcome) -> None:
    """Write confusion.csv, where the confusion of classes was measured."""
    if outcome.confusion is not None:
        write_table(outcome.directory / "confusion.csv", confusion_table(outcome))


def write_summary(outcome: Outcome) -> None:
    """Write summary.csv. It is the last file of a run: its presence says that the run has ended."""
    write_table(outcome.directory / "summary.csv", objects([summary_row(outcome)]))


# Tables


# Where a run was made


# Reading


def read_summary(path: Path) -> pd.DataFrame:
    """A summary.csv or results.csv as a table: hashes as text, only an empty cell is nan.

    Raises UsageError, naming the file, where it is empty or cut short.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    rows_of(path, text)
    return pd.read_csv(io.StringIO(text), dtype=dict.fromkeys(HASH_COLUMNS, str), keep_default_na=False, na_values=[""])


def summary_of(directory: Path) -> pd.Series:
    """Return the row of a finished run's summary.csv. Raises UsageError where the file is not whole."""
    return read_summary(directory / "summary.csv").iloc[0]


def rows_of(path: Path, text: str) -> list[dict[str, str]]:
    """The rows of a summary.csv or results.csv with their cells as text. Raises UsageError where it is not whole."""
    try:
        header, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    except (ValueError, csv.Error):  # no line at all, or a quotation that never ends
        header, rows = [], []
    whole = text.endswith("\n") and header[:1] == ["run"] and rows
    if not whole or any(len(row) != len(header) for row in rows):
        raise UsageError(
            f"{path} is empty or cut short; clrun never leaves such a file, so another program wrote it or the disk "
            f"failed. Delete it and type the same command again."
        )
    return [dict(zip(header, row, strict=True)) for row in rows]


def collect(outputs: Path) -> pd.DataFrame:
    """Write outputs/results.csv, all summary rows of all runs sorted by path, and return it as `read_summary` does.

    Several processes may collect at once: whoever writes looks again afterwards and writes again if a run has ended
    meanwhile, so that the last one to write has seen every run. Without any finished run nothing is written.
    Raises UsageError for a summary that is empty or cut short.
    """
    seen = None
    while seen != (present := summaries(outputs)):
        seen = present
        if present:
            write_table(outputs / "results.csv", joined(present))
    return (
        read_summary(outputs / "results.csv")
        if seen
        else pd.DataFrame(columns=[*SUMMARY_HEAD, "stream", *SUMMARY_TAIL])
    )


def summaries(outputs: Path) -> dict[Path, str]:
    """The text of every summary of a run, sorted by path."""
    texts = {}
    for path in sorted(outputs.glob("runs/*/*/summary.csv")):
        with suppress(FileNotFoundError):  # removed since it was listed: that run is being done again
            texts[path] = path.read_text(encoding="utf-8", errors="replace")
    return texts


def joined(texts: Mapping[Path, str]) -> pd.DataFrame:
    """The rows of many summaries, cells as they stand: SUMMARY_HEAD, the union of the keys between, SUMMARY_TAIL."""
    rows = [row for path, text in texts.items() for row in rows_of(path, text)]
    between = dict.fromkeys(key for row in rows for key in row if key not in (*SUMMARY_HEAD, *SUMMARY_TAIL))
    return objects(rows, [*SUMMARY_HEAD, *between, *SUMMARY_TAIL]).fillna("")
