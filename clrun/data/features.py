"""Features in place of pictures: each picture goes through a frozen network once, and its features are kept on disk.

The network is an `Extractor`, which other packages make. What it returns is kept in the user's cache folder, in a file
whose name follows from the network, what is done to a picture before it, and the pictures. Of many pictures, parts are
kept while the others are still to come, so that a command that was interrupted goes on from there.

Shapes: N pictures, F features.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from clrun.data.feature_record import FeatureRecord
from clrun.data.file_digests import read_arrays, remove_files, write_arrays
from clrun.data.progress import progress_bar
from clrun.data.samples import Arrays, fingerprint, shape_text
from clrun.system.errors import UsageError
from clrun.system.machine import refuse_if_too_large
from clrun.system.messages import announce

# Pictures that are handed to the network in one call, which divides them into batches.
AT_ONCE = 256

# Pictures whose features are kept on disk as one part, where there are more.
PART = 8 * AT_ONCE

# What a message of the cache says after the name of a file that is damaged.
AGAIN = "computing the features again"


class Extractor(Protocol):
    """A frozen network with what is done to a picture before it."""

    @property
    def digest(self) -> str:
        """Hexadecimal digits that change with the weights, the code that is known of, and what is done to a picture."""

    @property
    def about(self) -> str:
        """What the network is, as typed, such as "features.arch=resnet18"."""

    @property
    def record(self) -> FeatureRecord:
        """What is to be known of it when the pictures are gone."""

    def __call__(self, pictures: np.ndarray, /) -> np.ndarray:
        """Return the features (n, F) float32 of pictures (n, C, H, W) uint8."""


# A function from the shape (C, H, W) of pictures to their extractor. It raises UsageError where there can be none.
ExtractorOf = Callable[[Sequence[int]], Extractor]


class Part(NamedTuple):
    """The features of some pictures, and what else is to be known of them, as JSON."""

    x: np.ndarray  # (n, F) float32
    about: Any


def with_features(arrays: Arrays, extractor_of: ExtractorOf, cache: Path, typed: str) -> Arrays:
    """Return a data set of pictures in memory as one of features, from the folder `cache` where they are there.

    typed: what asks for features, as in messages. Raise UsageError where its samples are no pictures.
    """
    if arrays.x.dtype != np.uint8 or arrays.x.ndim != 4:
        found = f"{shape_text(arrays.x.shape[1:])} of the type {arrays.x.dtype}"
        raise UsageError(
            f"{typed} needs pictures (channels, height, width) of bytes from 0 to 255, and a sample of this data set "
            f"is {found}; leave features out, or give its samples as uint8 pictures."
        )
    extractor = extractor_of(arrays.x.shape[1:])
    stated = hashlib.blake2b(json.dumps([fingerprint(arrays), extractor.digest]).encode(), digest_size=10).hexdigest()

    def part(start: int, stop: int, advance: Callable[[int], object]) -> Part:
        found = []
        for first in range(start, stop, AT_ONCE):
            rows = arrays.x[first : min(stop, first + AT_ONCE)]
            found.append(features_of(extractor, rows, lambda row, first=first: f"picture {first + row}"))  # type: ignore
            advance(len(rows))
        return Part(stacked(found), None)

    made = extracted(cache / f"{stated}.npz", len(arrays.x), part, f" by {extractor.about}")
    return arrays._replace(x=made.x, fingerprint=stated[:10], features=extractor.record)


def features_of(extractor: Extractor, pictures: np.ndarray, name_of: Callable[[int], str]) -> np.ndarray:
    """Return the features (n, F) of pictures (n, C, H, W). Raise UsageError where one is not finite.

    name_of: the name of a picture by its row, for messages.
    """
    features = extractor(pictures)
    wrong = np.flatnonzero(~np.isfinite(features).all(1))
    if len(wrong):
        value = features[wrong[0]][~np.isfinite(features[wrong[0]])][0]
        raise UsageError(
            f"{extractor.about}: a feature of {name_of(int(wrong[0]))} is {value}, which is no finite number; are the "
            "weights whole (features.weights), and is features.normalize what the network was trained with?"
        )
    return features


# ---------------------------------------------------------------- what is kept on disk


def extracted(
    path: Path,
    count: int,
    make: Callable[[int, int, Callable[[int], object]], Part],
    of_what: str,
    join: Callable[[list[Any]], Any] = lambda abouts: None,
    at_once: int = PART,
) -> Part:
    """Return the features of `count` pictures from a cache file, or make them and write one.

    make: (start, stop, advance) -> the features of these pictures; it calls `advance` with a number of pictures that
    are done. of_what: the pictures and the network, as in " of FOLDER by NETWORK". join: what is to be known of all
    pictures, from what is to be known of each part. at_once: pictures of a part that is kept while others are still to
    come.
    """
    whole = read_part(path, count)
    if whole is not None:
        return whole
    title = f"features of {count} pictures"  # short, so that a narrow terminal has room for the bar
    began, parts, files = time.monotonic(), list[Part](), list[Path]()
    keeps = count > at_once  # until a part cannot be written, which is said once
    with progress_bar(title, count) as advance:
        for start in range(0, count, at_once):
            stop = min(count, start + at_once)
            whole = read_part(path, count) if parts else None
            if whole is not None:  # another process has made them meanwhile
                return whole
            file = path.with_name(f"{path.stem}-{start}.npz")
            part = read_part(file, stop - start) if keeps else None
            if part is None:
                part = make(start, stop, advance)
                keeps = keeps and write_part(file, part)
            else:
                advance(stop - start)
            needed = 4 * count * part.x.shape[1]
            refuse_if_too_large(needed, title + of_what, "fewer pictures, or a network of fewer features")
            parts.append(part)
            files.append(file)
    whole = Part(stacked([part.x for part in parts]), join([part.about for part in parts]))
    if write_part(path, whole) and count > at_once:  # else parts are what the next command finds
        remove_files(files)
    # on a terminal too, whose bar is gone then: it may have been minutes, and will not be again
    announce(f"{title}{of_what} took {time.monotonic() - began:.1f} s; the next command finds them.")
    return whole


def stacked(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Return blocks of features (n, F) as one. A block (n, 0), of pictures without features yet, becomes zeros."""
    width = max(part.shape[1] for part in parts)
    return np.concatenate([part if part.shape[1] else np.zeros((len(part), width), np.float32) for part in parts])


def read_part(path: Path, count: int) -> Part | None:
    """Return what a cache file holds; None where there is none, or where it is damaged or of something else."""
    arrays = read_arrays(path, "features", AGAIN)
    if arrays is None or not {"x", "about"} <= set(arrays):
        return None
    x = arrays["x"]
    if x.ndim != 2 or len(x) != count or x.dtype != np.float32:
        return None
    return Part(x, json.loads(arrays["about"].tobytes()))


def write_part(path: Path, part: Part) -> bool:
    """Write a cache file, and return whether it is there; print a line where the folder cannot be written."""
    about = np.frombuffer(json.dumps(part.about).encode(), np.uint8)
    return write_arrays(path, "features", x=part.x, about=about)
