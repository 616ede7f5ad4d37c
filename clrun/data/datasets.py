"""Data sets: a name becomes one block of uint8 images in memory, training images first, then test images.

`digits` lies beside this file; the MNIST family and CIFAR lie under `data_dir` in torchvision's layout and are
downloaded by torchvision where they are missing; `image_folder` is the user's own pictures (`clrun.pictures`). Whatever
is wrong with the files is a `UsageError` that says what belongs where. Nothing here imports torch before the images are
there: this module imports in milliseconds, and `class_names` never imports it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from clrun.data.downloads import TORCHVISION, _obtain
from clrun.system.errors import UsageError
from clrun.system.machine import refuse_if_too_large
from clrun.system.paths import CONF, cache_folder

if TYPE_CHECKING:
    import torch


IDX_IMAGES, IDX_LABELS = 0x803, 0x801  # unsigned bytes in 3 dimensions, in 1 dimension


IDX_FILES = {
    "train-images-idx3-ubyte": IDX_IMAGES,
    "train-labels-idx1-ubyte": IDX_LABELS,
    "t10k-images-idx3-ubyte": IDX_IMAGES,
    "t10k-labels-idx1-ubyte": IDX_LABELS,
}


@dataclass(frozen=True)
class Images:
    """A data set in memory."""

    x: torch.Tensor  # (N, C, H, W) uint8: the training images, then the test images
    y: torch.Tensor  # (N,) int64 class numbers
    train: int  # how many of N are for training
    classes: tuple[str, ...]
    fingerprint: str  # 10 hex of what was loaded: pixels before padding, labels, split, class names

    @cached_property
    def histogram(self) -> torch.Tensor:
        """(C, 256) int64: how often each value stands in a channel of the training images; counted once a process."""
        import torch

        channels = self.x[: self.train].unbind(1)
        return torch.stack([torch.bincount(values.flatten(), minlength=256) for values in channels])


class Arrays(NamedTuple):
    """What a reader returns: x (N, C, H, W) uint8 and y (N,) int64, training first, and the number for training."""

    x: np.ndarray
    y: np.ndarray
    train: int
    classes: Sequence[str]


def load(settings: Mapping[str, Any]) -> Images:
    """Read the data set `settings["dataset"]`, downloading or decoding it where it must be; zeros are padded on.

    `settings` answers `dataset`, `dataset.pad` (pixels), `data_dir` (a folder or None) and, for an image folder,
    `dataset.root`, `dataset.size` (pixels) and `dataset.test_fraction`. Raises UsageError.
    """
    folder = data_folder(settings["data_dir"])
    arrays = _reader(settings["dataset"])(settings, folder)
    _check(settings["dataset"], arrays)
    return _images(arrays, settings["dataset.pad"])


def class_names(settings: Mapping[str, Any]) -> list[str]:
    """The names of the classes in the order of their numbers, without torch and without opening a picture.

    Raises UsageError for an image folder that cannot be used.
    """
    if settings["dataset"] == "image_folder":
        from clrun.data.image_folder import find

        return list(find(settings["dataset.root"], settings["dataset.test_fraction"]).classes)
    return _stated_classes(settings["dataset"])


def data_folder(named: str | os.PathLike | None) -> Path:
    """The folder of the data: `named`, or the user's cache folder (which need not exist). Raises UsageError."""
    if named is None:
        return cache_folder() / "clrun"
    folder = Path(named).expanduser()
    if not os.path.isdir(folder):  # False, too, where it may not be looked at
        what = "is not a folder" if os.path.exists(folder) else "does not exist"
        raise UsageError(
            f"data_dir={named} {what}: make the folder first (mkdir -p {named}), name another one, or leave data_dir "
            f"(and CLRUN_DATA_DIR) out to use {cache_folder() / 'clrun'}."
        )
    return folder


def _stated_classes(name: str) -> list[str]:
    import yaml

    return yaml.safe_load((CONF / "dataset" / f"{name}.yaml").read_text(encoding="utf-8"))["class_names"]


def _reader(name: str) -> Callable[[Mapping[str, Any], Path], Arrays]:
    readers = {"digits": _digits, "image_folder": _image_folder, "cifar10": _cifar, "cifar100": _cifar}
    readers |= dict.fromkeys(("mnist", "fashion_mnist", "kmnist"), _idx)
    if name not in readers:
        raise UsageError(f"dataset={name} is not known: use one of {', '.join(sorted(readers))}.")
    return readers[name]


def _images(arrays: Arrays, pad: int) -> Images:
    import torch

    count, channels, height, width = arrays.x.shape
    sides = f"dataset.pad={pad} (images of {height + 2 * pad} x {width + 2 * pad} pixels)"
    refuse_if_too_large(count * channels * (height + 2 * pad) * (width + 2 * pad), sides, "a smaller dataset.pad")
    x = arrays.x if pad == 0 else np.pad(arrays.x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    return Images(
        x=torch.from_numpy(np.ascontiguousarray(x)),
        y=torch.from_numpy(arrays.y),
        train=arrays.train,
        classes=tuple(arrays.classes),
        fingerprint=_fingerprint(arrays),
    )


def _fingerprint(arrays: Arrays) -> str:
    text = json.dumps([arrays.x.shape, arrays.train, list(arrays.classes)])
    digest = hashlib.blake2b(text.encode(), digest_size=5)
    digest.update(memoryview(np.ascontiguousarray(arrays.x)).cast("B"))
    digest.update(memoryview(np.ascontiguousarray(arrays.y, dtype="<i8")).cast("B"))
    return digest.hexdigest()


def _check(name: str, arrays: Arrays) -> None:
    outside = np.flatnonzero((arrays.y < 0) | (arrays.y >= len(arrays.classes)))
    if outside.size:
        raise UsageError(
            f"dataset={name} has {len(arrays.classes)} classes, 0 to {len(arrays.classes) - 1}, but image {outside[0]} "
            f"has the label {arrays.y[outside[0]]}: its files are of another data set or damaged. Remove them and "
            f"start again to download them, or name another folder with data_dir=..."
        )
    for part, labels in (("training", arrays.y[: arrays.train]), ("test", arrays.y[arrays.train :])):
        counts = np.bincount(labels, minlength=len(arrays.classes))
        if not counts.all():
            raise UsageError(
                f"dataset={name} has no {part} image of class {arrays.classes[int(counts.argmin())]}: its files are "
                f"damaged or cut. Remove them and start again to download them, or name another folder with "
                f"data_dir=..."
            )


# The digits


def _digits(settings: Mapping[str, Any], folder: Path) -> Arrays:
    """UCI's "Optical Recognition of Handwritten Digits" (Alpaydin & Kaynak 1998, CC BY 4.0), as scikit-learn holds it;
    a quarter of each class for testing. Training pictures come first."""
    with np.load(Path(__file__).with_name("digits.npz"), allow_pickle=False) as kept:
        x, y, train = kept["x"], kept["y"], int(kept["train"])
    x = np.rint(x * (255 / 16)).astype(np.uint8)  # values 0 to 16
    return Arrays(x[:, None], y.astype(np.int64), train, _stated_classes("digits"))


# The user's pictures


def _image_folder(settings: Mapping[str, Any], folder: Path) -> Arrays:
    from clrun.data.image_folder import read

    own = (settings["dataset.root"], settings["dataset.size"], settings["dataset.test_fraction"])
    return Arrays(*read(*own, cache_folder() / "clrun"))  # data_dir is the user's: it may be shared, or read-only


# The MNIST family: four IDX files (format: http://yann.lecun.com/exdb/mnist)


def _idx(settings: Mapping[str, Any], folder: Path) -> Arrays:
    name = settings["dataset"]
    raw = folder / TORCHVISION[name] / "raw"
    _obtain(name, folder, raw, list(IDX_FILES), [f"{file}.gz" for file in IDX_FILES])
    train_x, train_y, test_x, test_y = (_read_idx(name, raw / file, magic) for file, magic in IDX_FILES.items())
    for x, y, part in ((train_x, train_y, "train"), (test_x, test_y, "t10k")):
        if len(x) != len(y):
            raise _damaged(name, raw, f"the {part} files hold {len(x)} images but {len(y)} labels")
    if train_x.shape[1:] != test_x.shape[1:]:
        raise _damaged(name, raw, f"training images are {train_x.shape[1:]} and test images {test_x.shape[1:]} pixels")
    y = np.concatenate([train_y, test_y]).astype(np.int64)
    return Arrays(np.concatenate([train_x, test_x])[:, None], y, len(train_y), _stated_classes(name))


def _read_idx(name: str, path: Path, magic: int) -> np.ndarray:
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise _damaged(name, path, f"it cannot be read ({error.strerror})") from error
    header = 4 * (1 + magic % 256)  # the last byte of the magic number: how many dimensions
    if data.size < header:
        raise _damaged(name, path, f"it is torn: {data.size} bytes are no IDX file")
    found = int.from_bytes(data[:4].tobytes(), "big")
    if found != magic:
        raise _damaged(name, path, f"it starts with 0x{found:08x} instead of 0x{magic:08x}: it is another kind of file")
    shape = data[4:header].view(">u4").tolist()
    if data.size != header + math.prod(shape):
        raise _damaged(
            name, path, f"it is torn: {data.size} bytes instead of the {header + math.prod(shape)} that it states"
        )
    return data[header:].reshape(shape)


def _damaged(name: str, path: Path, what: str) -> UsageError:
    return UsageError(
        f"dataset={name}: {path} cannot be used: {what}. Remove it and start again to download it, put a good copy in "
        f"its place, or name another folder with data_dir=..."
    )


# CIFAR: pickled batches, which torchvision opens only where their checksum is right


def _cifar(settings: Mapping[str, Any], folder: Path) -> Arrays:
    import torchvision

    name = settings["dataset"]
    kind = getattr(torchvision.datasets, TORCHVISION[name])
    sums = {**dict(kind.train_list), **dict(kind.test_list), kind.meta["filename"]: kind.meta["md5"]}
    _obtain(name, folder, folder / kind.base_folder, list(sums), [kind.filename])
    try:
        train, test = kind(folder, train=True), kind(folder, train=False)
    except OSError as error:
        raise _damaged(name, folder / kind.base_folder, str(error)) from error
    except RuntimeError as error:  # torchvision's word for a wrong checksum
        raise _damaged(name, _first_wrong(folder / kind.base_folder, sums), "its checksum is wrong") from error
    x = np.concatenate([train.data, test.data]).transpose(0, 3, 1, 2)  # torchvision's are (N, H, W, C)
    y = np.array(train.targets + test.targets, dtype=np.int64)
    return Arrays(np.ascontiguousarray(x), y, len(train.targets), _stated_classes(name))


def _first_wrong(folder: Path, sums: Mapping[str, str]) -> Path:
    from torchvision.datasets.utils import check_integrity

    return next((folder / file for file, md5 in sums.items() if not check_integrity(folder / file, md5)), folder)


# Getting the files of torchvision's data sets
