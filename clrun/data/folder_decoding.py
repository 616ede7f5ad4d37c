"""The pictures of a folder as uint8 numbers: decoded once by several threads, and cached."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np

from clrun.data.class_folders import Picture
from clrun.data.decoding import BrokenPicture, Deep, Whites, decode_bytes, white_of
from clrun.data.file_digests import digest_of, read_arrays, write_arrays
from clrun.data.folder_division import Division, digest_of_pictures
from clrun.data.progress import print_seconds, progress_bar
from clrun.system.errors import UsageError

# Images that a thread decodes at a time.
CHUNK = 64

# Broken pictures that a refusal names.
NAMED = 10


class Decoded(NamedTuple):
    """The pixels of a folder's pictures and what is to be said of them."""

    x: np.ndarray  # (N, 3, size, size) uint8, or features (N, F) float32, of the pictures that are not broken
    broken: dict[int, str]  # number of a picture -> why it cannot be read
    deep: int  # number of pictures of more than 8 bits
    whites: Whites
    pillow_version: str


def cached(
    parts: Division,
    pictures: Sequence[Picture],
    marks: np.ndarray,
    folder: Path,
    stated: str,
    size: int,
    white: float | None,
    skip_broken: bool,
) -> Decoded:
    """Return the decoded pictures from a cache file, or decode them and write one. Raise UsageError for broken ones.

    The name of a cache file follows from the files' bytes and the stated preprocessing.
    """
    text = f"{stated} {parts.train} {parts.test_fraction}"
    path = folder / f"{digest_of_pictures(text, marks, parts.cells, 10)}.npz"
    decoded = read_cache(path, len(pictures), size)
    cached = decoded is not None
    start = time.monotonic()
    if decoded is None:
        decoded = decode(parts, pictures, marks, size, white)
    if decoded.broken and not skip_broken:
        raise broken_error({pictures[row].path: reason for row, reason in decoded.broken.items()})
    if not cached:
        what = f"decoding {len(pictures)} pictures of {parts.layout.root} at {size} x {size}"
        print_seconds("image_folder", what, start)
        about = [decoded.broken, decoded.deep, decoded.whites, decoded.pillow_version]
        write_arrays(path, x=decoded.x, about=np.frombuffer(json.dumps(about).encode(), np.uint8))
    return decoded


def read_cache(path: Path, count: int, size: int) -> Decoded | None:
    """Return what a cache file holds; None where there is none, or where it is damaged or of something else."""
    arrays = read_arrays(path)
    if arrays is None or not {"x", "about"} <= set(arrays):
        return None
    broken, deep, whites, pillow_version = json.loads(arrays["about"].tobytes())
    x = arrays["x"]
    if x.shape != (count - len(broken), 3, size, size) or x.dtype != np.uint8:
        return None
    return Decoded(x, {int(row): reason for row, reason in broken.items()}, deep, Whites(*whites), pillow_version)


def decode(parts: Division, pictures: Sequence[Picture], marks: np.ndarray, size: int, white: float | None) -> Decoded:
    """Return all pictures; those of more than 8 bits a second time, when the brightest training picture is known."""
    paths = [picture.path for picture in pictures]
    x, others = decode_all(parts.layout.root, paths, marks, size, None)
    broken = {row: other for row, other in others.items() if isinstance(other, str)}
    deep = {row: other for row, other in others.items() if isinstance(other, Deep)}
    kept = np.ones(len(paths), bool)
    kept[list(broken)] = False
    whites = Whites(0.0, 0.0)
    if deep:
        whites = whites_of_training(parts, kept, deep, white)
        rows = sorted(deep)
        again, _ = decode_all(parts.layout.root, [paths[row] for row in rows], marks[rows], size, whites)
        x[rows] = again
    return Decoded(x if not broken else x[kept], broken, len(deep), whites, version("pillow"))


def whites_of_training(parts: Division, kept: np.ndarray, deep: Mapping[int, Deep], white: float | None) -> Whites:
    """Return what becomes white in pictures of more than 8 bits. kept: (N,) bool, the pictures that are not broken.
    deep: row -> range."""
    order, count = parts.order(kept)
    trained = set(np.flatnonzero(kept)[order[:count]].tolist())
    return whites_of([one for row, one in deep.items() if row in trained], white)


def whites_of(trained: Sequence[Deep], white: float | None) -> Whites:
    """Return what becomes white: the value that was typed, or what follows from the training pictures."""
    if white is not None:
        return Whites(white, white)
    whole = [one.brightest for one in trained if not one.floating]
    floating = [one.brightest for one in trained if one.floating]
    return Whites(white_of(whole or floating, not whole), white_of(floating or whole, bool(floating)))


def broken_error(broken: Mapping[str, str]) -> UsageError:
    """Return the error that pictures cannot be used; `broken` is path -> reason."""
    items = [f"{path} ({reason})" for path, reason in list(broken.items())[:NAMED]]
    rest = f" and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
    if len(broken) == 1:
        path, reason = next(iter(broken.items()))
        return UsageError(
            f"{path} is a broken picture ({reason}): mend it, remove it from the folder, or leave it out with "
            f"dataset.skip_broken=true."
        )
    return UsageError(
        f"{len(broken)} pictures are broken: {', '.join(items)}{rest}; mend them, remove them from the folder, or "
        f"leave them out with dataset.skip_broken=true."
    )


def decode_all(
    root: Path,
    paths: Sequence[str],
    marks: np.ndarray,
    size: int,
    whites: Whites | None,
    threads: int | None = os.cpu_count(),
    chunk: int = CHUNK,
) -> tuple[np.ndarray, dict[int, Deep | str]]:
    """Return all images (N, 3, size, size) uint8, and what is to be said of those that have no pixels there yet.

    These are row -> the range of a picture of more than 8 bits, or why a picture is broken. Threads decode with a
    progress bar; they suffice, since decoders release Python's lock. Raise UsageError where a file is not the one that
    was read before: marks (N, WIDTH) are the digests.
    """
    from PIL import Image

    Image.init()  # once, not in every thread
    x = np.zeros((len(paths), 3, size, size), np.uint8)
    others: dict[int, Deep | str] = {}

    def fill(start: int) -> int:
        for row, path in enumerate(paths[start : start + chunk], start):
            pixels = pixels_or_reason(path, marks[row].tobytes(), size, whites)
            if isinstance(pixels, np.ndarray):
                x[row] = pixels
            else:
                others[row] = pixels
        return min(chunk, len(paths) - start)

    with (
        ThreadPoolExecutor(threads) as pool,
        warnings.catch_warnings(),
        progress_bar(f"decoding {len(paths)} pictures of {root} at {size} x {size}", len(paths)) as advance,
    ):
        warnings.filterwarnings("ignore", module=r"PIL\.")  # of large pictures and damaged metadata
        for count in pool.map(fill, range(0, len(paths), chunk)):
            advance(count)
    return x, dict(sorted(others.items()))


def pixels_or_reason(path: str, mark: bytes, size: int, whites: Whites | None) -> np.ndarray | Deep | str:
    """Return the pixels or the range of a picture, or why it is broken."""
    try:
        with open(path, "rb", buffering=0) as file:
            data = file.read()
        if digest_of(data) != mark:
            raise UsageError(f"{path} was changed while it was read; start the command again.")
        return decode_bytes(data, path, size, whites)
    except OSError as error:
        return str(error.strerror)
    except BrokenPicture as error:
        return str(error)
