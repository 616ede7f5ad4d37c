"""The files of a run and their reading. Each file is written under a temporary name and then renamed, so that nobody
ever reads half a file."""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any, TextIO

import pandas as pd
import yaml

from clrun.results import reading, tables
from clrun.results.columns import FILES, TEXT_COLUMNS
from clrun.results.outcome import Outcome
from clrun.system.atomic_files import UNGUARDED, Guard, replacing, write_text
from clrun.system.csv_numbers import ALL_DIGITS
from clrun.system.yaml_numbers import Dumper

SECONDS_BETWEEN_WRITES = 5.0  # of the tables of a run that is under way, at least
WRITING_SHARE = 0.02  # of the time that a stack takes, at most, for tables while it is trained

# Names of files that are being written: clrun's, and those of the library that writes tensors.
TEMPORARY_FILES = (".*.tmp", ".tmp*")


# ---------------------------------------------------------------- writing


def write_table(path: Path, table: pd.DataFrame, guard: Guard = UNGUARDED) -> None:
    """Write a CSV, all or nothing: floats in full precision, nan and None as empty cells, lines end in a newline.
    guard: as of `clrun.system.atomic_files.replacing`."""
    with replacing(path, guard) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n", encoding="utf-8")


def write_config(directory: Path, nested: Mapping[str, Any], guard: Guard = UNGUARDED) -> None:
    """Write config.yaml: the checked configuration, groups nested, in the order given."""
    plain = json.loads(json.dumps(nested, default=str))
    text = yaml.dump(plain, Dumper=Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None)
    write_text(directory / "config.yaml", text, guard)


def write_failed(directory: Path, reason: str, traceback: str, guard: Guard = UNGUARDED) -> None:
    """Write failed.txt of a crashed run: the reason, an empty line, the traceback."""
    write_text(directory / "failed.txt", f"{reason.rstrip()}\n\n{traceback.rstrip()}\n", guard)


def clear_failed(directory: Path) -> None:
    """Remove failed.txt: the run is being tried again."""
    (directory / "failed.txt").unlink(missing_ok=True)


def clear_temporary_files(directory: Path) -> None:
    """Remove the files that a killed process was writing. Only the process that owns the run may call this."""
    for pattern in TEMPORARY_FILES:
        for path in directory.glob(pattern):
            path.unlink(missing_ok=True)


def write_progress_if_due(outcomes: Sequence[Outcome], clock: Callable[[], float] = monotonic) -> None:
    """Write the tables of the runs of a stack as `write_progress` does, unless they were written less than
    SECONDS_BETWEEN_WRITES ago: nobody reads faster, and a task can take less time than the writing. Where the writing
    takes long, as for many runs, it is done less often. clock: returns seconds."""
    due = max((outcome.written_at for outcome in outcomes), default=math.inf) + max(
        SECONDS_BETWEEN_WRITES, sum(outcome.writing_seconds for outcome in outcomes) / WRITING_SHARE
    )
    now = clock()
    if now < due:
        return
    for outcome in outcomes:
        began = now
        write_progress(outcome)
        outcome.written_at = now = clock()
        outcome.writing_seconds = now - began


def write_progress(outcome: Outcome) -> None:
    """Write the tables of all that has been measured so far: the matrices, forgetting.csv, accuracy.csv, health.csv and
    costs.csv, and tasks.csv, confusion_over_tasks.csv, class_accuracy.csv, probe.csv, calibration.csv, task_aware.csv,
    online_accuracy.csv and accuracy_over_training.csv where the run has such values."""
    directory, at_once, guard = outcome.directory, not outcome.forgetting_defined, outcome.guard
    empty = tables.unanswerable(outcome)
    write_table(directory / "accuracy_matrix.csv", tables.accuracy_matrix_table(outcome), guard)
    if outcome.validation_correct is not None and outcome.validation_counts is not None:
        validation = tables.matrix_table(outcome.validation_correct, outcome.validation_counts, at_once, empty)
        write_table(directory / "validation_matrix.csv", validation, guard)
    write_table(directory / "forgetting.csv", tables.forgetting_table(outcome), guard)
    write_table(directory / "accuracy.csv", tables.accuracy_table(outcome), guard)
    if len(outcome.confusions):
        write_table(directory / "confusion_over_tasks.csv", tables.confusion_over_tasks_table(outcome), guard)
        write_table(directory / "class_accuracy.csv", tables.class_accuracy_table(outcome), guard)
    write_table(directory / "health.csv", tables.health_table(outcome.health), guard)
    write_table(directory / "costs.csv", tables.objects(outcome.task_costs, list(FILES["costs.csv"])), guard)
    if outcome.task_classes is not None:
        write_table(directory / "tasks.csv", tables.classes_table(outcome.task_classes, outcome.task_domains), guard)
    if outcome.class_counts is not None:
        write_table(directory / "class_counts.csv", tables.class_counts_table(outcome.class_counts), guard)
    if outcome.task_angles is not None:
        write_table(directory / "tasks.csv", tables.angles_table(outcome.task_angles), guard)
    if outcome.probe_correct is not None:
        write_table(directory / "probe.csv", tables.probe_table(outcome), guard)
    if outcome.calibration is not None:
        write_table(
            directory / "calibration.csv", tables.objects(outcome.calibration, list(FILES["calibration.csv"])), guard
        )
    if outcome.task_aware is not None:
        write_table(
            directory / "task_aware.csv", tables.objects(outcome.task_aware, list(FILES["task_aware.csv"])), guard
        )
    if outcome.online is not None:
        write_table(directory / "online_accuracy.csv", tables.online_table(outcome.online), guard)
    if outcome.over_training is not None:
        write_table(directory / "accuracy_over_training.csv", tables.over_training_table(outcome), guard)


def write_confusion(outcome: Outcome) -> None:
    """Write confusion.csv, where the confusion of classes was measured, and predictions.csv where it is wanted."""
    if outcome.predictions is not None:
        write_table(outcome.directory / "predictions.csv", tables.predictions_table(outcome), outcome.guard)
    if outcome.confusion is not None:
        table = tables.confusion_table(outcome.class_names, outcome.confusion)
        write_table(outcome.directory / "confusion.csv", table, outcome.guard)


def write_summary(outcome: Outcome) -> None:
    """Write summary.csv. It is the last file of a run: its presence says that the run has ended."""
    write_table(outcome.directory / "summary.csv", tables.summary_table(outcome), outcome.guard)


# ---------------------------------------------------------------- what is there


def finished(directory: Path) -> bool:
    """Return whether the run has ended: summary.csv is written last. Something else at its place counts too, since a
    damaged run is never trained over without a word."""
    return os.path.lexists(directory / "summary.csv")


def keeps_checkpoint(directory: Path) -> bool:
    """Return whether the command that trained a run was to keep its checkpoint, by config.yaml; True where that cannot
    be read."""
    try:
        config = reading.read_config(directory)
        return config["keep_checkpoint"] not in (False, "auto")  # auto keeps the network alone
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError):
        return True


def has_plots(directory: Path) -> bool:
    """Return whether the plots of a run are drawn: this one is drawn last."""
    return (directory / "accuracy_over_tasks.png").is_file()


# ---------------------------------------------------------------- reading


def read_summary(path: Path) -> pd.DataFrame:
    """Return a summary.csv or results.csv as a table: TEXT_COLUMNS as text, and only an empty cell is nan.

    Raise UnreadableFile, naming the file, where it is not whole.
    """
    if path.name == "summary.csv":
        return reading.read_summary(path)
    return reading.read_results(path)


def table_of(file: TextIO) -> pd.DataFrame:
    """Return the content of a summary.csv or results.csv, which is whole, as a table."""
    texts = dict.fromkeys(TEXT_COLUMNS, str)  # read at once: in pieces, the cells of a column would differ in kind
    return pd.read_csv(file, dtype=texts, keep_default_na=False, na_values=[""], low_memory=False, **ALL_DIGITS)


def summary_of(directory: Path) -> pd.Series:
    """Return the row of a finished run's summary.csv. Raise UnreadableFile where the file is not whole."""
    return read_summary(directory / "summary.csv").iloc[0]
