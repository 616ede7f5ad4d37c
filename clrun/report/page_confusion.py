"""What was taken for what after each task, of all runs of a stream, for the page of a report."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from clrun.report import figures
from clrun.report.page_pictures import Pictures, pictures_of
from clrun.results.tables import natural

PAIR = ("after", "task", "true", "predicted", "count")

Pairs = Counter[tuple[int, int, int, int]]  # (tasks learnt, tested task or 0, true, predicted) -> samples


@dataclass(frozen=True)
class Confusions:
    """The confusions of the runs of a stream: flat lists [tasks learnt, tested task, true, predicted, samples, ...],
    in which classes are places in `classes` and a tested task 0 stands for all."""

    classes: Sequence[str] = ()
    of_runs: Sequence[Any] = ()  # of each run; None where it has none
    of_rows: Mapping[str, Any] = field(default_factory=dict)  # of rows, where there is no room for every run
    note: str = ""
    pictures: Pictures = field(default_factory=Pictures)  # of misjudged samples


def confusions_of(
    directories: Sequence[Path | None], scenario: str, rows: Sequence[int], room: int, picture_bytes: int = 0
) -> Confusions:
    """Return the confusions of runs in these folders. rows: of the report, of each; room: numbers that may be kept;
    picture_bytes: room for pictures."""
    tables = [None if directory is None else named_pairs(directory, scenario) for directory in directories]
    names = {name for table in tables if table is not None for name in (*table["true"], *table["predicted"])}
    classes = sorted(names, key=natural)
    place = {name: number for number, name in enumerate(classes)}
    counted = [None if table is None else pairs_of(table, place) for table in tables]
    pictures = pictures_of(directories, rows, tables, place, picture_bytes)
    if sum(5 * len(pairs) for pairs in counted if pairs is not None) <= room:
        kept = [None if pairs is None else flat(pairs) for pairs in counted]
        return Confusions(classes, kept, pictures=pictures)
    sums = summed(counted, rows)
    note = (
        "There are too many confusions for every run: those of the runs of a row are added up, over all tested tasks."
    )
    if sum(5 * len(pairs) for pairs in sums.values()) > room:
        each = room // 5 // len(sums)
        sums = {row: Counter(dict(of_last_task(pairs).most_common(each))) for row, pairs in sums.items()}
        note = f"{note[:-1]}, after the last task alone, and of each row the {each} most frequent pairs."
    of_rows = {str(row): flat(pairs) for row, pairs in sums.items()}
    return Confusions(classes, [None] * len(tables), of_rows, note, pictures)


def named_pairs(directory: Path, scenario: str) -> pd.DataFrame | None:
    """Return the confusions of a run: after, task, the names true and predicted, count, and the number of a sample (-1
    where it is not known); None where there are none.

    A run of an earlier version has those after the last task alone, over all tested tasks.
    """
    found = figures.table_or_none(directory / "confusion_over_tasks.csv")
    if found is not None:
        names = distinct_names(found, scenario)
        sides = {side: found[f"{side}_output"].map(names) for side in ("true", "predicted")}
        sample = found.get("sample", -1)  # runs of earlier versions have none
        head = {"after": found["after_task"], "task": found["eval_task"]}
        return pd.DataFrame(head | sides | {"count": found["count"], "sample": sample})
    last, matrix = (figures.table_or_none(directory / name) for name in ("confusion.csv", "accuracy_matrix.csv"))
    if last is None or matrix is None:
        return None
    columns = {"true": last["true_class"], "predicted": last["predicted_class"], "count": last["count"]}
    named = pd.DataFrame({"after": matrix["after_task"].max(), "task": 0, **columns}).query("count > 0")
    return named.assign(sample=-1)


def distinct_names(rows: pd.DataFrame, scenario: str) -> dict[int, str]:
    """Return a name for each output. Where outputs of several tasks have one name and may be taken for each other, the
    task is added."""
    names = {
        int(output): str(name)
        for side in ("true", "predicted")
        for output, name in rows.drop_duplicates(f"{side}_output")[[f"{side}_output", f"{side}_class"]].to_numpy()
    }
    several = {name for name, n in Counter(names.values()).items() if n > 1} if scenario != "task" else set()
    tasks = dict(rows[["true_output", "eval_task"]].drop_duplicates("true_output").to_numpy().tolist())
    return {
        output: f"{name} (task {tasks[output]})" if name in several and output in tasks else name
        for output, name in names.items()
    }


def pairs_of(table: pd.DataFrame, place: Mapping[str, int]) -> Pairs:
    """Return the confusions of a run by numbers."""
    pairs: Pairs = Counter()
    for after, task, true, predicted, count in table[list(PAIR)].itertuples(index=False):
        pairs[int(after), int(task), place[true], place[predicted]] += int(count)
    return pairs


def summed(counted: Sequence[Pairs | None], rows: Sequence[int]) -> dict[int, Pairs]:
    """Return the confusions of rows: of their runs and over all tested tasks together."""
    sums: dict[int, Pairs] = {}
    for pairs, row in zip(counted, rows, strict=True):
        for (after, _, true, predicted), count in (pairs or {}).items():
            sums.setdefault(row, Counter())[after, 0, true, predicted] += count
    return sums


def of_last_task(pairs: Pairs) -> Pairs:
    """Return the confusions after the last task."""
    last = max(after for after, *_ in pairs)
    return Counter({key: count for key, count in pairs.items() if key[0] == last})


def flat(pairs: Pairs) -> list[int]:
    """Return confusions as one list of numbers."""
    return [number for key, count in pairs.items() for number in (*key, count)]
