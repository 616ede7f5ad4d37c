"""A folder of the user's images, one folder a class, read as one block of uint8 images; decoded once and cached.

`root/train/<class>/` and `root/test/<class>/`, or `root/<class>/` alone with a stated share of images for testing; and
the same with a folder for each domain, as `clrun.data.folder_layouts` says.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from clrun.data.class_folders import VALIDATION, FolderLayout, pictures_in, some_of, strays
from clrun.data.decoding import RULE
from clrun.data.feature_record import FeatureRecord
from clrun.data.features import PART, ExtractorOf
from clrun.data.file_digests import digests
from clrun.data.folder_decoding import Decoded, cached
from clrun.data.folder_division import Division, cell_of, digest_of_pictures, name_of
from clrun.data.folder_features import FolderFeatures
from clrun.data.folder_layouts import find
from clrun.data.folder_record import ClassRecord, FolderRecord
from clrun.system.machine import refuse_if_too_large


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
        decoded = cached(parts, pictures, marks, cache / "image_folder", stated, size, white, skip_broken)
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
    fingerprint = digest_of_pictures(text, marks[kept][order], cells, 5)
    records = _records(layout, marks[kept][order], cells, count)
    record = FolderRecord(records, decoded.pillow_version, decoded.whites if decoded.deep else None)
    x = decoded.x if np.array_equal(order, np.arange(len(order))) else decoded.x[order]
    domain, labels = np.divmod(cells, len(layout.classes))
    stated_domain = domain if layout.domains else None
    features_record = None if extractor is None else extractor.record
    return Folder(x, labels, count, layout.classes, fingerprint, record, stated_domain, layout.domains, features_record)


def _kept(decoded: Decoded, count: int) -> np.ndarray:
    """Return which pictures (N,) bool are not broken."""
    kept = np.ones(count, bool)
    kept[list(decoded.broken)] = False
    return kept


def _records(layout: FolderLayout, marks: np.ndarray, cells: np.ndarray, train: int) -> tuple[ClassRecord, ...]:
    """Return the number of pictures and their digest for each class of each part (and domain)."""
    parts = (("train", slice(None, train)), ("test", slice(train, None)))
    records = []
    for part, rows in parts:
        for cell in np.unique(cells).tolist():
            chosen = marks[rows][cells[rows] == cell]
            records.append(
                ClassRecord(part, name_of(cell, layout), len(chosen), digest_of_pictures("", chosen, cells[:0], 8))
            )
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
