"""From the columns of a table to numbers: numbers are standardised, categories become one column each.

Whatever is learnt from a column (mean, deviation, categories) is learnt from the training rows alone.
"""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from clrun.data.check_parts import wrong
from clrun.data.column_rules import ColumnRule
from clrun.system.machine import refuse_if_too_large

# Categories of a column beyond which it is refused where most training rows have one of their own: an id, a free text.
MOST_OF_THEIR_OWN = 20

# A column of texts is taken for damaged numbers where more than this share of its values are numbers.
NUMBERS_SHARE = 0.5


class Column(NamedTuple):
    """A column of the table, checked: numbers, or texts that are categories."""

    name: str
    values: np.ndarray  # (N,) float64, with NaN where missing; or (N,) objects: texts, None where missing
    kind: str  # "number", "bool" or "category"
    missing: np.ndarray  # (N,) bool


class Inputs(NamedTuple):
    """A table as inputs of a network."""

    x: np.ndarray  # (N, F) float32
    rules: tuple[ColumnRule, ...]  # what was learnt from the training rows, a column each
    notes: list[str]  # sentences on what was done to missing and unseen values


def numbers(frame: pd.DataFrame, train: np.ndarray, categories: Collection[str], missing: str, source: str) -> Inputs:
    """Return a table as inputs.

    train: (N,) bool, the training rows. categories: the columns of numbers that are categories. missing: "refuse", or
    "mean". Raise UsageError for whatever cannot become numbers, and for missing values that are refused.
    """
    found = [checked(frame[name], name in categories, source) for name in frame.columns]
    notes = missing_values(found, missing, source)
    for column in found:
        refuse_empty(column, train, source)
    rules = tuple(learnt(column, train, source) for column in found)
    x, unseen = applied(found, rules, len(frame), source)
    return Inputs(x, rules, notes + unseen)


def learnt(column: Column, train: np.ndarray, source: str) -> ColumnRule:
    """Return what the training rows say about a column. train: (N,) bool. Raise UsageError for too many categories."""
    if column.kind == "category":
        return ColumnRule(column.name, "category", categories=tuple(seen_categories(column, train, source)))
    known = column.values[train & ~column.missing]
    with np.errstate(over="ignore", invalid="ignore"):
        deviation = 1.0 if column.kind == "bool" else known.std() if known.max() > known.min() else 0.0
        return ColumnRule(column.name, column.kind, float(known.mean()), float(deviation))


def applied(
    found: Sequence[Column], rules: Sequence[ColumnRule], rows: int, source: str, which: str = "test "
) -> tuple[np.ndarray, list[str]]:
    """Return columns as inputs (N, F) float32 by what was learnt about each, and sentences on unseen categories.

    which: what the rows are that may have such, "test " or "". Raise UsageError for numbers that are too large.
    """
    width = sum(rule.inputs for rule in rules)
    refuse_if_too_large(8 * rows * width, f"{source} ({width} inputs)", "fewer categories or rows")
    blocks, notes = [], []
    for column, rule in zip(found, rules, strict=True):
        if rule.kind == "category":
            block, unseen = one_hot(column, rule.categories, which)
            notes += [unseen] if unseen else []
        else:
            block = standardised(column, rule, source)[:, None]
        blocks.append(block.astype(np.float32))
    return np.concatenate(blocks, 1), notes


def text(value: Any) -> str:
    """Return a value of a table as a text; a whole number has no decimals, whatever its type is."""
    return str(int(value)) if isinstance(value, (float, np.floating)) and value == np.floor(value) else str(value)


# ---------------------------------------------------------------- classes and domains


def named(column: pd.Series, source: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the number (N,) int64 of each row's class or domain, and their names, sorted by number or text.

    Raise UsageError for a value that is missing, is a fraction, or cannot be printed, and for a single name.
    """
    missing = np.flatnonzero(column.isna())
    if len(missing):
        raise wrong(source, f"column {column.name} is empty in row {missing[0] + 1}; fill it in, or leave the row out")
    kind = kind_of(column)
    if kind is None:
        raise wrong(source, f"column {column.name} holds {column.dtype}, which names no class; write texts or numbers")
    values = column.astype(float).to_numpy() if kind == "number" else column.map(text).to_numpy(object)
    if kind == "number" and (values != np.floor(values)).any():
        row = int(np.flatnonzero(values != np.floor(values))[0])
        raise wrong(
            source,
            f"column {column.name} holds the number {values[row]:.6g} in row {row + 1}, which names no class; write "
            "texts or whole numbers, such as low and high for ranges of values",
        )
    unique, numbers_ = np.unique(values, return_inverse=True)
    names = tuple(text(value) for value in unique.tolist())
    refuse_names(names, str(column.name), source)
    return numbers_.astype(np.int64).reshape(-1), names


def refuse_names(names: Sequence[str], column: str, source: str) -> None:
    """Raise UsageError for a single name, and for one that cannot be printed."""
    if len(names) < 2:
        raise wrong(source, f"column {column} has the single value {names[0]}; two or more are needed to tell apart")
    unprintable = [name for name in names if not name.strip() or not name.isprintable()]
    if unprintable:
        raise wrong(source, f"column {column} has the value {unprintable[0]!r}, which cannot be printed; change it")


# ---------------------------------------------------------------- one column


def kind_of(column: pd.Series) -> str | None:
    """Return "number", "bool" or "category"; None for what is none of them, such as dates."""
    types = pd.api.types
    if isinstance(column.dtype, pd.CategoricalDtype):
        return "category"
    if types.is_bool_dtype(column.dtype):
        return "bool"
    if types.is_numeric_dtype(column.dtype) and not types.is_complex_dtype(column.dtype):
        return "number"
    kinds = set(column.dropna().map(type))
    if not kinds:
        return "number"  # an empty column, which is refused as such
    return "bool" if kinds <= {bool, np.bool_} else "category" if kinds <= {str} else None


def checked(series: pd.Series, category: bool, source: str) -> Column:
    """Return a column as numbers or texts. Raise UsageError for other things, infinity, and numbers among texts."""
    name, kind = str(series.name), "category" if category else kind_of(series)
    missing = series.isna().to_numpy(bool)
    if kind is None:
        raise wrong(
            source,
            f"column {name} holds {series.dtype}, which is neither numbers nor texts; write numbers in its place, or "
            f"leave it out by dataset.ignore=[{name}]",
        )
    if kind == "category":
        values = series.astype(object).map(text, na_action="ignore").to_numpy(object)
        if not category and not isinstance(series.dtype, pd.CategoricalDtype):
            refuse_damaged_numbers(name, values, missing, source)
        return Column(
            name,
            np.array([None if gone else v for gone, v in zip(missing, values, strict=True)], object),
            kind,
            missing,
        )
    values = series.astype("Float64" if kind == "bool" else series.dtype).to_numpy(np.float64, na_value=np.nan)
    infinite = np.flatnonzero(np.isinf(values))
    if len(infinite):
        raise wrong(source, f"column {name} is {values[infinite[0]]} in row {infinite[0] + 1}; write a finite number")
    return Column(name, values, kind, missing)


def refuse_damaged_numbers(name: str, values: np.ndarray, missing: np.ndarray, source: str) -> None:
    """Raise UsageError where most texts of a column are numbers: then the others are mistakes, or the commas are."""
    texts = pd.Series(values[~missing], dtype=str)
    as_numbers = pd.to_numeric(texts, errors="coerce").notna().to_numpy()
    with_commas = pd.to_numeric(texts.str.replace(",", "."), errors="coerce").notna().to_numpy()
    if with_commas.mean() > NUMBERS_SHARE and with_commas.sum() > as_numbers.sum():
        raise wrong(
            source, f"column {name} has numbers such as {texts[with_commas].iloc[0]}; type dataset.decimal=comma"
        )
    if as_numbers.mean() > NUMBERS_SHARE:
        first = int(np.flatnonzero(~as_numbers)[0])
        row = int(np.flatnonzero(~missing)[first]) + 1
        raise wrong(
            source,
            f"column {name} holds numbers but {texts.iloc[first]!r} in row {row}; leave the value empty where it is "
            f"missing, or type dataset.categories=[{name}] if its numbers name categories",
        )


# ---------------------------------------------------------------- missing values


# What to do about missing values in a table to train on.
ADVICE = (
    "fill them in, or type dataset.missing=mean, by which a number becomes the mean of the training rows and a missing "
    "text a category of its own"
)


def missing_values(found: Sequence[Column], missing: str, source: str, advice: str = ADVICE) -> list[str]:
    """Return a sentence on the missing values of all columns, if any. Raise UsageError where they are refused.

    advice: what to do about them.
    """
    with_some = [column for column in found if column.missing.any()]
    if not with_some:
        return []
    count, names = sum(int(column.missing.sum()) for column in with_some), [column.name for column in with_some]
    where = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    if missing == "refuse":
        row = int(np.flatnonzero(with_some[0].missing)[0]) + 1
        raise wrong(
            source,
            f"{count} {'value is' if count == 1 else 'values are'} missing, the first in column {names[0]}, row {row} "
            f"(columns: {where}); {advice}",
        )
    return [
        f"{count} missing {'value' if count == 1 else 'values'} replaced (columns: {where}): numbers by the mean of "
        "the training rows, texts by a category of their own"
    ]


def refuse_empty(column: Column, train: np.ndarray, source: str) -> None:
    """Raise UsageError for a column without a value in the training rows."""
    if column.missing[train].all():
        raise wrong(
            source,
            f"column {column.name} has no value in any training row; leave it out by dataset.ignore=[{column.name}]",
        )


# ---------------------------------------------------------------- numbers


def standardised(column: Column, rule: ColumnRule, source: str) -> np.ndarray:
    """Return numbers (N,) float64 with mean 0 and deviation 1 over the training rows, those of one value 0.

    Booleans are 0 and 1. A missing value is the mean. Raise UsageError where numbers are too large for that.
    """
    if rule.kind == "bool":
        return np.where(column.missing, rule.mean, column.values)
    with np.errstate(over="ignore", invalid="ignore"):
        centred = np.where(column.missing, 0.0, column.values - rule.mean)
        scaled = centred / rule.deviation if rule.deviation > 0 else np.zeros_like(centred)
        fits = np.isfinite(scaled.astype(np.float32)).all() and np.isfinite([rule.mean, rule.deviation]).all()
    if not fits:
        largest = column.values[np.nanargmax(np.abs(column.values))]
        raise wrong(source, f"column {column.name} has a number too large to train on, {largest:.6g}; correct it")
    return scaled


# ---------------------------------------------------------------- categories


def seen_categories(column: Column, train: np.ndarray, source: str) -> list[str | None]:
    """Return the categories of the training rows, sorted, None (missing) last. Raise UsageError where most rows have
    one of their own."""
    known = set(column.values[train & ~column.missing])
    if len(known) > max(MOST_OF_THEIR_OWN, train.sum() // 2):
        raise wrong(
            source,
            f"column {column.name} has {len(known)} different values in {int(train.sum())} training rows, and each "
            f"would be an input; leave it out by dataset.ignore=[{column.name}]",
        )
    return [*sorted(known), *([None] if column.missing[train].any() else [])]


def one_hot(column: Column, seen: Sequence[str | None], which: str) -> tuple[np.ndarray, str]:
    """Return (N, categories) bool, 1 at a row's category, and a sentence on those that no training row has ("" for
    none): such a row has zeros alone. which: what rows these are."""
    number = {category: k for k, category in enumerate(seen)}
    codes = np.array([number.get(value, -1) for value in column.values])
    unseen = sorted({"(missing)" if value is None else value for value in column.values[codes < 0]})
    block = codes[:, None] == np.arange(len(seen))
    if not unseen:
        return block, ""
    some = ", ".join(unseen[:5]) + (f" and {len(unseen) - 5} more" if len(unseen) > 5 else "")
    rows = int((codes < 0).sum())
    return (
        block,
        f"column {column.name}: {rows} {which}{'row has' if rows == 1 else 'rows have'} a value that no "
        f"training row has ({some}); all categories of such a row are 0",
    )
