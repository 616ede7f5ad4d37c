"""The check of data that a user brings as arrays: they become the one in-memory form, or are refused in a sentence."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from clrun.data.parts import Parts
from clrun.data.samples import Arrays
from clrun.system.errors import UsageError
from clrun.system.machine import refuse_if_too_large

# Kinds of NumPy types that are numbers: bool, whole, without sign, floats.
NUMBERS = "biuf"

# Values that are checked at once, for numbers that are not finite: 16 MB of float32.
CHECKED_AT_ONCE = 2**22


def to_arrays(parts: Parts, source: str) -> Arrays:
    """Return the parts of a data set as one block: uint8 for pictures, float32 for all else.

    source: what the data set is, as typed, for messages. Raise UsageError for whatever cannot be trained on.
    """
    x = {part: array_of(getattr(parts, f"x_{part}"), f"x_{part}", source) for part in ("train", "test")}
    refuse_shapes(x["train"], x["test"], source)
    y = {part: labels_of(getattr(parts, f"y_{part}"), f"y_{part}", len(x[part]), source) for part in x}
    classes = class_names(parts.names, max(int(v.max()) for v in y.values()) + 1, source)
    for part, what in (("train", "training"), ("test", "test")):
        refuse_labels(y[part], f"y_{part}", what, classes, source)
    domain, domains = domains_of(parts, {part: len(v) for part, v in x.items()}, source)
    size = sum(v.size for v in x.values()) * 4
    refuse_if_too_large(size, source, "a data set of fewer or smaller samples")
    pictures = is_picture_block(x["train"], source)
    blocks = [v if pictures else floats_of(v, f"x_{part}", source) for part, v in x.items()]
    block = np.concatenate(blocks)
    block = block[:, None] if pictures and block.ndim == 3 else block
    return Arrays(block, np.concatenate([y["train"], y["test"]]), len(y["train"]), classes, domain, domains)


def wrong(source: str, what: str) -> UsageError:
    """Return the error that a data set cannot be used; `what` says why and what to do."""
    return UsageError(f"{source}: {what}.")


# ---------------------------------------------------------------- samples


def array_of(values: Any, name: str, source: str) -> np.ndarray:
    """Return numbers (n, ...). Raise UsageError for anything else, and for no numbers at all."""
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, tensors on a card or with a gradient
        reason = " ".join(str(error).split())
        raise wrong(source, f"{name} is no array ({reason}); give equally long rows of numbers on the CPU") from error
    if array.dtype.kind not in NUMBERS:
        found = {"O": "objects", "U": "text", "S": "text", "c": "complex numbers"}.get(array.dtype.kind, array.dtype)
        raise wrong(source, f"{name} holds {found}; give an array of numbers, such as {name}.astype('float32')")
    if array.ndim < 2:
        raise wrong(
            source,
            f"{name} has the shape {array.shape}, but the first axis must count samples and the others hold the "
            f"numbers of one; for one number a sample, give {name}.reshape(-1, 1)",
        )
    if array.size == 0:
        raise wrong(
            source, f"{name} has the shape {array.shape}, in which there is no number; give at least one sample"
        )
    return array


def refuse_shapes(train: np.ndarray, test: np.ndarray, source: str) -> None:
    """Raise UsageError where training and test samples are of different shapes or kinds."""
    if train.shape[1:] != test.shape[1:]:
        raise wrong(
            source,
            f"a sample has the shape {train.shape[1:]} in x_train and {test.shape[1:]} in x_test; bring both to one",
        )
    if (train.dtype == np.uint8) != (test.dtype == np.uint8):
        raise wrong(
            source,
            f"x_train is {train.dtype} and x_test is {test.dtype}; give both as uint8 (pixels from 0 to 255) or both "
            "as float32",
        )


def is_picture_block(x: np.ndarray, source: str) -> bool:
    """Return whether an array holds pictures: uint8 of shape (n, C, H, W) or (n, H, W).

    Raise UsageError for pictures whose channels come last.
    """
    if x.dtype != np.uint8 or x.ndim not in (3, 4):
        return False
    if x.ndim == 4 and x.shape[-1] in (1, 3, 4) and x.shape[1] not in (1, 3, 4):
        raise wrong(
            source,
            f"x_train has the shape {x.shape}, pictures whose channels come last; give them as (n, channels, height, "
            "width), by x.transpose(0, 3, 1, 2)",
        )
    return True


def floats_of(x: np.ndarray, name: str, source: str) -> np.ndarray:
    """Return numbers as float32. Raise UsageError for one that is not finite, or beyond the range of float32."""
    with np.errstate(over="ignore"):
        block = np.ascontiguousarray(x, dtype=np.float32)
    rows = max(1, CHECKED_AT_ONCE // max(1, block[0].size))
    for start in range(0, len(block), rows):
        bad = np.argwhere(~np.isfinite(block[start : start + rows]))
        if len(bad):
            place = (int(bad[0][0]) + start, *map(int, bad[0][1:]))
            raise wrong(
                source,
                f"{name}[{', '.join(map(str, place))}] is {x[place]}, which is no finite number of 32 bits; replace "
                "missing values, for example by the mean of the training samples",
            )
    return block


# ---------------------------------------------------------------- labels and names


def labels_of(values: Any, name: str, count: int, source: str) -> np.ndarray:
    """Return class numbers (n,) int64. Raise UsageError for anything else, and for another length than `count`."""
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise wrong(source, f"{name} is no array of whole numbers ({' '.join(str(error).split())})") from error
    if array.ndim != 1:
        instead = f"{name}.argmax(1), if its rows have one 1 each" if array.ndim == 2 else "one number a sample"
        raise wrong(source, f"{name} has the shape {array.shape} in place of one label a sample; give {instead}")
    if array.dtype.kind not in "iu":
        how = (
            "np.unique(labels, return_inverse=True), and names" if array.dtype.kind in "USO" else f"{name}.astype(int)"
        )
        raise wrong(source, f"{name} holds {array.dtype} in place of whole numbers from 0; give {how}")
    if len(array) != count:
        raise wrong(source, f"{name} has {len(array)} labels for {count} samples; give one label a sample")
    if array.min() < 0:
        raise wrong(
            source, f"{name}[{int(array.argmin())}] is {array.min()}; number the classes from 0, without negative ones"
        )
    if array.max() > 10**6:
        raise wrong(source, f"{name} has the label {array.max()}; number the classes from 0, without gaps")
    return array.astype(np.int64)


def class_names(given: Any, classes: int, source: str) -> tuple[str, ...]:
    """Return the names of the classes, by default their numbers. Raise UsageError where they are no names."""
    if given is None:
        return tuple(map(str, range(classes)))
    names = texts(given, "names", source)
    if len(names) < classes:
        raise wrong(
            source,
            f"there is the label {classes - 1} but names has {len(names)} entries, 0 to {len(names) - 1}; add names",
        )
    return names


def texts(given: Any, name: str, source: str) -> tuple[str, ...]:
    """Return different, printable texts. Raise UsageError where they are not."""
    array = np.asarray(given)
    if array.ndim != 1 or array.dtype.kind not in "Ubiu":
        raise wrong(source, f"{name} must be a list of texts, one a class, such as np.array(['cat', 'dog'])")
    names = tuple(map(str, array.tolist()))
    repeated = [text for text in names if names.count(text) > 1]
    if repeated:
        raise wrong(source, f"{name} has {repeated[0]} twice; give each class a name of its own")
    unprintable = [text for text in names if not text.strip() or not text.isprintable()]
    if unprintable:
        raise wrong(source, f"{name} has {unprintable[0]!r}, which cannot be printed; give it another name")
    return names


def refuse_labels(y: np.ndarray, name: str, what: str, classes: Sequence[str], source: str) -> None:
    """Raise UsageError where there is one class only, or a class without a sample in a part."""
    if len(classes) < 2:
        raise wrong(source, "there is one class only, which leaves nothing to tell apart; give two or more")
    absent = np.flatnonzero(np.bincount(y, minlength=len(classes)) == 0)
    if len(absent):
        raise wrong(
            source,
            f"{name} has no {what} sample of class {classes[absent[0]]} (label {absent[0]}); every class needs one in "
            "each part, and the labels have no gaps",
        )


# ---------------------------------------------------------------- domains


def domains_of(parts: Parts, counts: dict[str, int], source: str) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Return the number of each sample's domain (N,) int64 and the names of the domains; None where none is stated."""
    given = {part: getattr(parts, f"task_{part}") for part in counts}
    if all(v is None for v in given.values()):
        return None, ()
    arrays = {}
    for part, values in given.items():
        if values is None:
            raise wrong(source, f"task_{part} is not there, but its like of the other part is; give both or neither")
        array = np.asarray(values)
        if array.shape != (counts[part],) or array.dtype.kind not in "Uiu":
            raise wrong(
                source,
                f"task_{part} must state the task of each of the {counts[part]} samples by a number or a text, and has "
                f"the shape {array.shape} of {array.dtype}",
            )
        arrays[part] = array
    if len({v.dtype.kind == "U" for v in arrays.values()}) > 1:
        raise wrong(source, "task_train and task_test must both hold numbers or both texts")
    names, numbers = np.unique(np.concatenate(list(arrays.values())), return_inverse=True)
    absent = set(names.tolist()) ^ (set(arrays["train"].tolist()) & set(arrays["test"].tolist()))
    if absent:
        raise wrong(source, f"task {min(absent)} has samples in one part alone; every task needs some in both")
    return numbers.astype(np.int64).reshape(-1), tuple(map(str, names.tolist()))
