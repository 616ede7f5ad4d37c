"""The data of the page of a report, stream by stream, as what JSON can hold.

Numbers are rounded to DIGITS significant digits. Where runs have more values than the page has room for, they are
thinned, and a note on the page says which.
"""

import os
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from clrun import __version__
from clrun.config import catalog
from clrun.config.catalog import CLUSTER, GROUPS, KeySpec
from clrun.report import figures
from clrun.report.intervals import LEVEL, half_width
from clrun.report.page_confusion import Confusions, confusions_of
from clrun.report.rows import Row, heading, references, streams
from clrun.report.runs import ACCURACIES, BOUNDS, MEASURES, keys_of
from clrun.report.tables import BESIDE, COSTS, PERCENT, remarks
from clrun.results import collection, columns, plots
from clrun.results.columns import WARNING_SEPARATOR
from clrun.results.outcome import RunStatus
from clrun.results.tables import is_missing
from clrun.system.arithmetic import ceil_div
from clrun.system.text import format_cell, format_value

DIGITS: Final = 4
ROOM = 500_000  # numbers of one kind (matrices, curves, confusions) on the page, of about six bytes each
PICTURE_BYTES = 2_000_000  # of the misjudged pictures on the page, before they are compressed
POINTS = 400  # of a curve within tasks

# The names in plotly of Matplotlib's dashes and markers.
PLOTLY_DASHES = {"-": "solid", "--": "dash", "-.": "dashdot", ":": "dot"}
PLOTLY_SYMBOLS = {
    "o": "circle", "s": "square", "D": "diamond", "^": "triangle-up", "v": "triangle-down", "P": "cross", "X": "x",
    "*": "star", "p": "pentagon", "h": "hexagon", "<": "triangle-left", ">": "triangle-right", "d": "diamond-tall",
}  # fmt: skip

# Measures of which less is better.
LESS_IS_BETTER = (
    *("forgetting", "stability_gap", "intransigence", "total_seconds", "relative_seconds"),
    *(name for name in columns.COSTS if name != "samples_per_second"),
)

MEANINGS = {
    **columns.METRIC_MEANINGS,
    **columns.OVERALL_MEANINGS,
    **columns.VALIDATION_MEANINGS,
    **columns.TASK_AWARE_MEANINGS,
    **columns.CONTINUAL_METRIC_MEANINGS,
    **columns.COST_MEANINGS,
    **columns.REPORT_METRIC_MEANINGS,
}


def page_data(folder: Path, rows: Sequence[Row], measure: str, beside: Path) -> dict[str, Any]:
    """Return the data of the page of all rows. beside: the folder of the page, from which its links start."""
    most, parts = max((row.n for row in rows), default=0), streams(rows)
    return {
        "version": __version__,
        "made": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "folder": str(folder),
        "level": LEVEL,
        "widths": [half_width(n, 1.0) for n in range(2, most + 1)],  # of intervals for n = 2 ... at a deviation of 1
        "measures": measures_of(rows, measure),
        "streams": [stream_data(folder, part, beside, PICTURE_BYTES // len(parts)) for part in parts],
    }


def measures_of(rows: Sequence[Row], first: str) -> list[dict[str, Any]]:
    """Return what is measured in any of the rows: name, meaning, whether it is a share, whether less is better,
    whether it is in the table from the start, and whether its differences are between -1 and 1."""
    shown = dict.fromkeys([first, *BESIDE, *COSTS])
    there = [name for name in dict.fromkeys([*shown, *MEASURES]) if any(row[name].n for row in rows)]
    return [
        {
            "name": name,
            "about": MEANINGS.get(name, ""),
            "percent": name in PERCENT,
            "less": name in LESS_IS_BETTER,
            "shown": name in shown,
            "bounded": name in ACCURACIES,
        }
        for name in there
    ]


def stream_data(folder: Path, rows: Sequence[Row], beside: Path, picture_bytes: int) -> dict[str, Any]:
    """Return the data of the rows of one stream. picture_bytes: room for misjudged pictures."""
    of_rows = [row.runs.copy() for row in rows]  # without the many pieces of memory that pandas warns of
    runs = pd.concat(of_rows, ignore_index=True).assign(
        row=np.repeat(range(len(rows)), [len(part) for part in of_rows])
    )
    places = collection.folders(folder, runs["run"].dropna().astype(str).tolist())
    directories = [places.get(str(run)) for run in runs["run"]]
    notes: list[str] = []
    matrices = [matrix_of(directory) for directory in directories]
    scenario = str(rows[0].first["scenario"])
    confusions = confusions_of(directories, scenario, runs["row"].tolist(), ROOM, picture_bytes)
    names = [measure for measure in MEASURES if any(row[measure].n for row in rows)]
    data = {
        "stream": rows[0].stream,
        "title": heading(rows),
        "scenario": scenario,
        "references": references(folder, rows, say=lambda _: None),
        "remarks": remarks(rows),
        "keys": list(rows[0].stream_keys),
        "swept": figures.swept(rows),
        "measures": names,
        "rows": [
            row_data(row, number, names) | {"forgetting": forgetting_of(number, directories, runs)}
            for number, row in enumerate(rows)
        ],
        "runs": runs_data(runs, names, directories, beside),
        "matrices": rounded_matrices(matrices, runs["row"].tolist(), notes),
        "curves": curves_of(directories, notes),
        **confusion_data(confusions, notes),
    }
    return data | {"notes": notes}


def confusion_data(found: Confusions, notes: list[str]) -> dict[str, Any]:
    """Return the confusions of a stream, and note what was left out."""
    notes += [found.note] if found.note else []
    shown = found.pictures
    pictures = {"sheet": shown.sheet, "tile": shown.tile, "columns": shown.columns, "examples": shown.examples}
    return {
        "classes": found.classes,
        "confusions": found.of_runs,
        "row_confusions": found.of_rows,
        "pictures": pictures if shown.sheet else None,
    }


# ---------------------------------------------------------------- rows


def row_data(row: Row, number: int, names: Sequence[str]) -> dict[str, Any]:
    """Return a row: what it is called, its keys as text and as numbers, its style, and [n, mean, sd, low, high] of each
    measure."""
    numbers = {key: float(str(value)) for key, value in row.keys.items() if figures.is_number(value)}
    return {
        "label": row.label,
        "strategy": row.strategy,
        "bound": BOUNDS.get(row.strategy, ""),
        "group": row.group,
        "keys": {key: row.text(key) for key in row.stream_keys},
        "numbers": {key: value for key, value in numbers.items() if not is_missing(value)},
        "style": style_of(number),
        "n": row.n,
        "diverged": row.diverged,
        "measures": [[row[name].n, *(rounded(value) for value in row[name][1:])] for name in names],
    }


def style_of(number: int) -> dict[str, str]:
    """Return colour, dashes and marker of a row in plotly's words: those of the figures, then with empty markers."""
    style = figures.curve_style(number)
    empty = "-open" if number // figures.CURVES % 2 else ""
    return {
        "color": style["color"],
        "dash": PLOTLY_DASHES[style["linestyle"]],
        "symbol": PLOTLY_SYMBOLS[style["marker"]] + empty,
    }


def rounded(value: float) -> float | None:
    """Return a number with DIGITS + 2 significant digits, so that its mean is exact to what is shown."""
    return None if is_missing(value) or not np.isfinite(value) else float(f"{value:.{DIGITS + 2}g}")


# ---------------------------------------------------------------- runs


def runs_data(
    runs: pd.DataFrame, names: Sequence[str], directories: Sequence[Path | None], beside: Path
) -> list[dict[str, Any]]:
    """Return every run: its row, seed, status, measures, and where its files, its command, commit and warnings are."""
    keys = keys_of(runs)
    there = [name for name in names if name in runs]
    return [
        {
            "row": int(str(run["row"])),
            "run": format_cell(run["run"]),
            "seed": format_cell(run["seed"]),
            "status": str(run["status"]),
            "diverged_at": format_cell(run["diverged_at"]),
            "warnings": format_cell(run["warnings"]).split(WARNING_SEPARATOR) if format_cell(run["warnings"]) else [],
            "commit": format_cell(run["commit"]),
            "device": format_cell(run["device"]),
            "command": command_of(run, keys),
            "folder": "" if directory is None else Path(os.path.relpath(directory.resolve(), beside)).as_posix(),
            "measures": [rounded(float(run[name])) if name in there else None for name in names],
        }
        for run, directory in zip(runs.to_dict("records"), directories, strict=True)
    ]


def command_of(run: Mapping[Any, Any], keys: Sequence[str]) -> str:
    """Return a command that trains the run: its strategy, and all keys that differ from their defaults."""
    known = catalog.read()
    chosen = {group: format_cell(run.get(group) or run.get(f"{group}.name")) for group in GROUPS}
    specs: dict[str, KeySpec] = dict(known.root)
    for group, name in chosen.items():
        specs |= known.knobs(group, name) if name in known.options[group] else {}
    words = [f"strategy={chosen['strategy']}"]
    words += [f"{group}={name}" for group, name in chosen.items() if differs(group, name, known.defaults)]
    for key in keys:
        text = format_cell(run[key])
        typed = key not in (*GROUPS, CLUSTER) and not key.endswith((".name", "source")) and text
        if typed and (key not in specs or text != format_value(specs[key].default)):
            words.append(f"{key}={text}")
    words.append(f"seed={format_cell(run['seed'])}")
    return shlex.join(["clrun", *words])


def differs(group: str, name: str, defaults: Mapping[str, str]) -> bool:
    """Return whether an option has to be typed: it is another one than the default of its group."""
    return group != "strategy" and name not in ("", defaults.get(group))


# ---------------------------------------------------------------- matrices and curves


def matrix_of(directory: Path | None) -> np.ndarray | None:
    """Return the accuracy matrix (T+1, T) of a run with the average so far as its last column, (T+1, T+1); None where
    it cannot be read."""
    table = None if directory is None else figures.table_or_none(directory / "accuracy_matrix.csv")
    return None if table is None else plots.tasks_of(table).assign(average=table["average"]).to_numpy(float)


def rounded_matrices(
    matrices: Sequence[np.ndarray | None], rows: Sequence[int], notes: list[str], room: int = ROOM
) -> list[Any]:
    """Return the matrix of each run, rounded; of each row the mean of its runs where there is no room for all, and of
    the first rows alone where there is no room for that."""
    size = sum(matrix.size for matrix in matrices if matrix is not None)
    if size <= room:
        return [None if matrix is None else digits(matrix) for matrix in matrices]
    notes.append(
        "There are too many runs or tasks for every accuracy matrix: of each run the average so far is kept, and of "
        "each row the mean of its matrices, as the matrix of its first run."
    )
    kept: list[Any] = []
    for number, matrix in enumerate(matrices):
        if matrix is None:
            kept.append(None)
            continue
        whole = np.full_like(matrix, np.nan)
        if rows.index(rows[number]) == number and room >= matrix.size:
            whole[:, :-1] = mean_matrix([m for m, row in zip(matrices, rows, strict=True) if row == rows[number]])
            room -= matrix.size
        whole[:, -1] = matrix[:, -1]
        kept.append(digits(whole) if np.isfinite(whole[:, :-1]).any() else [[v] for v in digits(whole[:, -1])])
    return kept


def mean_matrix(matrices: Sequence[np.ndarray | None]) -> np.ndarray:
    """Return the mean (T+1, T) of accuracy matrices of equal size."""
    return np.mean([matrix[:, :-1] for matrix in matrices if matrix is not None], axis=0)


def digits(values: np.ndarray) -> list[Any]:
    """Return accuracies with DIGITS decimals, as lists."""
    return np.round(values, DIGITS).tolist()


def curves_of(directories: Sequence[Path | None], notes: list[str]) -> list[Any]:
    """Return, for each run with accuracy_over_training.csv, its steps, the task that was learnt at each, and the
    accuracies on every task at each; thinned where there is no room for all."""
    tables = [
        None if directory is None else figures.table_or_none(directory / "accuracy_over_training.csv")
        for directory in directories
    ]
    size = sum(len(table) for table in tables if table is not None)
    longest = max((table["step"].nunique() for table in tables if table is not None), default=0)
    every = max(ceil_div(size, ROOM), ceil_div(longest, POINTS), 1)
    if every > 1:
        notes.append(f"Curves within tasks show one of {every} evaluations, and the last one of each task.")
    return [None if table is None else curve_of(table, every) for table in tables]


def curve_of(table: pd.DataFrame, every: int) -> dict[str, Any]:
    """Return the accuracies of one run within tasks at one of `every` evaluations, and at the end of each task."""
    wide = table.set_index(["step", "stage", "eval_task"])["accuracy"].unstack("eval_task").sort_index()
    wide = wide.dropna(how="all")
    stages = wide.index.get_level_values("stage").to_numpy()
    last = np.append(stages[1:] != stages[:-1], True)
    wide = wide[(np.arange(len(wide)) % every == 0) | last]
    return {
        "steps": wide.index.get_level_values("step").astype(int).tolist(),
        "stages": wide.index.get_level_values("stage").astype(int).tolist(),
        "tasks": [digits(wide[task].to_numpy(float)) for task in wide.columns],
    }


def forgetting_of(number: int, directories: Sequence[Path | None], runs: pd.DataFrame) -> list[float] | None:
    """Return the forgetting (T,) of every task, the mean over the runs of a row that are done; None where it has none.

    number: of the row; directories: of all runs.
    """
    of_row = (runs["row"] == number) & (runs["status"] == RunStatus.DONE)
    mine = [directory for directory, here in zip(directories, of_row, strict=True) if here and directory is not None]
    tables = [figures.table_or_none(directory / "forgetting.csv") for directory in mine]
    found = [table["forgetting"].iloc[:-1].to_numpy(float) for table in tables if table is not None]
    if not found or np.isnan(found[0]).all():
        return None
    return digits(np.mean(found, axis=0))
