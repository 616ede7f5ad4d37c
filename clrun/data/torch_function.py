"""The data set `torch`: a function of the user's that returns two map-style Datasets of PyTorch."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from clrun.data import map_style
from clrun.data.check_parts import to_arrays, wrong
from clrun.data.parts import Parts
from clrun.data.progress import WORTH_SAYING, print_seconds, progress_bar
from clrun.data.samples import Arrays
from clrun.system.errors import UsageError
from clrun.system.imports import named_object


def read(target: str | None, args: Mapping[str, Any] | None, size: int | None) -> Arrays:
    """Return the data sets that the function `target` returns for `args`, each sample read once.

    size: height and width of pictures of Pillow. Chance within the function and the data sets is the same each time.
    Raise UsageError where the function or a sample fails, and where they cannot be trained on.
    """
    source, start = f"dataset.target={target}", time.monotonic()
    with map_style.fixed_chance():  # what its module draws, too, where it is imported now
        function = function_of(target, source)
    with map_style.fixed_chance():
        train, test = data_sets(function, dict(args or {}), source)
        parts = {"train": train, "test": test}
        counts = [map_style.refuse_other_than_map_style(v, name, source) for name, v in parts.items()]
        what, convert = f"reading {sum(counts)} samples of {target}", partial(converted, source=source, size=size)
        with progress_bar(what, sum(counts)) as advance:
            blocks = [map_style.collect(v, name, source, convert, advance) for name, v in parts.items()]
    (x_train, y_train), (x_test, y_test) = blocks
    names = one_list_of_names(train, test, source)
    arrays = to_arrays(Parts(x_train, y_train, x_test, y_test, names), source)
    print_seconds("torch", what, start, WORTH_SAYING)
    return arrays


def converted(x: Any, where: str, source: str, size: int | None) -> np.ndarray:
    """Return an x as an array of at least one axis."""
    return np.atleast_1d(map_style.sample_of(x, where, source, size))


def function_of(target: str | None, source: str) -> Callable[..., Any]:
    """Return the function that is named. Raise UsageError where there is none."""
    if target is None:
        raise UsageError(
            "dataset=torch needs a function of yours that returns two Datasets, (train, test): type "
            "dataset.target=package.function."
        )
    function = named_object(target, source) if "." in target else None
    if not callable(function):
        raise wrong(
            source,
            "there is no function of that name; name one as file.function, where file.py is in the current folder or "
            "on PYTHONPATH",
        )
    return function


def data_sets(function: Callable[..., Any], args: dict[str, Any], source: str) -> tuple[Any, Any]:
    """Return what the function returns, the training and the test part. Raise UsageError where that is no pair."""
    try:
        returned = function(**args)
    except UsageError:
        raise
    except Exception as error:  # any: it is the user's code that runs here
        raise wrong(source, f"the function has failed ({map_style.cause(error)}); mend it, or dataset.args") from error
    if not isinstance(returned, (tuple, list)) or len(returned) != 2:
        size = f" of {len(returned)}" if isinstance(returned, (tuple, list)) else ""
        raise wrong(
            source, f"the function returned a {type(returned).__name__}{size}; return two Datasets, (train, test)"
        )
    return returned[0], returned[1]


def one_list_of_names(train: Any, test: Any, source: str) -> list[str] | None:
    """Return the names of the classes, where a part states them. Raise UsageError where the parts state others."""
    stated = [names for names in map(map_style.class_names, (train, test)) if names is not None]
    lists = [names_of(names, source) for names in stated]
    if len(lists) == 2 and lists[0] != lists[1]:
        raise wrong(
            source,
            f"the training part has the classes {', '.join(lists[0][:5])} ..., and the test part "
            f"{', '.join(lists[1][:5])} ...; give both the same, in the same order",
        )
    return lists[0] if lists else None


def names_of(classes: Any, source: str) -> list[str]:
    """Return what an attribute `classes` holds as texts; of several names of a class the first one. Raise UsageError
    where it holds anything but texts and numbers."""
    try:
        names = [name[0] if isinstance(name, tuple) and name else name for name in classes]
    except TypeError as error:
        raise wrong(source, f"its attribute classes is a {type(classes).__name__}; give a list of names") from error
    if not all(isinstance(name, (str, int)) for name in names):
        raise wrong(source, "its attribute classes holds other things than names; give a list of texts")
    return list(map(str, names))
