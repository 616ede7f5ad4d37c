"""A folder of the user's images, one folder a class, read as one block of uint8 images; decoded once and cached.

`root/train/<class>/` and `root/test/<class>/`, or `root/<class>/` alone with a stated share of images for testing; and
the same with a folder for each domain, as `clrun.data.folder_layouts` says.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clrun.data.class_folders import VALIDATION, FolderLayout, Picture, pictures_in, some_of, strays
from clrun.data.decoding import RULE, BrokenPicture, Deep, Whites, decode_bytes, white_of
from clrun.data.feature_record import FeatureRecord
from clrun.data.features import AT_ONCE, PART, Extractor, ExtractorOf, Part, extracted, features_of, stacked
from clrun.data.file_digests import digest_of, digests, read_arrays, write_arrays
from clrun.data.folder_layouts import find
from clrun.data.folder_record import ClassRecord, FolderRecord
from clrun.data.progress import print_seconds, progress_bar
from clrun.system.errors import UsageError
from clrun.system.machine import refuse_if_too_large

# Images that a thread decodes at a time.
CHUNK = 64

# Broken pictures that a refusal names.
NAMED = 10


class Folder(NamedTuple):
    """A folder of images that was read."""

    x: np.ndarray  # (N, 3, size, size) uint8, or features (N, F) float32, training images first
    y: np.ndarray  # (N,) int64
    train: int  # number of training images
    classes: tuple[str, ...]
    fingerprint: str  # 10 hex digits of the files' bytes, their order and labels, and the stated preprocessing
    record: FolderRecord
    domain: np.ndarray | None  # (N,) int64, where there are domains
    domains: tuple[str, ...]
    features: FeatureRecord | None = None  # what made the features, where x holds such


class Decoded(NamedTuple):
    """The pixels of a folder's pictures and what is to be said of them."""

    x: np.ndarray  # (N, 3, size, size) uint8, or features (N, F) float32, of the pictures that are not broken
    broken: dict[int, str]  # number of a picture -> why it cannot be read
    deep: int  # number of pictures of more than 8 bits
    whites: Whites
    pillow_version: str


def read(
    root: str | os.PathLike | None,
    size: int,
    test_fraction: float | None,
    cache: Path,
    white: float | None = None,
    skip_broken: bool = False,
    extractor_of: ExtractorOf | None = None,
    features_at_once: int = PART,
) -> Folder:
    """Return a folder of images at `size` x `size` pixels, as they lie there or in a file below the folder `cache`.

    white: the value that becomes 255 in pictures of more than 8 bits; None: the largest value of as many bits as the
    brightest training picture has. skip_broken: whether broken pictures are left out. extractor_of: of a network whose
    features take the place of the pictures. features_at_once: as `at_once` of `extracted`. Raise UsageError.
    """
    layout = find(root, test_fraction)
    ignored = strays(layout)
    train = pictures_in(layout.train_folders, ignored)
    test = pictures_in(layout.test_folders, ignored)
    pictures = train + test
    extractor = None if extractor_of is None else extractor_of((3, size, size))
    if extractor is None:
        refuse_if_too_large(
            len(pictures) * 3 * size**2, f"dataset.size={size} for {len(pictures)} pictures", "a smaller one"
        )
    name = hashlib.blake2b(os.fsencode(os.path.abspath(layout.root)), digest_size=10).hexdigest()
    memory = cache / "file_digests" / f"{name}.npz"
    found = digests([picture.path for picture in pictures], [picture.state for picture in pictures], memory)
    marks = found.rows
    cells = np.array([cell_of(picture, layout) for picture in pictures], np.int64)
    parts = Division(layout, cells, len(train), test_fraction)
    parts.order(np.ones(len(pictures), bool))  # refuses what would be refused after decoding
    stated = json.dumps([RULE, size, white, *([] if extractor is None else [extractor.digest])])
    if extractor is None:
        decoded = _cached(parts, pictures, marks, cache / "image_folder", stated, size, white, skip_broken)
    else:
        features = FolderFeatures(parts, pictures, marks, cache / "features", stated, size, white, skip_broken)
        decoded = features.read(extractor, features_at_once)
    found.remember(memory)
    kept = _kept(decoded, len(pictures))
    order, count = parts.order(kept)
    _print_notes(ignored, decoded, white)
    cells = parts.cells[kept][order]
    text = f"{stated} {count} {json.dumps(layout.classes)}"
    if layout.domains:
        text += f" {json.dumps(layout.domains)}"
    fingerprint = _digest(text, marks[kept][order], cells, 5)
    records = _records(layout, marks[kept][order], cells, count)
    record = FolderRecord(records, decoded.pillow_version, decoded.whites if decoded.deep else None)
    x = decoded.x if np.array_equal(order, np.arange(len(order))) else decoded.x[order]
    domain, labels = np.divmod(cells, len(layout.classes))
    stated_domain = domain if layout.domains else None
    features_record = None if extractor is None else extractor.record
    return Folder(x, labels, count, layout.classes, fingerprint, record, stated_domain, layout.domains, features_record)


def cell_of(picture: Picture, layout: FolderLayout) -> int:
    """Return the number of a picture's class, counted on from one domain to the next."""
    return picture.folder.label + len(layout.classes) * (picture.folder.domain or 0)


def name_of(cell: int, layout: FolderLayout) -> str:
    """Return the name of a class, with that of its domain where there are domains."""
    domain, label = divmod(cell, len(layout.classes))
    return f"{layout.domains[domain]}/{layout.classes[label]}" if layout.domains else layout.classes[label]


class Division(NamedTuple):
    """How the pictures of a folder are divided into training and test pictures."""

    layout: FolderLayout
    cells: np.ndarray  # (N,) int64, as of `cell_of`: of the pictures in train, then in test
    train: int  # number of pictures in train
    test_fraction: float | None

    def order(self, kept: np.ndarray) -> tuple[np.ndarray, int]:
        """Return the order (n,) of the pictures that are kept, training first, and the number of training pictures.

        kept: (N,) bool. Raise UsageError where a class has too few.
        """
        cells = self.cells[kept]
        if self.layout.test is None:
            assert self.test_fraction is not None  # find() has refused that
            return _held_out(self.layout, cells, self.test_fraction)
        count = int(kept[: self.train].sum())
        parts = ((self.layout.train_folders, cells[:count]), (self.layout.test_folders, cells[count:]))
        for folders, present in parts:
            numbers = [folder.label + len(self.layout.classes) * (folder.domain or 0) for folder in folders]
            absent = [folder.path for folder, k in zip(folders, numbers, strict=True) if k not in present]
            if absent:
                raise UsageError(f"{absent[0]} has no picture that can be read: put some there.")
        return np.arange(len(cells)), count


def _kept(decoded: Decoded, count: int) -> np.ndarray:
    """Return which pictures (N,) bool are not broken."""
    kept = np.ones(count, bool)
    kept[list(decoded.broken)] = False
    return kept


def _digest(text: str, marks: np.ndarray, cells: np.ndarray, width: int) -> str:
    """Return 2 * width hexadecimal digits of a text and of the digests and cells of pictures, in their order."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=width)
    digest.update(np.ascontiguousarray(marks).tobytes())
    digest.update(np.ascontiguousarray(cells, "<i8").tobytes())
    return digest.hexdigest()


def _records(layout: FolderLayout, marks: np.ndarray, cells: np.ndarray, train: int) -> tuple[ClassRecord, ...]:
    """Return the number of pictures and their digest for each class of each part (and domain)."""
    parts = (("train", slice(None, train)), ("test", slice(train, None)))
    records = []
    for part, rows in parts:
        for cell in np.unique(cells).tolist():
            chosen = marks[rows][cells[rows] == cell]
            records.append(ClassRecord(part, name_of(cell, layout), len(chosen), _digest("", chosen, cells[:0], 8)))
    return tuple(records)


# ---------------------------------------------------------------- what is said


def _print_notes(ignored: Sequence[str], decoded: Decoded, white: float | None) -> None:
    """Print to standard error what was ignored, what was left out, and how more than 8 bits became 8."""
    notes = []
    if ignored:
        what = "one that is" if len(ignored) == 1 else f"{len(ignored)} files and folders that are"
        kinds = Counter(map(_kind, ignored))
        counts = ", ".join(f"{n} {kind}" for kind, n in kinds.most_common())
        notes.append(f"ignored {what} no picture of a class ({counts}): {some_of(ignored)}")
        held = [path for path in ignored if os.path.basename(path).lower() in VALIDATION and os.path.isdir(path)]
        notes += [f"{path} is not used: validation=0.1 holds validation pictures out of training" for path in held]
    if decoded.broken:
        were = "broken picture was" if len(decoded.broken) == 1 else "broken pictures were"
        notes.append(f"{len(decoded.broken)} {were} left out (dataset.skip_broken=true)")
    if decoded.deep:
        values = sorted({decoded.whites.whole, decoded.whites.floating} if white is None else {white})
        named = " and ".join(f"{value:.15g}" for value in values if value)
        why = "typed" if white is not None else "the largest value of the bits of the brightest training picture"
        notes.append(
            f"{decoded.deep} pictures have more than 8 bits: 0 becomes black and {named} white, {why}; "
            f"dataset.white=VALUE chooses another value"
        )
    for note in notes:
        print(f"image_folder: {note}", file=sys.stderr)


def _kind(path: str) -> str:
    """Return the suffix of a file, or what it is instead."""
    return "folder" if os.path.isdir(path) else Path(path).suffix.lower() or "without a suffix"


def _held_out(layout: FolderLayout, cells: np.ndarray, test_fraction: float) -> tuple[np.ndarray, int]:
    """Return the order (N,) of the images, training first, and the number of training images.

    A share of each class (and domain) is held out for testing, always the same images. Raise UsageError where one has
    too few.
    """
    random = np.random.RandomState(0)  # not default_rng, whose stream may change between versions of NumPy
    train, test = [], []
    for cell in np.unique(cells).tolist():
        rows = random.permutation(np.flatnonzero(cells == cell))
        held = round(len(rows) * test_fraction)
        if held in (0, len(rows)):
            missing = "testing" if held == 0 else "training"
            raise _too_few_error(layout.train / name_of(cell, layout), len(rows), test_fraction, missing)
        train.append(np.sort(rows[held:]))
        test.append(np.sort(rows[:held]))
    return np.concatenate(train + test), sum(map(len, train))


def _too_few_error(folder: Path, count: int, test_fraction: float, purpose: str) -> UsageError:
    """Return the error that a class has too few images to be split."""
    return UsageError(
        f"class {folder.name} has too few pictures to split: dataset.test_fraction={test_fraction} of {count} "
        f"leaves none for {purpose}; add pictures to {folder}, or state another dataset.test_fraction."
    )


# ---------------------------------------------------------------- the cache


def _cached(
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
    path = folder / f"{_digest(text, marks, parts.cells, 10)}.npz"
    decoded = _read_cache(path, len(pictures), size)
    cached = decoded is not None
    start = time.monotonic()
    if decoded is None:
        decoded = _decode(parts, pictures, marks, size, white)
    if decoded.broken and not skip_broken:
        raise broken_error({pictures[row].path: reason for row, reason in decoded.broken.items()})
    if not cached:
        what = f"decoding {len(pictures)} pictures of {parts.layout.root} at {size} x {size}"
        print_seconds("image_folder", what, start)
        about = [decoded.broken, decoded.deep, decoded.whites, decoded.pillow_version]
        write_arrays(path, x=decoded.x, about=np.frombuffer(json.dumps(about).encode(), np.uint8))
    return decoded


def _read_cache(path: Path, count: int, size: int) -> Decoded | None:
    """Return what a cache file holds; None where there is none, or where it is damaged or of something else."""
    arrays = read_arrays(path)
    if arrays is None or not {"x", "about"} <= set(arrays):
        return None
    broken, deep, whites, pillow_version = json.loads(arrays["about"].tobytes())
    x = arrays["x"]
    if x.shape != (count - len(broken), 3, size, size) or x.dtype != np.uint8:
        return None
    return Decoded(x, {int(row): reason for row, reason in broken.items()}, deep, Whites(*whites), pillow_version)


# ---------------------------------------------------------------- decoding


def _decode(parts: Division, pictures: Sequence[Picture], marks: np.ndarray, size: int, white: float | None) -> Decoded:
    """Return all pictures; those of more than 8 bits a second time, when the brightest training picture is known."""
    paths = [picture.path for picture in pictures]
    x, others = decode_all(parts.layout.root, paths, marks, size, None)
    broken = {row: other for row, other in others.items() if isinstance(other, str)}
    deep = {row: other for row, other in others.items() if isinstance(other, Deep)}
    kept = np.ones(len(paths), bool)
    kept[list(broken)] = False
    whites = Whites(0.0, 0.0)
    if deep:
        whites = _whites(parts, kept, deep, white)
        rows = sorted(deep)
        again, _ = decode_all(parts.layout.root, [paths[row] for row in rows], marks[rows], size, whites)
        x[rows] = again
    return Decoded(x if not broken else x[kept], broken, len(deep), whites, version("pillow"))


def _whites(parts: Division, kept: np.ndarray, deep: Mapping[int, Deep], white: float | None) -> Whites:
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
            pixels = _pixels_or_reason(path, marks[row].tobytes(), size, whites)
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


def _pixels_or_reason(path: str, mark: bytes, size: int, whites: Whites | None) -> np.ndarray | Deep | str:
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


# ---------------------------------------------------------------- features in place of pictures


class FolderFeatures(NamedTuple):
    """The pictures of a folder, of which a frozen network is to make features. What is kept in the cache has the same
    names as for decoded pictures."""

    parts: Division
    pictures: Sequence[Picture]
    marks: np.ndarray  # (N, WIDTH) uint8
    folder: Path  # of the cache
    stated: str
    size: int
    white: float | None
    skip_broken: bool

    def read(self, extractor: Extractor, at_once: int = PART) -> Decoded:
        """Return the features of all pictures that are not broken. Raise UsageError for broken ones.

        Those of more than 8 bits are known when the brightest training picture is, and have a cache file of their own.
        at_once: as of `extracted`.
        """
        text = f"{self.stated} {self.parts.train} {self.parts.test_fraction}"
        name = _digest(text, self.marks, self.parts.cells, 10)
        rows = np.arange(len(self.pictures))
        x, others, pillow_version = self.of_rows(rows, extractor, self.folder / f"{name}.npz", None, at_once)
        broken = {row: other for row, other in others.items() if isinstance(other, str)}
        deep = {row: other for row, other in others.items() if isinstance(other, Deep)}
        kept = np.ones(len(rows), bool)
        kept[list(broken)] = False
        whites = Whites(0.0, 0.0)
        if deep:
            whites = _whites(self.parts, kept, deep, self.white)
            again, _, _ = self.of_rows(
                np.array(sorted(deep)), extractor, self.folder / f"{name}-deep.npz", whites, at_once
            )
            x = x if x.shape[1] else np.zeros((len(rows), again.shape[1]), np.float32)
            x[sorted(deep)] = again
        return Decoded(x if not broken else x[kept], broken, len(deep), whites, pillow_version)

    def of_rows(
        self, rows: np.ndarray, extractor: Extractor, path: Path, whites: Whites | None, at_once: int
    ) -> tuple[np.ndarray, dict[int, Deep | str], str]:
        """Return the features (n, F) of the pictures at some rows, zeros for those that have none yet, what is to be
        said of these, as `decode_all` does, and the version of Pillow. path: of the cache file."""

        def make(start: int, stop: int, advance: Callable[[int], object]) -> Part:
            return self.part(rows[start:stop], extractor, whites, advance)

        def join(abouts: Sequence[dict[str, Any]]) -> dict[str, Any]:
            joined = {row: other for about in abouts for row, other in about["others"].items()}
            self.refuse_broken(joined)
            return {"others": joined, "pillow": abouts[-1]["pillow"]}

        of_what = f" of {self.parts.layout.root} at {self.size} x {self.size} by {extractor.about}"
        whole = extracted(path, len(rows), make, of_what, join, at_once)
        found: dict[str, Any] = whole.about["others"]
        self.refuse_broken(found)
        others = {int(row): other if isinstance(other, str) else Deep(*other) for row, other in found.items()}
        return whole.x, others, whole.about["pillow"]

    def refuse_broken(self, others: Mapping[str, Any]) -> None:
        """Raise UsageError for pictures that are broken, row -> reason, unless they are to be left out."""
        broken = {self.pictures[int(row)].path: other for row, other in others.items() if isinstance(other, str)}
        if broken and not self.skip_broken:
            raise broken_error(broken)

    def part(
        self, rows: np.ndarray, extractor: Extractor, whites: Whites | None, advance: Callable[[int], object]
    ) -> Part:
        """Return the features of some rows, and row -> what is to be said of a picture that has none yet."""
        features: list[np.ndarray] = []
        others: dict[str, Deep | str] = {}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")  # of large pictures and damaged metadata
            for some, found in self.decoded(rows, whites):
                whole = [isinstance(pixels, np.ndarray) for pixels in found]
                pairs = zip(some.tolist(), found, strict=True)
                others |= {str(row): other for row, other in pairs if not isinstance(other, np.ndarray)}
                of_some = np.zeros((len(some), 0), np.float32)
                if any(whole):
                    names = [self.pictures[row].path for row in some[whole].tolist()]
                    pixels = np.stack([one for one in found if isinstance(one, np.ndarray)])
                    made = features_of(extractor, pixels, names.__getitem__)
                    of_some = np.zeros((len(some), made.shape[1]), np.float32)
                    of_some[whole] = made
                features.append(of_some)
                advance(len(some))
        return Part(stacked(features), {"others": others, "pillow": version("pillow")})

    def decoded(
        self,
        rows: np.ndarray,
        whites: Whites | None,
        threads: int | None = os.cpu_count(),
        at_once: int = AT_ONCE,
    ) -> Iterator[tuple[np.ndarray, list[np.ndarray | Deep | str]]]:
        """Yield some rows at a time with their pixels, or what `_pixels_or_reason` says of them. Threads decode the
        next ones meanwhile, and no more, so that memory holds few pictures."""
        from PIL import Image

        Image.init()  # once, not in every thread
        pool = ThreadPoolExecutor(threads)

        def submit(start: int) -> list[Any]:
            ahead = ((self.pictures[row].path, self.marks[row].tobytes()) for row in rows[start : start + at_once])
            return [pool.submit(_pixels_or_reason, path, mark, self.size, whites) for path, mark in ahead]

        try:
            ahead = submit(0)
            for start in range(0, len(rows), at_once):
                now, ahead = ahead, submit(start + at_once)
                yield rows[start : start + at_once], [future.result() for future in now]
        finally:
            pool.shutdown(cancel_futures=True)
