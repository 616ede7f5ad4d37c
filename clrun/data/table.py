"""The data set `table`: rows of a CSV or Parquet file, of which one column is the class and the others are inputs.

The file is read here and divided into training and test rows; `clrun.data.columns` makes numbers of its columns.
"""

import difflib
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from clrun.data import columns
from clrun.data.check_parts import wrong
from clrun.data.samples import Arrays
from clrun.data.users_file import existing
from clrun.system.csv_numbers import ALL_DIGITS
from clrun.system.machine import refuse_if_too_large

SUFFIXES = (".csv", ".tsv", ".parquet")
SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t"}
DECIMALS = {"point": ".", "comma": ","}

# Bytes in memory for a byte of the file: a digit and a comma become a float64, which is held twice.
GROWTH = 8

# Bytes in which the first line of a CSV must end.
LONGEST_HEADER = 2**24

# What a column of `dataset.test` may hold, in lower case, and whether the row is for testing.
TEST_WORDS = {"0": False, "1": True, "false": False, "true": True, "train": False, "test": True}


class Typed(NamedTuple):
    """What is typed about a table: the values of the keys `dataset.*`."""

    file: str | None
    label: str | None = None
    test: str | None = None
    test_fraction: float | None = None
    domain: str | None = None
    ignore: Sequence[str] = ()
    categories: Sequence[str] = ()
    missing: str = "refuse"
    separator: str = "comma"
    decimal: str = "point"


def read(typed: Typed) -> Arrays:
    """Return the table as numbers, training rows first. Raise UsageError where it cannot be read or trained on.

    What was done to missing values, and what the test rows alone have, is printed to standard error.
    """
    path = users_path(typed.file)
    source = f"dataset.file={typed.file}"
    refuse_test_typed(typed, source)
    refuse_if_too_large(GROWTH * path.stat().st_size, source, "a smaller file")
    frame = from_parquet(path, source) if path.suffix.lower() == ".parquet" else from_csv(path, typed, source)
    inputs = input_columns(frame, typed, source)
    label, classes = columns.named(frame[typed.label], source)
    domain, domains = (None, ()) if typed.domain is None else columns.named(frame[typed.domain], source)
    held = (
        held_out(label, domain, classes, typed, source)
        if typed.test is None
        else rows_held_out(frame[typed.test], source)
    )
    refuse_absent(label, held, classes, f"class {{}} of column {typed.label}", source)
    if domain is not None:
        refuse_absent(domain, held, domains, f"domain {{}} of column {typed.domain}", source)
    x, rules, notes = columns.numbers(frame[inputs], ~held, typed.categories, typed.missing, source)
    for note in notes:
        print(f"table: {note}", file=sys.stderr)
    order = np.concatenate([np.flatnonzero(~held), np.flatnonzero(held)])
    domain = None if domain is None else domain[order]
    return Arrays(
        x[order], label[order], int((~held).sum()), classes, domain, domains, standardised=True, columns=rules
    )


# ---------------------------------------------------------------- the file


def users_path(file: str | None) -> Path:
    """Return the path of the file. Raise UsageError where there is none, or another kind of file."""
    return existing(
        file,
        SUFFIXES,
        ".csv or .parquet",
        "dataset=table needs your file and the column of the classes: dataset.file=my.csv (or .parquet) "
        "dataset.label=COLUMN dataset.test_fraction=0.2.",
        f"ends in none of {', '.join(SUFFIXES)}; save the table as CSV, or write it by "
        "frame.to_csv('my.csv', index=False).",
    )


def from_parquet(path: Path, source: str) -> pd.DataFrame:
    """Return the table in a Parquet file. Raise UsageError where pyarrow is not installed or the file is damaged."""
    if importlib.util.find_spec("pyarrow") is None:
        raise wrong(
            source,
            "a .parquet file is read by pyarrow, which is not installed; type pip install 'clrun[parquet]', or write "
            "the table by frame.to_csv('my.csv', index=False)",
        )
    try:
        frame = pd.read_parquet(path, engine="pyarrow")
    except (OSError, ValueError, NotImplementedError) as error:  # pyarrow's errors are kinds of these
        raise wrong(source, f"the file cannot be read ({' '.join(str(error).split())}); write it again") from error
    frame.columns = frame.columns.map(str)
    return with_columns(frame.reset_index(drop=True), list(frame.columns), source)


def from_csv(path: Path, typed: Typed, source: str, wanted: str = "") -> pd.DataFrame:
    """Return the table in a CSV file. Raise UsageError for another separator, rows of other lengths, and no text.

    wanted: why the separator is to be this one, where it cannot be typed.
    """
    refuse_other_separator(first_line(path, source), typed.separator, source, wanted)
    sep = SEPARATORS[typed.separator]
    spaces = sep != "\t"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            header = pd.read_csv(
                path, header=None, nrows=1, dtype=str, sep=sep, encoding="utf-8-sig", skipinitialspace=spaces
            )
            frame = pd.read_csv(
                path, index_col=False, low_memory=False, decimal=DECIMALS[typed.decimal],
                sep=sep, encoding="utf-8-sig", skipinitialspace=spaces, **ALL_DIGITS,
            )  # fmt: skip
    except (pd.errors.ParserError, pd.errors.ParserWarning) as error:
        reason = " ".join(str(error).removeprefix("Error tokenizing data. C error: ").split())
        raise wrong(
            source, f"its rows are of different lengths ({reason}); give each row one value for each column name"
        ) from error
    except (UnicodeDecodeError, pd.errors.EmptyDataError) as error:
        raise wrong(source, "it is no text in UTF-8; save the table as CSV in UTF-8") from error
    except OSError as error:
        raise wrong(source, f"it cannot be read ({error.strerror}); change its permissions") from error
    names = [f"Unnamed: {k}" if pd.isna(name) else name for k, name in enumerate(header.iloc[0])]
    return with_columns(frame, names, source)


def first_line(path: Path, source: str) -> str:
    """Return the first line of a CSV file. Raise UsageError where there is none, and where it is no text."""
    try:
        with open(path, "rb") as file:
            line = file.readline(LONGEST_HEADER)
    except OSError as error:
        raise wrong(source, f"it cannot be read ({error.strerror}); change its permissions") from error
    try:
        text = line.decode("utf-8-sig").strip("\r\n")
    except UnicodeDecodeError as error:
        raise wrong(source, "it is no text in UTF-8; save the table as CSV in UTF-8") from error
    if "\0" in text:
        raise wrong(source, "it is no text in UTF-8; save the table as CSV in UTF-8")
    if not text.strip():
        raise wrong(source, "its first line is empty; write the names of the columns there")
    return text


def refuse_other_separator(line: str, typed: str, source: str, wanted: str) -> None:
    """Raise UsageError where the names in the first line stand between other separators than is typed. wanted: as of
    `from_csv`."""
    if SEPARATORS[typed] in line:
        return
    other = [name for name, text in SEPARATORS.items() if text in line]
    if other and wanted:
        raise wrong(source, f"its first line has no {typed}, {wanted}, but {other[0]}s between the names; change them")
    if other:
        raise wrong(
            source,
            f"its first line has no {typed} but {other[0]}s between the names; type dataset.separator={other[0]} (and "
            "dataset.decimal=comma for numbers such as 1,5)",
        )


def with_columns(frame: pd.DataFrame, names: Sequence[str], source: str) -> pd.DataFrame:
    """Return the table with these names of its columns. Raise UsageError for a name twice, and for no rows."""
    twice = [name for k, name in enumerate(names) if name in names[:k]]
    if twice:
        raise wrong(source, f"two columns have the name {twice[0]}; give each a name of its own")
    if not len(frame):
        raise wrong(source, "there is no row below the names of the columns; give the rows")
    return frame.set_axis(list(names), axis=1)


# ---------------------------------------------------------------- the part that columns play


def input_columns(frame: pd.DataFrame, typed: Typed, source: str) -> list[str]:
    """Return the names of the columns that are inputs. Raise UsageError for a column that is not there or plays two
    parts, and where no input is left."""
    if typed.label is None:
        raise wrong(source, f"type the column of the classes, dataset.label=COLUMN; {listed(frame)}")
    parts = [("label", typed.label), ("test", typed.test), ("domain", typed.domain)]
    parts += [("ignore", name) for name in typed.ignore]
    of_column: dict[str, str] = {}
    for key, name in parts + [("categories", name) for name in typed.categories]:
        if name is None:
            continue
        refuse_unknown(frame, key, name, source)
        if of_column.get(name, key) != key:
            raise wrong(
                source, f"dataset.{of_column[name]} and dataset.{key} both name the column {name}; name it in one alone"
            )
        of_column[name] = key
    inputs = [name for name in frame.columns if of_column.get(name, "categories") == "categories"]
    refuse_unnamed(inputs, source)
    if not inputs:
        raise wrong(source, f"no column is left as an input beside {', '.join(of_column)}; give at least one more")
    return inputs


def refuse_unknown(frame: pd.DataFrame, key: str, name: str, source: str) -> None:
    """Raise UsageError for a column that is not there."""
    if name in frame.columns:
        return
    near = difflib.get_close_matches(name, list(frame.columns), 1)
    meant = f"; did you mean {near[0]}? " if near else "; "
    numbers = pd.to_numeric(pd.Series(list(frame.columns)), errors="coerce").notna().mean() > 0.5
    header = ". The first row must hold the names of the columns" if numbers else ""
    raise wrong(source, f"dataset.{key}={name}: there is no such column{meant}{listed(frame)}{header}")


def refuse_unnamed(inputs: Sequence[str], source: str) -> None:
    """Raise UsageError for an input without a name, which is often the number of the row, as pandas writes it."""
    unnamed = [name for name in inputs if name.startswith("Unnamed: ")]
    if unnamed:
        raise wrong(
            source,
            f"column {int(unnamed[0].split()[1]) + 1} has no name, as where pandas wrote its index; write the table by "
            f"frame.to_csv('my.csv', index=False), or type 'dataset.ignore=[\"{unnamed[0]}\"]'",
        )


def listed(frame: pd.DataFrame, most: int = 10) -> str:
    """Return the names of the columns as a phrase, the first ones where there are many."""
    names = list(frame.columns)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"the columns are {', '.join(names[:most])}{more}"


# ---------------------------------------------------------------- training and test


def refuse_test_typed(typed: Typed, source: str) -> None:
    """Raise UsageError where nothing says which rows are for testing, or two keys do."""
    if typed.test is None and typed.test_fraction is None:
        raise wrong(
            source,
            "which rows are for testing? Hold some out by dataset.test_fraction=0.2, or name the column that says it "
            "by 1 or 0: dataset.test=COLUMN",
        )
    if typed.test is not None and typed.test_fraction is not None:
        raise wrong(source, "dataset.test and dataset.test_fraction both say which rows are for testing; type one")


def rows_held_out(column: pd.Series, source: str) -> np.ndarray:
    """Return whether each row (N,) is for testing, as the column of `dataset.test` says. Raise UsageError for words
    that do not say it."""
    words = column.map(columns.text).str.lower()
    unknown = np.flatnonzero(~words.isin(list(TEST_WORDS)))
    if len(unknown):
        found = column.iloc[unknown[0]]
        raise wrong(
            source,
            f"column {column.name} of dataset.test holds {'nothing' if pd.isna(found) else found} in row "
            f"{unknown[0] + 1}; write 1, true or test for rows to test on, and 0, false or train for all others",
        )
    return words.map(TEST_WORDS).to_numpy(bool)


def held_out(
    label: np.ndarray, domain: np.ndarray | None, classes: Sequence[str], typed: Typed, source: str
) -> np.ndarray:
    """Return whether each row (N,) is held out for testing: a share of each class, and of each class in each domain.

    Always the same rows of a table. Raise UsageError where a class has too few.
    """
    assert typed.test_fraction is not None  # refuse_test_typed() has refused that
    random = np.random.RandomState(0)  # not default_rng, whose stream may change between versions of NumPy
    cell = label if domain is None else label + len(classes) * domain
    held = np.zeros(len(label), bool)
    for k in np.unique(cell):
        rows = random.permutation(np.flatnonzero(cell == k))
        held[rows[: round(len(rows) * typed.test_fraction)]] = True
    for k, name in enumerate(classes):
        of_class = held[label == k]
        if of_class.all() or not of_class.any():
            raise wrong(
                source,
                f"class {name} of column {typed.label} has too few rows to split: "
                f"dataset.test_fraction={typed.test_fraction} of {len(of_class)} leaves none for "
                f"{'training' if of_class.all() else 'testing'}; add rows, leave the class out of the table, or type "
                "another dataset.test_fraction",
            )
    return held


def refuse_absent(numbers: np.ndarray, held: np.ndarray, names: Sequence[str], what: str, source: str) -> None:
    """Raise UsageError where a class or domain has no row in one part. what: the phrase that names it, with {}."""
    for part, rows in (("training", ~held), ("test", held)):
        absent = np.flatnonzero(np.bincount(numbers[rows], minlength=len(names)) == 0)
        if len(absent):
            raise wrong(source, f"{what.format(names[absent[0]])} has no {part} row; each needs some in both parts")
