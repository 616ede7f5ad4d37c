"""Which pictures of a folder are for training and which for testing, and to which class and domain each belongs."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from clrun.data.class_folders import FolderLayout, Picture
from clrun.system.errors import UsageError


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
            return held_out(self.layout, cells, self.test_fraction)
        count = int(kept[: self.train].sum())
        parts = ((self.layout.train_folders, cells[:count]), (self.layout.test_folders, cells[count:]))
        for folders, present in parts:
            numbers = [folder.label + len(self.layout.classes) * (folder.domain or 0) for folder in folders]
            absent = [folder.path for folder, k in zip(folders, numbers, strict=True) if k not in present]
            if absent:
                raise UsageError(f"{absent[0]} has no picture that can be read: put some there.")
        return np.arange(len(cells)), count


def held_out(layout: FolderLayout, cells: np.ndarray, test_fraction: float) -> tuple[np.ndarray, int]:
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
            raise too_few_error(layout.train / name_of(cell, layout), len(rows), test_fraction, missing)
        train.append(np.sort(rows[held:]))
        test.append(np.sort(rows[:held]))
    return np.concatenate(train + test), sum(map(len, train))


def too_few_error(folder: Path, count: int, test_fraction: float, purpose: str) -> UsageError:
    """Return the error that a class has too few images to be split."""
    return UsageError(
        f"class {folder.name} has too few pictures to split: dataset.test_fraction={test_fraction} of {count} "
        f"leaves none for {purpose}; add pictures to {folder}, or state another dataset.test_fraction."
    )


def digest_of_pictures(text: str, marks: np.ndarray, cells: np.ndarray, width: int) -> str:
    """Return 2 * width hexadecimal digits of a text and of the digests and cells of pictures, in their order."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=width)
    digest.update(np.ascontiguousarray(marks).tobytes())
    digest.update(np.ascontiguousarray(cells, "<i8").tobytes())
    return digest.hexdigest()
