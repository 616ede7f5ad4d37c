"""A folder of the user's images, one folder a class, read as one block of uint8 images; decoded once and cached.

`root/train/<class>/` and `root/test/<class>/`, or `root/<class>/` alone with a stated share of images for testing.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import struct
import sys
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from clrun.system.errors import UsageError
from clrun.system.machine import refuse_if_too_large

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")

# Files and folders that operating systems leave behind; hidden ones are skipped anyway.
CLUTTER = ("thumbs.db", "desktop.ini", "__macosx")

# Images that a thread decodes at a time.
CHUNK = 64

# Part of a cache file's name. Change it with what `decode` does to an image, so that older caches are not used.
DECODER = "1"

# What reading a damaged .npz file may raise.
DAMAGE_ERRORS = (OSError, EOFError, ValueError, KeyError, RuntimeError, struct.error, zlib.error, zipfile.BadZipFile)


class FolderLayout(NamedTuple):
    """Where the class folders lie; `test` is None where test images are held out of `train`."""

    root: Path
    classes: tuple[str, ...]
    train: Path
    test: Path | None


class Picture(NamedTuple):
    """An image file."""

    path: str
    label: int  # class number
    bytes: int  # size
    changed: int  # time of the last change, in nanoseconds


def find(root: str | os.PathLike | None, test_fraction: float | None) -> FolderLayout:
    """Return where the class folders lie, without opening an image. Raise UsageError if they make no data set."""
    folder = _root(root)
    train, test = folder / "train", folder / "test"
    if _folders(test) and not _folders(train):
        raise UsageError(
            f"dataset.root={root} has class folders in test but none in train: put the training pictures into "
            f"{train}/<class>/, or all pictures into {folder}/<class>/ and state dataset.test_fraction=0.2."
        )
    if not _folders(train):
        layout = FolderLayout(folder, _folders(folder), folder, None)
    else:
        layout = FolderLayout(folder, _folders(train), train, test if _folders(test) else None)
    _check_classes(layout)
    _check_test(layout, test_fraction)
    return layout


def read(
    root: str | os.PathLike | None, size: int, test_fraction: float | None, cache: Path
) -> tuple[np.ndarray, np.ndarray, int, tuple[str, ...]]:
    """Return a folder of images at `size` x `size` pixels, as they lie there or in a file below the folder `cache`.

    The result is x (N, 3, size, size) uint8 and y (N,) int64, training images first, the number of training images,
    and the class names. Raise UsageError.
    """
    layout = find(root, test_fraction)
    ignored = _strays(layout)
    train = _pictures(layout.train, layout.classes, ignored)
    test = [] if layout.test is None else _pictures(layout.test, layout.classes, ignored)
    y = np.array([picture.label for picture in train + test], dtype=np.int64)
    order, count = np.arange(len(y)), len(train)
    if layout.test is None:
        assert test_fraction is not None  # find() has refused that
        order, count = _held_out(layout, y, test_fraction)
    x = _cached(layout.root, train + test, size, cache)
    _print_ignored(ignored)
    return (x if layout.test else x[order]), y[order], count, layout.classes


# ---------------------------------------------------------------- folders and files


def _root(root: str | os.PathLike | None) -> Path:
    """Return the folder of the images. Raise UsageError if none is named or if it is none."""
    if root is None:
        raise UsageError(
            "dataset=image_folder needs the folder of your pictures: dataset.root=path/to/pictures, with "
            "train/<class>/ and test/<class>/ in it, or one folder a class and dataset.test_fraction=0.2."
        )
    folder = Path(root).expanduser()
    if not os.path.isdir(folder):  # False, too, where permission is denied
        what = "is not a folder" if os.path.exists(folder) else "does not exist"
        raise UsageError(
            f"dataset.root={root} {what}: name the folder that holds your pictures, with train/<class>/ and "
            f"test/<class>/ in it, or one folder a class and dataset.test_fraction=0.2."
        )
    return folder


def _entries(folder: Path) -> list[os.DirEntry]:
    """Return the entries of a folder, sorted by name, without hidden files and clutter."""
    try:
        with os.scandir(folder) as entries:
            seen = [entry for entry in entries if not entry.name.startswith(".") and entry.name.lower() not in CLUTTER]
    except OSError as error:
        raise UsageError(
            f"{folder} cannot be read ({error.strerror}): change its permissions, or name another dataset.root."
        ) from error
    return sorted(seen, key=lambda entry: entry.name)


def _folders(folder: Path) -> tuple[str, ...]:
    """Return the names of the folders in a folder; whole numbers are sorted as such, so that 10 comes after 9."""
    names = [entry.name for entry in _entries(folder) if entry.is_dir()] if os.path.isdir(folder) else []
    numbers = all(name.isascii() and name.isdigit() for name in names)
    return tuple(sorted(names, key=lambda name: (int(name), name))) if numbers else tuple(names)


def _check_classes(layout: FolderLayout) -> None:
    """Raise UsageError where there are fewer than two class folders, or folders that cannot be classes."""
    unprintable = [name for name in layout.classes if not name.isprintable()]
    if unprintable:
        raise UsageError(
            f"{layout.train} has a class folder with a character that cannot be printed in its name, "
            f"{unprintable[0]!r}: rename it."
        )
    if len(layout.classes) < 2:
        found = f"only the class {layout.classes[0]}" if layout.classes else "no class folders"
        raise UsageError(
            f"dataset.root={layout.root} has {found}: put your pictures into one folder a class, at least two of them, "
            f"{layout.train}/<class>/."
        )
    if layout.train == layout.root and set(layout.classes) == {"train", "test"}:
        raise UsageError(
            f"dataset.root={layout.root} has pictures in train and test themselves: sort them into one folder a class, "
            f"train/<class>/ and test/<class>/."
        )


def _check_test(layout: FolderLayout, test_fraction: float | None) -> None:
    """Raise UsageError where there are no test images, or two sources of them."""
    if layout.test is None and test_fraction is None:
        raise UsageError(
            f"dataset.root={layout.root} has no test pictures (classes: {_some(layout.classes)}): put some into "
            f"{layout.root / 'test'}/<class>/ and the others into {layout.root / 'train'}/<class>/, or hold some out "
            f"with dataset.test_fraction=0.2."
        )
    if layout.test is not None and test_fraction is not None:
        raise UsageError(
            f"dataset.root={layout.root} has a test folder, and dataset.test_fraction={test_fraction} would hold out "
            f"other pictures: leave dataset.test_fraction out, or name {layout.train} as dataset.root."
        )
    if layout.test is not None:
        _check_same(layout.train, layout.classes, layout.test, _folders(layout.test))


def _check_same(train: Path, trained: Sequence[str], test: Path, tested: Sequence[str]) -> None:
    """Raise UsageError where a class has a folder in one of train and test alone."""
    for there, here, absent in ((train, test, set(trained) - set(tested)), (test, train, set(tested) - set(trained))):
        if absent:
            raise UsageError(
                f"{_some(sorted(absent))} {'is a class' if len(absent) == 1 else 'are classes'} in {there} but not in "
                f"{here}: each class needs a folder in both; add it to {here}, or take it out of {there}."
            )


def _some(names: Sequence[str]) -> str:
    """Return the first five names as a phrase, and the number of the others."""
    return ", ".join(names) if len(names) <= 5 else f"{', '.join(names[:5])} and {len(names) - 5} more"


def _strays(layout: FolderLayout) -> list[str]:
    """Return the paths that lie beside the class folders and belong to none."""
    used = set() if layout.train == layout.root else {str(layout.train), str(layout.test)}
    beside = [entry for entry in _entries(layout.root) if entry.path not in used]
    if layout.train == layout.root:
        return [entry.path for entry in beside if not entry.is_dir()]
    parts = [part for part in (layout.train, layout.test) if part is not None]
    inside = [entry.path for part in parts for entry in _entries(part) if not entry.is_dir()]
    return [entry.path for entry in beside] + inside


def _pictures(part: Path, classes: Sequence[str], ignored: list[str]) -> list[Picture]:
    """Return the images of every class of `part`, class after class, sorted by name.

    Paths of other files are appended to `ignored`.
    """
    images: list[Picture] = []
    for label, name in enumerate(classes):
        entries = _entries(part / name)
        pictures = [entry for entry in entries if entry.name.lower().endswith(SUFFIXES)]
        ignored += [entry.path for entry in entries if not entry.name.lower().endswith(SUFFIXES)]
        if not pictures:
            raise UsageError(
                f"{part / name} has no pictures: put some there ({_some(SUFFIXES[:5])} ...; folders within a class are "
                f"not searched), or remove the folder."
            )
        images += [_picture(entry, label) for entry in pictures]
    return images


def _picture(entry: os.DirEntry, label: int) -> Picture:
    """Return an image file. Raise UsageError if it is none, or a link to none."""
    if not os.path.isfile(entry.path):
        raise _broken_error(entry.path, "it is not a file, or a link to none")
    try:
        stat = entry.stat()
    except OSError as error:
        raise _broken_error(entry.path, str(error.strerror)) from error
    return Picture(entry.path, label, stat.st_size, stat.st_mtime_ns)


def _print_ignored(ignored: Sequence[str]) -> None:
    """Print what was ignored to standard error."""
    if ignored:
        what = "one that is" if len(ignored) == 1 else f"{len(ignored)} files and folders that are"
        print(f"image_folder: ignored {what} no picture of a class: {_some(ignored)}", file=sys.stderr)


def _held_out(layout: FolderLayout, y: np.ndarray, test_fraction: float) -> tuple[np.ndarray, int]:
    """Return the order (N,) of the images, training first, and the number of training images.

    A share of each class is held out for testing, always the same images. Raise UsageError where a class has too few.
    """
    random = np.random.RandomState(0)  # not default_rng, whose stream may change between versions of NumPy
    train, test = [], []
    for label, name in enumerate(layout.classes):
        rows = random.permutation(np.flatnonzero(y == label))
        held = round(len(rows) * test_fraction)
        if held in (0, len(rows)):
            raise _too_few_error(layout.train / name, len(rows), test_fraction, "testing" if held == 0 else "training")
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


def _cached(root: Path, pictures: Sequence[Picture], size: int, cache: Path) -> np.ndarray:
    """Return the pixels (N, 3, size, size) uint8 from a cache file, or decode the images and write one."""
    refuse_if_too_large(
        len(pictures) * 3 * size**2, f"dataset.size={size} for {len(pictures)} pictures", "a smaller one"
    )
    path = cache / "image_folder" / f"{_key(root, pictures, size)}.npz"
    x = _read_cache(path, (len(pictures), 3, size, size))
    if x is None:
        x = decode_all(root, [picture.path for picture in pictures], size)
        _write_cache(path, x)
    return x


def _key(root: Path, pictures: Sequence[Picture], size: int) -> str:
    """Return the name of a cache file: it changes with the size and with any image's path, size or time of change."""
    digest = hashlib.blake2b(f"{DECODER} {size}".encode(), digest_size=10)
    for picture in pictures:
        digest.update(os.fsencode(os.path.relpath(picture.path, root)))
        digest.update(f"\0{picture.bytes}\0{picture.changed}\n".encode())
    return digest.hexdigest()


def _read_cache(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return the pixels in a cache file; None where there is none or it is damaged (every .npz carries checksums)."""
    if not os.path.isfile(path):
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            x = file["x"]
    except DAMAGE_ERRORS as error:
        print(f"image_folder: {path} is torn ({error}): decoding again", file=sys.stderr)
        return None
    return x if x.shape == shape and x.dtype == np.uint8 else None


def _write_cache(path: Path, x: np.ndarray) -> None:
    """Write a cache file under another name, then rename it; print a line where the folder cannot be written."""
    part = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "xb") as file:
            np.savez(file, x=x)
        os.replace(part, path)
    except OSError as error:
        print(f"image_folder: {path.parent} cannot be written ({error.strerror}): nothing cached", file=sys.stderr)
    finally:
        if os.path.exists(part):
            part.unlink()


# ---------------------------------------------------------------- decoding


def decode(path: str, size: int) -> np.ndarray:
    """Return one image as (3, size, size) uint8.

    It is turned upright, put on white where it is transparent, resized by its shorter side, and cropped. Raise
    UsageError, which names the file, whatever is wrong with it.
    """
    from PIL import Image, ImageOps  # only where the cache does not hold the pixels

    if not os.path.isfile(path):
        raise UsageError(f"{path}: there is no such file.")
    try:
        with Image.open(path) as image:
            image.draft(None, (2 * size, 2 * size))  # a JPEG can be decoded at an eighth of its size, much faster
            upright = _rgb(ImageOps.exif_transpose(image))
        return np.asarray(ImageOps.fit(upright, (size, size), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    except Image.DecompressionBombError as error:
        raise UsageError(f"{path} is too huge a picture ({error}): make it smaller, or remove it.") from error
    except Exception as error:  # damaged files make decoders raise nearly anything
        raise _broken_error(path, f"{type(error).__name__}: {error}") from error


def _broken_error(path: str, reason: str) -> UsageError:
    """Return the error that an image file cannot be used."""
    return UsageError(f"{path} is a broken picture ({reason}): mend it, or remove it from the folder.")


def _rgb(image: Image) -> Image:
    """Return an image as RGB: 16 bits scaled to 8 (Pillow would clip them), transparency on white."""
    from PIL import Image

    if image.mode.startswith("I"):
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers; save it with 8 or 16 bits")
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Return values of 16 bits as values of 8. Raise ValueError for larger or negative ones."""
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("its pixels have more than 16 bits; save it with 8 or 16 bits")
    return np.rint(values / 257).astype(np.uint8)


def decode_all(
    root: Path, paths: Sequence[str], size: int, threads: int | None = os.cpu_count(), chunk: int = CHUNK
) -> np.ndarray:
    """Return all images (N, 3, size, size) uint8, decoded by threads with a progress bar.

    Threads suffice, since decoders release Python's lock. A broken image ends the iteration over map(), so that no
    other chunk is started.
    """
    from PIL import Image

    Image.init()  # once, not in every thread
    x = np.empty((len(paths), 3, size, size), np.uint8)

    def fill(start: int) -> int:
        for row, path in enumerate(paths[start : start + chunk], start):
            x[row] = decode(path, size)
        return min(chunk, len(paths) - start)

    with (
        ThreadPoolExecutor(threads) as pool,
        warnings.catch_warnings(),
        _progress_bar(root, len(paths), size) as advance,
    ):
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large, but below Pillow's limit
        for count in pool.map(fill, range(0, len(paths), chunk)):
            advance(count)
    return x


@contextmanager
def _progress_bar(root: Path, count: int, size: int) -> Iterator[Callable[[int], object]]:
    """Show a bar on a terminal, which the function that is yielded moves on; print a line at the end in a pipe."""
    what = f"decoding {count} pictures of {root} at {size} x {size}"
    if not sys.stderr.isatty():
        start = time.monotonic()
        yield lambda images: None
        print(f"image_folder: {what} took {time.monotonic() - start:.1f} s", file=sys.stderr)
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=count)
        yield lambda images: bar.advance(task, images)
