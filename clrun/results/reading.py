"""The reading of CSV files that clrun wrote, and that something else may have damaged since.

A file is read whole or refused with a sentence: `UnreadableFile` names it and says what is wrong. What a spreadsheet
does to a file and leaves no doubt about is read as it was meant: a byte-order mark, semicolons between the cells, and
other ends of lines. Numbers with a comma are refused, since they may mean thousands.
"""

import csv
import io
import math
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from clrun.results import metrics
from clrun.results.columns import COSTS, OVERALL_METRICS, SUMMARY_HEAD, SUMMARY_TAIL, SUMMARY_TEXTS, TEXT_COLUMNS
from clrun.system import locks
from clrun.system.csv_numbers import ALL_DIGITS
from clrun.system.errors import RunsFailed
from clrun.system.yaml_numbers import Loader

UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # the first bytes of a file, in either order of bytes

TASKS = r"^task_\d+$"  # the columns of an accuracy matrix that are accuracies on tasks

MOST_TASKS = 5000  # of a run of an earlier version; more in its accuracy.csv are damage

COUNTS = ("seed", "tasks", "first_tasks")  # columns of a summary; the last one is empty where all tasks are learnt

SHARES = r"\w+_accuracy|accuracy_auc"  # a pattern of the columns of a summary that hold numbers from 0 to 1

LARGEST = 1e30  # of any number in a summary: seconds, bytes, samples

STATUSES = ("done", "diverged")  # of a run that has ended

NO_FINAL_ACCURACY = "it has no accuracy after the last task, and summary.csv says that the run is done"  # of a matrix


class UnreadableFile(RunsFailed):
    """A file of clrun's that cannot be read. Its text is one paragraph: which file, why, and what to type."""

    def __init__(self, path: Path, cause: str, advice: str | None = None) -> None:
        super().__init__(f"{path} cannot be read: {cause}. {advice or advice_on(path)}")
        self.path, self.cause = path, cause


class BeingTrained(UnreadableFile):
    """A finished run that another process trains again, so that its tables are not those of one training."""

    def __init__(self, directory: Path, owner: locks.Owner) -> None:
        super().__init__(directory, f"{owner} is training this run again", "Wait for that one, or end it.")


def advice_on(path: Path) -> str:
    """Return what to do about a file of a run."""
    return (
        f"Type the run's command with rerun=true, or delete the folder {path.parent} and type the same command again, "
        "to train this run anew."
    )


@dataclass(frozen=True)
class Layout:
    """What a file of a run must have to be read."""

    required: tuple[str, ...]  # columns; `task_1` stands for task_1, task_2 ... without a gap
    unique: tuple[str, ...]  # columns that are not equal in two rows
    texts: tuple[str, ...] = ()  # columns that may hold words; all others hold numbers
    shares: str = r"(online_)?accuracy"  # a pattern of the columns that hold numbers from 0 to 1


MATRIX = Layout(("after_task", "task_1", "average"), ("after_task",), shares=r"task_\d+|average|overall")
LAYOUTS = {
    "accuracy_matrix.csv": MATRIX,
    "validation_matrix.csv": MATRIX,
    "forgetting.csv": Layout(("task",), ("task",), ("task",)),
    "accuracy_over_training.csv": Layout(
        ("step", "stage", "eval_task", "accuracy"), ("step", "stage", "eval_task"), ("run",)
    ),
    # names of classes may stand several times: with split=permuted, each task has outputs of its own for them
    "confusion.csv": Layout(("true_class", "predicted_class", "count"), (), ("true_class", "predicted_class")),
    "confusion_over_tasks.csv": Layout(
        ("after_task", "eval_task", "true_class", "predicted_class", "count", "true_output", "predicted_output"),
        ("after_task", "eval_task", "true_output", "predicted_output"),
        ("true_class", "predicted_class"),
    ),
    "predictions.csv": Layout(
        ("after_task", "eval_task", "sample", "true_class", "predicted_class", "true_output", "predicted_output"),
        ("after_task", "eval_task", "sample"),
        ("true_class", "predicted_class"),
    ),
    "accuracy.csv": Layout(
        ("run", "after_task", "eval_task", "correct", "n", "accuracy"), ("after_task", "eval_task"), ("run", "strategy")
    ),
    "online_accuracy.csv": Layout(("task", "samples", "correct", "online_accuracy"), ("task",), ("task",)),
    "probe.csv": Layout(("after_task", "eval_task", "probe_accuracy"), ("after_task", "eval_task")),
    "class_accuracy.csv": Layout(
        ("after_task", "eval_task", "class", "output", "correct", "n", "accuracy"),
        ("after_task", "eval_task", "output"),
        ("class",),
    ),
    "class_counts.csv": Layout(("task", "class", "of_task", "samples"), ("task", "class", "of_task"), ("class",)),
    "health.csv": Layout(("task",), ("task",)),
    "costs.csv": Layout(("task",), ("task",)),
    "tasks.csv": Layout(("task",), (), ("class", "domain")),
}


# ---------------------------------------------------------------- bytes and text


def read_bytes(path: Path) -> bytes:
    """Return the content of a file. Raise UnreadableFile if there is none, or if it cannot be opened."""
    try:
        refuse_no_file(path)
        return path.read_bytes()
    except OSError as error:
        raise UnreadableFile(path, reason_of(path, error)) from None


def refuse_no_file(path: Path) -> None:
    """Raise UnreadableFile if there is something that is neither a file nor a folder, and OSError if there is nothing.

    A pipe would be waited for, and some devices never end.
    """
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UnreadableFile(path, "it is a pipe, a socket or a device, and no file")


def reason_of(path: Path, error: OSError) -> str:
    """Return why a file cannot be opened, as a clause."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "it is missing"
    return "it is a folder" if path.is_dir() else (error.strerror or str(error)).lower()


def read_text(path: Path) -> str:
    """Return a text in UTF-8 without its byte-order mark. Raise UnreadableFile."""
    return decoded(path, read_bytes(path))


def decoded(path: Path, content: bytes) -> str:
    """Return the content of a file as text, without a byte-order mark. Raise UnreadableFile if it is none in UTF-8."""
    if not content:
        raise UnreadableFile(path, "it is empty")
    if content.startswith(UTF_16):
        raise UnreadableFile(path, "it is in UTF-16, as a spreadsheet saves it, and not in UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UnreadableFile(path, "it is not a text in UTF-8") from None
    if "\0" in text:
        raise UnreadableFile(path, "it holds bytes that are no text")
    return text


# ---------------------------------------------------------------- rows


def rows_of(path: Path, text: str) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of a CSV, as text. Raise UnreadableFile where it is not whole."""
    first = text.partition("\n")[0]
    delimiter = ";" if ";" in first and "," not in first else ","
    try:
        lines = list(csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter))
    except csv.Error:  # a quotation that never ends, or goes on behind its end
        raise UnreadableFile(path, "it is cut short, or its quotation marks are wrong") from None
    while lines and not lines[-1]:  # empty lines that an editor has left at the end
        lines.pop()
    if not text.endswith(("\n", "\r")) or len(lines) < 2 or not any(lines[0]):
        raise UnreadableFile(path, "it is cut short" if lines else "it is empty")
    header, *rows = lines
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise UnreadableFile(path, f"line {number} has {len(row)} cells, and the first line has {len(header)}")
    twice = [name for name in header if header.count(name) > 1]
    if twice:
        raise UnreadableFile(path, f"it has two columns {twice[0]}")
    return header, rows


def refuse_missing(path: Path, header: Sequence[str], required: Sequence[str]) -> None:
    """Raise UnreadableFile where a column is not there."""
    missing = [name for name in required if name not in header]
    if missing:
        raise UnreadableFile(path, f"it has no column {missing[0]}")


def refuse_words(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[str]) -> None:
    """Raise UnreadableFile where a cell of one of these columns is neither a number nor empty."""
    for name in (name for name in numbers if name in header):
        column = header.index(name)
        for number, row in enumerate(rows, start=2):
            if not is_number(row[column]):
                raise UnreadableFile(path, f"line {number} has {name}={row[column][:40]}, which is no number")


def is_number(cell: str) -> bool:
    """Return whether a cell is empty or a number, in the way in which clrun writes numbers."""
    if not cell:
        return True
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell


def refuse_other_shares(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]], shares: str) -> None:
    """Raise UnreadableFile where a cell of the columns that match a pattern is neither empty nor from 0 to 1, such as
    981 for 0.981 from a spreadsheet that takes the point for a separator of thousands."""
    for column in (column for column, name in enumerate(header) if re.fullmatch(shares, name)):
        for number, row in enumerate(rows, start=2):
            if row[column] and not 0 <= float(row[column]) <= 1:
                raise UnreadableFile(path, f"line {number} has {header[column]}={row[column][:40]}, and not 0 to 1")


def refuse_other_sizes(path: Path, header: Sequence[str], row: Sequence[str], numbers: Sequence[str]) -> None:
    """Raise UnreadableFile where a cell of one of these columns is infinite, or too large for statistics, or where a
    cost is negative."""
    for name, cell in zip(header, row, strict=True):
        least = 0 if name in COSTS else -LARGEST
        if name in numbers and cell and not least <= float(cell) <= LARGEST:
            raise UnreadableFile(path, f"it has {name}={cell[:40]}, which cannot be")


def refuse_other_counts(path: Path, header: Sequence[str], row: Sequence[str]) -> None:
    """Raise UnreadableFile where a summary has something else than whole numbers as its seed and its tasks."""
    for name in (name for name in COUNTS if name in header):
        cell = row[header.index(name)]
        if not re.fullmatch(r"\d{1,18}", cell) and (cell or name != "first_tasks"):
            raise UnreadableFile(path, f"it has {name}={cell[:40]}, which is no whole number")


def refuse_twice(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]], unique: Sequence[str]) -> None:
    """Raise UnreadableFile where two rows are equal in all these columns."""
    columns, seen = [header.index(name) for name in unique], dict[tuple[str, ...], int]()
    for number, row in enumerate(rows, start=2):
        key = tuple(row[column] for column in columns)
        if key in seen:
            raise UnreadableFile(path, f"lines {seen[key]} and {number} are of the same {' and '.join(unique)}")
        seen[key] = number


def table_of(header: Sequence[str], rows: Sequence[Sequence[str]], texts: Sequence[str]) -> pd.DataFrame:
    """Return rows as a table, in which columns named in `texts` hold text and only an empty cell is nan."""
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\n").writerows([header, *rows])
    buffer.seek(0)
    texts_only = dict.fromkeys(texts, str)
    return pd.read_csv(
        buffer, dtype=texts_only, keep_default_na=False, na_values=[""], skip_blank_lines=False, **ALL_DIGITS
    )


# ---------------------------------------------------------------- the files of a run


def read_table(path: Path) -> pd.DataFrame:
    """Return one of the files `LAYOUTS` as a table; only an empty cell is nan. Raise UnreadableFile."""
    layout = LAYOUTS[path.name]
    header, rows = rows_of(path, read_text(path))
    refuse_missing(path, header, layout.required)
    refuse_words(path, header, rows, [name for name in header if name not in layout.texts])
    refuse_other_shares(path, header, rows, layout.shares)
    if layout.unique:
        refuse_twice(path, header, rows, layout.unique)
    if layout is MATRIX:
        refuse_other_shape(path, header, rows)
    if path.name == "confusion.csv" and math.isqrt(len(rows)) ** 2 != len(rows):
        raise UnreadableFile(path, f"it has {len(rows)} rows, and not one for each pair of classes")
    return table_of(header, rows, layout.texts)


def refuse_other_shape(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Raise UnreadableFile where an accuracy matrix has not a row 0 and then a row and a column for each task."""
    tasks = [name for name in header if re.fullmatch(TASKS, name)]
    others = [name for name in header if name not in tasks]
    numbered = tasks == [f"task_{k + 1}" for k in range(len(tasks))]
    if not numbered or others not in (["after_task", "average"], ["after_task", "average", "overall"]):
        raise UnreadableFile(path, f"its columns are {', '.join(header)[:80]}, and not those of an accuracy matrix")
    after = [row[header.index("after_task")] for row in rows]
    if after != [str(k) for k in range(len(tasks) + 1)]:
        raise UnreadableFile(path, f"it has {len(tasks)} tasks, and not one row for each of them, in their order")


def read_summary(path: Path) -> pd.DataFrame:
    """Return a summary.csv as a table of one row: TEXT_COLUMNS as text, and only an empty cell is nan. A column that an
    older version of clrun did not write is empty. Raise UnreadableFile."""
    header, row = summary_row(path, read_bytes(path))
    table = table_of(header, [row], TEXT_COLUMNS)
    return table.reindex(columns=list(dict.fromkeys([*header, *SUMMARY_TAIL])))


def read_results(path: Path) -> pd.DataFrame:
    """Return a results.csv, written by clrun or by hand, as `read_summary` does. Raise UnreadableFile."""
    try:
        header, rows = rows_of(path, read_text(path))
        refuse_missing(path, header, ["run"])
    except UnreadableFile as error:
        advice = "Delete it and type the same command again, which writes it anew from the folders of the runs."
        raise UnreadableFile(path, error.cause, advice) from None
    return table_of(header, rows, TEXT_COLUMNS)


def summary_row(path: Path, content: bytes) -> tuple[list[str], list[str]]:
    """Return the header and the row of a summary.csv with this content, as text. Raise UnreadableFile."""
    header, rows = rows_of(path, decoded(path, content))
    refuse_missing(path, header, [*SUMMARY_HEAD, "stream"])
    if len(rows) > 1:
        raise UnreadableFile(path, f"it has {len(rows)} rows, and a run has one")
    numbers = [name for name in SUMMARY_TAIL if name not in SUMMARY_TEXTS]
    refuse_words(path, header, rows, numbers)
    refuse_other_shares(path, header, rows, SHARES)
    refuse_other_sizes(path, header, rows[0], numbers)
    refuse_other_counts(path, header, rows[0])
    status = rows[0][header.index("status")]
    if status not in STATUSES:
        raise UnreadableFile(path, f"its status is {status[:40] or 'empty'}, and not done or diverged")
    added = overall_of_counts(path.with_name("accuracy.csv"), header, rows[0])
    return [*header, *added], [*rows[0], *added.values()]


# ---------------------------------------------------------------- what earlier versions did not write


def overall_of_counts(path: Path, header: Sequence[str], row: Sequence[str]) -> dict[str, str]:
    """Return the cells OVERALL_METRICS that an earlier version did not write into a summary.csv, from the numbers of
    samples in accuracy.csv, at `path`; none where the summary has them, or where that file cannot be read."""
    missing = [name for name in OVERALL_METRICS if name not in header]
    if not missing:
        return {}
    try:
        correct, counts, learnt = counts_of(path)
    except UnreadableFile:  # the other metrics of the run are there, and a report says which file is damaged
        return {}
    incremental = bool(dict(zip(header, row, strict=True)).get("average_incremental_accuracy"))
    values = metrics.overall_metrics(correct, counts, incremental, learnt)
    return {name: "" if math.isnan(values[name]) else repr(values[name]) for name in missing}


def counts_of(path: Path) -> tuple[np.ndarray, np.ndarray, int]:
    """Return what an accuracy.csv says: correct samples (T+1, T), -1 where not measured, all samples (T,), and how many
    tasks an earlier run has learnt. Raise UnreadableFile."""
    header, rows = rows_of(path, read_text(path))
    names = ("after_task", "eval_task", "correct", "n")
    refuse_missing(path, header, names)
    try:
        columns = [[int(row[header.index(name)]) for row in rows] for name in names]
    except ValueError:
        raise UnreadableFile(path, "it has counts that are no whole numbers") from None
    after, task, right, samples = columns
    if min(after) < 0 or min(task) < 1:
        raise UnreadableFile(path, "it has tasks that are not numbered from 1")
    tasks = max(*after, *task)
    if tasks > MOST_TASKS:
        raise UnreadableFile(path, f"it has a task {tasks}")
    correct, counts = np.full((tasks + 1, tasks), -1), np.zeros(tasks, int)
    correct[after, np.array(task) - 1] = right
    counts[np.array(task) - 1] = samples
    return correct, counts, min(after)


# ---------------------------------------------------------------- files that contradict each other


def refuse_contradiction(directory: Path) -> None:
    """Raise UnreadableFile where the accuracy matrix of a finished run says something else than its summary.csv, or
    where one of the two cannot be read; it is BeingTrained where another process trains the run again meanwhile."""
    try:
        refuse_contradictory_tables(directory)
    except UnreadableFile:
        refuse_while_trained(directory)
        raise


def refuse_while_trained(directory: Path) -> None:
    """Raise BeingTrained where another process is training a run."""
    owner = locks.holder(directory)
    if owner is not None:
        raise BeingTrained(directory, owner) from None


def refuse_contradictory_tables(directory: Path) -> None:
    """Raise UnreadableFile as `refuse_contradiction` does, whoever writes the tables."""
    summary, path = read_summary(directory / "summary.csv").iloc[0], directory / "accuracy_matrix.csv"
    matrix = read_table(path)
    if summary["status"] != "done":
        return
    final = float(matrix["average"].iloc[-1])
    if math.isnan(final):
        raise UnreadableFile(path, NO_FINAL_ACCURACY)
    if not math.isclose(final, float(summary["average_accuracy"]), rel_tol=1e-9, abs_tol=1e-9):
        raise UnreadableFile(
            path,
            f"its last average is {final:.6g}, and the average accuracy in summary.csv is "
            f"{summary['average_accuracy']:.6g}",
        )


def read_config(directory: Path) -> Any:
    """Return what config.yaml of a run says. Raise OSError, UnicodeDecodeError or YAMLError."""
    return yaml.load((directory / "config.yaml").read_text(encoding="utf-8"), Loader)


def task_names(directory: Path) -> dict[int, str]:
    """Return the name of each task from tasks.csv: its classes, such as 'cat, dog', its domain, or its rotation, such
    as '30°'.

    The result is empty where tasks differ by none of these. Raise UnreadableFile.
    """
    path = directory / "tasks.csv"
    if not path.exists():
        return {}
    table = read_table(path)
    if "angle" in table:
        return {int(task): f"{angle:.0f}°" for task, angle in zip(table["task"], table["angle"], strict=True)}
    if "domain" in table:
        return {int(task): str(domain) for task, domain in zip(table["task"], table["domain"], strict=True)}
    names: dict[int, list[str]] = {}
    for task, name in zip(table["task"], table["class"], strict=True):
        names.setdefault(int(task), []).append(name)
    return {task: ", ".join(classes) for task, classes in names.items()}
