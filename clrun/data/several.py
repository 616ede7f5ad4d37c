"""The data set `several`: data sets one after another, brought to one shape, as in 5-datasets (Ebrahimi et al. 2020).

Each is a domain with classes of its own.
"""

import difflib
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from clrun.data.decoding import RULE
from clrun.data.resizing import resized, with_channels
from clrun.data.samples import Arrays, fingerprint
from clrun.data.torchvision_sets import OWN, SETS
from clrun.system.errors import UsageError
from clrun.system.machine import refuse_if_too_large

# The data sets of clrun's own that need no other keys.
BUILT_IN = ("digits", "mnist", "fashion_mnist", "kmnist", "cifar10", "cifar100")

CHANNELS = {"grey": 1, "colour": 3}


class Shape(NamedTuple):
    """What all pictures are brought to."""

    channels: int
    height: int
    width: int


def read(names: Sequence[str], size: int | None, channels: str, load: Callable[[str], Arrays]) -> Arrays:
    """Return the pictures of all data sets, those for training first, in the order of the names.

    size: height and width; None: those of the largest pictures. channels: "grey", "colour", or "auto": coloured where
    one data set is. load: reads one. Raise UsageError for an unknown or repeated name, and where they are too large.
    """
    refuse_names(names, size)
    found = [load(name) for name in names]
    shape = shape_of(found, size, channels)
    count = sum(len(arrays.x) for arrays in found)
    what = f"dataset.names=[{','.join(names)}] at {shape.width} x {shape.height} pixels ({count} pictures)"
    refuse_if_too_large(2 * count * shape.channels * shape.height * shape.width, what, "a smaller dataset.size")
    classes = class_names(names, found)
    starts = np.cumsum([0, *(len(arrays.classes) for arrays in found)])
    x, y, domain = [], [], []
    for part in ("train", "test"):
        for number, arrays in enumerate(found):
            rows = slice(None, arrays.train) if part == "train" else slice(arrays.train, None)
            x.append(brought_to(arrays.x[rows], shape))
            y.append(arrays.y[rows] + starts[number])
            domain.append(np.full(len(y[-1]), number, np.int64))
    train = sum(arrays.train for arrays in found)
    mark = digest([arrays.fingerprint or fingerprint(arrays) for arrays in found], names, shape)
    return Arrays(np.concatenate(x), np.concatenate(y), train, classes, np.concatenate(domain), names, fingerprint=mark)


def refuse_names(names: Sequence[str], size: int | None) -> None:
    """Raise UsageError for fewer than two names, an unknown or repeated one, and one that needs other keys."""
    known = [*BUILT_IN, *(name for name, rule in SETS.items() if rule.parts[1] is not None)]
    if len(names) < 2:
        raise UsageError(
            "dataset=several needs two data sets or more: type 'dataset.names=[mnist,fashion_mnist,kmnist]', with "
            f"names of {', '.join(known)}."
        )
    for k, name in enumerate(names):
        if name in names[:k]:
            raise UsageError(f"dataset.names has {name} twice; name each data set once.")
        if name in OWN:
            raise UsageError(f"dataset.names: {name} is {OWN[name]} here; type that.")
        if name not in known:
            raise UsageError(unknown(name, known))
        if name in SETS and SETS[name].sizes and size is None:
            raise UsageError(
                f"dataset.names: the pictures of {name} differ in size; type the height and width that all are brought "
                "to, such as dataset.size=64."
            )


def unknown(name: str, known: Sequence[str]) -> str:
    """Return the refusal of a name that cannot be one of several."""
    if name in SETS:
        return f"dataset.names: {name} has no test part; leave it out, or train on it alone, by dataset=torchvision."
    lower = {other.lower(): other for other in known}
    near = difflib.get_close_matches(name.lower(), lower, 1)
    meant = f"; did you mean {lower[near[0]]}? " if near else ". "
    return f"dataset.names: {name} is no data set that can be one of several{meant}There are {', '.join(known)}."


def shape_of(found: Sequence[Arrays], size: int | None, channels: str) -> Shape:
    """Return the shape that all pictures are brought to: square, unless all have one shape already."""
    depths = [arrays.x.shape[1] for arrays in found]
    depth = max(depths) if channels == "auto" else CHANNELS[channels]
    sides = {arrays.x.shape[2:] for arrays in found}
    if size is None and len(sides) == 1:
        return Shape(depth, *sides.pop())
    side = max(max(one) for one in sides) if size is None else size
    return Shape(depth, side, side)


def brought_to(x: np.ndarray, shape: Shape) -> np.ndarray:
    """Return pictures (n, channels, height, width) uint8."""
    same = x.shape[2:] == (shape.height, shape.width)
    return with_channels(x if same else resized(x, shape.height), shape.channels)


def class_names(names: Sequence[str], found: Sequence[Arrays]) -> list[str]:
    """Return the names of all classes; where data sets have a name in common, theirs have the data set before them."""
    lists = [list(map(str, arrays.classes)) for arrays in found]
    owners: dict[str, set[int]] = {}
    for number, classes in enumerate(lists):
        for label in classes:
            owners.setdefault(label, set()).add(number)
    clashing = set().union(*(numbers for numbers in owners.values() if len(numbers) > 1))
    return [
        f"{names[number]}_{label}" if number in clashing else label
        for number, classes in enumerate(lists)
        for label in classes
    ]


def digest(marks: Sequence[str], names: Sequence[str], shape: Shape) -> str:
    """Return 10 hexadecimal digits of the data sets, in their order, and what was done to them."""
    text = json.dumps([RULE, list(marks), list(names), list(shape)])
    return hashlib.blake2b(text.encode(), digest_size=5).hexdigest()
