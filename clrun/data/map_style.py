"""Data sets of PyTorch (map-style: with a length, and samples by their number), read once into arrays.

A sample is a pair (x, label). x is a picture of Pillow, or numbers as a tensor, an array or a list.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np

from clrun.data.check_parts import NUMBERS, wrong
from clrun.data.decoding import rgb
from clrun.system.errors import UsageError
from clrun.system.machine import refuse_if_too_large

# The modes of Pillow that are grey with 8 bits at most, and those of more bits, which become floats.
GREY, DEEP = ("1", "L"), ("I", "F", "I;16", "I;16B", "I;16L")

Convert = Callable[[Any, str], np.ndarray]  # (x, its name for messages) -> an array


def refuse_other_than_map_style(dataset: Any, name: str, source: str) -> int:
    """Return the number of samples. Raise UsageError for what is no map-style Dataset, and for one without samples."""
    if not callable(getattr(dataset, "__getitem__", None)) or isinstance(dataset, (dict, str, bytes)):
        iterable = ", which can only be read in one go" if callable(getattr(dataset, "__iter__", None)) else ""
        raise wrong(
            source,
            f"the {name} part is a {type(dataset).__name__}{iterable}; return map-style Datasets, with __len__ and "
            "__getitem__ (a list of (x, label) pairs is one)",
        )
    try:
        count = len(dataset)
    except Exception as error:  # any: it is the user's code that runs here
        raise wrong(
            source, f"the {name} part has no length ({cause(error)}); write a __len__, which returns how many samples"
        ) from error
    if count == 0:
        raise wrong(source, f"the {name} part has no samples; give at least one of each class")
    return count


def collect(
    dataset: Any, name: str, source: str, convert: Convert, advance: Callable[[int], object], threads: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Return all samples (n, ...) of a part, uint8 or float32, and their labels (n,) int64.

    name: "train" or "test". convert: makes an array of an x. advance: is told of every sample that was read. threads:
    that read samples at the same time. Raise UsageError for what is no pair of numbers and a label, and for samples of
    different shapes or kinds.
    """
    count = refuse_other_than_map_style(dataset, name, source)

    def read(index: int) -> tuple[np.ndarray, int]:
        where = f"{name}[{index}]"
        x, label = pair_of(dataset, index, where, source)
        return convert(x, where), label_of(label, where, source)

    first, _ = read(0)
    kind = np.dtype(np.uint8 if first.dtype == np.uint8 else np.float32)
    refuse_if_too_large(count * first.size * kind.itemsize, source, "a data set of fewer or smaller samples")
    block, labels = np.empty((count, *first.shape), kind), np.empty(count, np.int64)
    with ThreadPoolExecutor(threads) as pool:
        everything = map(read, range(count)) if threads == 1 else pool.map(read, range(count))
        for index, (x, label) in enumerate(everything):
            refuse_other(x, first, f"{name}[{index}]", f"{name}[0]", source)
            with np.errstate(over="ignore", invalid="ignore"):
                block[index] = x
            labels[index] = label
            advance(1)
    return block, labels


def pair_of(dataset: Any, index: int, where: str, source: str) -> tuple[Any, Any]:
    """Return a sample and its label. Raise UsageError where reading fails, and for anything but a pair."""
    try:
        item = dataset[index]
    except UsageError:
        raise
    except Exception as error:  # any: it is the user's code that runs here
        raise wrong(source, f"{where} cannot be read ({cause(error)}); mend the data set") from error
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        size = f" of {len(item)}" if isinstance(item, (tuple, list)) else ""
        raise wrong(source, f"{where} is a {type(item).__name__}{size}; return a pair, (x, label)")
    return item[0], item[1]


def label_of(label: Any, where: str, source: str) -> int:
    """Return a class number. Raise UsageError for anything but a whole number."""
    array = np.asarray(None) if isinstance(label, (str, dict)) else numbers_of(label, f"the label of {where}", source)
    if array.ndim or array.dtype.kind not in "iub":
        raise wrong(
            source,
            f"the label of {where} is {str(label)[:60]} ({type(label).__name__}); return the number of the class, from "
            "0, as int(label)",
        )
    return int(array)


def sample_of(x: Any, where: str, source: str, size: int | None) -> np.ndarray:
    """Return a picture of Pillow as (C, H, W) uint8, or numbers as they are. Raise UsageError for anything else.

    size: height and width of pictures; None: they stay as they are.
    """
    from PIL import Image

    if isinstance(x, Image.Image):
        return picture(x, size)
    if size is not None:
        raise wrong(
            source,
            f"dataset.size={size} resizes pictures of Pillow, and {where} is a {type(x).__name__}; leave dataset.size "
            "out, and resize in your own code",
        )
    array = numbers_of(x, where, source)
    if array.dtype.kind not in NUMBERS:
        raise wrong(
            source, f"{where} is {named(x, array)}; return a tensor or an array of numbers, or a picture of Pillow"
        )
    return array


def numbers_of(x: Any, where: str, source: str) -> np.ndarray:
    """Return a tensor, an array or numbers as an array. Raise UsageError where that is impossible."""
    import torch

    try:
        if isinstance(x, torch.Tensor):
            x = x.detach().cpu()
            return (x.float() if x.dtype == torch.bfloat16 else x).numpy()
        return np.asarray(x)
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:  # ragged lists, sparse tensors
        raise wrong(source, f"{where} is no array of numbers ({cause(error)}); return equally long rows") from error


def picture(image: Any, size: int | None, grey: bool | None = None) -> np.ndarray:
    """Return a picture of Pillow as (C, H, W): uint8, or float32 where it has more than 8 bits.

    size: height and width; None: as it is. grey: whether it becomes grey, or else coloured; None: as it is.
    """
    from PIL import Image, ImageOps

    if image.mode in DEEP:
        image = Image.fromarray(np.asarray(image).astype(np.float32))
    elif image.mode in GREY if grey is None else grey:
        image = image.convert("L")
    else:
        image = rgb(image)
    if size is not None:
        image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def refuse_other(x: np.ndarray, first: np.ndarray, where: str, first_where: str, source: str) -> None:
    """Raise UsageError for a sample of another shape or kind than the first one."""
    if x.shape != first.shape:
        pictures = x.ndim == 3 and first.ndim == 3 and x.dtype == first.dtype == np.uint8
        remedy = "type dataset.size=32, or bring all to one shape" if pictures else "bring all to one shape"
        grey = " (and to one number of channels)" if pictures and x.shape[0] != first.shape[0] else ""
        raise wrong(
            source, f"{where} has the shape {x.shape}, and {first_where} has {first.shape}; {remedy}{grey} in your code"
        )
    if (x.dtype == np.uint8) != (first.dtype == np.uint8):
        raise wrong(
            source,
            f"{where} is {x.dtype} and {first_where} is {first.dtype}; return all as uint8 (pixels from 0 to 255) or "
            "all as float32",
        )


def class_names(dataset: Any) -> Any:
    """Return the attribute `classes` of a data set or of the one that it is a part of; None where there is none."""
    found = getattr(dataset, "classes", None)
    if found is not None:
        return found
    inner: Sequence[Any] = getattr(dataset, "datasets", None) or [getattr(dataset, "dataset", None)]
    return None if inner[0] is None or inner[0] is dataset else class_names(inner[0])


def cause(error: Exception) -> str:
    """Return an exception as a phrase of one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def named(x: Any, array: np.ndarray) -> str:
    """Return what a thing that is no numbers is, as a phrase."""
    return f"a {type(x).__name__} of {array.dtype}" if isinstance(x, np.ndarray) else f"a {type(x).__name__}"


@contextmanager
def fixed_chance() -> Iterator[None]:
    """Let what is drawn by Python, NumPy and PyTorch be the same at every reading, and as it was afterwards."""
    import torch

    python, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)
