"""New rows in a file, for a network that was trained on arrays or on a table: they become samples as those became."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from clrun.data import arrays, columns, table
from clrun.data.check_parts import array_of, floats_of, wrong
from clrun.data.column_rules import ColumnRule
from clrun.data.samples import shape_text
from clrun.data.users_file import existing
from clrun.system.messages import announce

# Endings of files that hold rows; all others are taken for pictures.
TABLES, ARRAYS = table.SUFFIXES, arrays.SUFFIXES
SUFFIXES = (*TABLES, *ARRAYS)

# The names that the array of new samples may have.
NAMES = ("x", "x_test")


class Wanted(NamedTuple):
    """What the network takes."""

    shape: tuple[int, ...]  # of a sample, before it is padded
    floats: bool  # else pictures of whole numbers from 0 to 255
    rules: Sequence[ColumnRule] = ()  # of a table: how its columns became the sample
    missing: str = "refuse"  # the run's dataset.missing
    separator: str = "comma"
    decimal: str = "point"


def is_rows(path: str) -> bool:
    """Return whether a file holds rows, by its name."""
    return path.lower().endswith(SUFFIXES)


def read(path: str, wanted: Wanted) -> np.ndarray:
    """Return the samples (n, ...) in a file: float32, or uint8 where the network takes pictures. Raise UsageError."""
    file = existing(path, SUFFIXES, "a table or arrays", "", "holds no rows", path)
    if wanted.rules:
        return from_table(file, wanted, path)
    if file.suffix.lower() in TABLES:
        return from_numbers(file, wanted, path)
    return from_arrays(file, wanted, path)


# ---------------------------------------------------------------- arrays


def from_arrays(path: Path, wanted: Wanted, source: str) -> np.ndarray:
    """Return the array x of a file. Raise UsageError where it is not there, or of another shape than the network's."""
    found = (arrays.from_npz if path.suffix.lower() == ".npz" else arrays.from_safetensors)(path, source)
    name = next((name for name in NAMES if name in found), None)
    if name is None:
        listed = ", ".join(found) or "nothing"
        raise wrong(source, f"there is no array x in it, but {listed}; write it by numpy.savez('new.npz', x=x)")
    x = array_of(found[name], name, source)
    grey = x.ndim == 3 and wanted.shape[0] == 1 and len(wanted.shape) == 3
    x = x[:, None] if grey else x
    if x.shape[1:] != wanted.shape:
        raise wrong(
            source,
            f"{name} has samples of the shape {x.shape[1:]}, and the network takes {wanted.shape}; write them as those "
            "it was trained on",
        )
    if wanted.floats:
        return floats_of(x, name, source)
    if x.dtype != np.uint8:
        raise wrong(source, f"{name} is {x.dtype}, and the network takes pictures; write whole numbers as uint8")
    return x


def from_numbers(path: Path, wanted: Wanted, source: str) -> np.ndarray:
    """Return the rows of a table whose columns are the numbers of a sample, in their order. Raise UsageError."""
    if len(wanted.shape) != 1 or not wanted.floats:
        what = shape_text(wanted.shape) if wanted.floats else "a picture"
        raise wrong(
            source, f"a sample of this network is {what}; write them by numpy.savez('new.npz', x=x), or name pictures"
        )
    frame = read_table(path, wanted, source)
    if len(frame.columns) != wanted.shape[0]:
        raise wrong(
            source,
            f"it has {len(frame.columns)} columns, and a sample of this network has {wanted.shape[0]} numbers; give "
            "one column for each, in their order, and no others",
        )
    found = [columns.checked(frame[name], False, source) for name in frame.columns]
    others = [column.name for column in found if column.kind == "category"]
    if others:
        raise wrong(source, f"column {others[0]} holds texts; the network takes numbers alone")
    columns.missing_values(found, "refuse", source, "fill them in")
    return floats_of(np.stack([column.values for column in found], 1), "x", source)


# ---------------------------------------------------------------- tables


def from_table(path: Path, wanted: Wanted, source: str) -> np.ndarray:
    """Return the rows of a table as inputs, by what was learnt from the training rows. Raise UsageError for a column
    that is missing, and for what cannot be a value of it."""
    if path.suffix.lower() not in TABLES:
        raise wrong(source, "the network was trained on a table; name one with the same columns, .csv or .parquet")
    frame = read_table(path, wanted, source)
    for rule in wanted.rules:
        refuse_absent(frame, rule, source)
    found = [column_of(frame[rule.name], rule, source) for rule in wanted.rules]
    advice = "fill them in" if wanted.missing == "refuse" else ""
    notes = columns.missing_values(found, wanted.missing, source, advice)
    x, unseen = columns.applied(found, wanted.rules, len(frame), source, "")
    for note in notes + unseen:
        announce(f"{source}: {note}.")
    return x


def read_table(path: Path, wanted: Wanted, source: str) -> pd.DataFrame:
    """Return the table in a file. Raise UsageError."""
    if path.suffix.lower() == ".parquet":
        return table.from_parquet(path, source)
    typed = table.Typed(str(path), separator=wanted.separator, decimal=wanted.decimal)
    return table.from_csv(path, typed, source, f"which the run's dataset.separator={wanted.separator} wants")


def refuse_absent(frame: pd.DataFrame, rule: ColumnRule, source: str) -> None:
    """Raise UsageError where a column is not there."""
    if rule.name in frame.columns:
        return
    near = difflib.get_close_matches(rule.name, list(frame.columns), 1)
    meant = f"; is it {near[0]}, which must be renamed? " if near else "; add it, since the network was trained on it. "
    raise wrong(source, f"there is no column {rule.name}{meant}Here {table.listed(frame)}")


def column_of(series: pd.Series, rule: ColumnRule, source: str) -> columns.Column:
    """Return a column of the kind that it had in training. Raise UsageError where it is of another kind."""
    column = columns.checked(series, rule.kind == "category", source)
    if rule.kind == column.kind or (rule.kind == "number" and column.kind == "bool"):
        return column._replace(kind=rule.kind)
    if rule.kind == "bool" and column.kind == "number" and np.isin(column.values[~column.missing], (0, 1)).all():
        return column._replace(kind=rule.kind)
    holds = {"number": "numbers", "bool": "true and false"}[rule.kind]
    known = series.dropna()
    example = f", such as {known.iloc[0]}" if len(known) else ""
    raise wrong(source, f"column {rule.name} held {holds} in training and holds other values here{example}; write such")
