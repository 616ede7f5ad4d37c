"""Data sets by name, each read as one block of samples in memory (`clrun.data.samples`), those for training first.

The file of `digits` lies beside this one. The MNIST family and CIFAR lie under `data_dir` in torchvision's layout, and
are downloaded by torchvision where they are missing. `image_folder` reads the user's own images. Whatever is wrong
with the files is a `UsageError` that states what belongs where. torch is imported where the images become tensors, so
that this module imports in milliseconds.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from clrun.data.downloads import TORCHVISION, obtain
from clrun.data.features import ExtractorOf, with_features
from clrun.data.samples import Arrays, Samples, to_samples
from clrun.data.values import Values
from clrun.system.errors import UsageError
from clrun.system.paths import CONF, cache_folder

# The magic numbers of IDX files: unsigned bytes in 3 dimensions, and in 1 dimension.
IDX_IMAGES, IDX_LABELS = 0x803, 0x801

# The files of the MNIST family, in the order in which they are read.
IDX_FILES = {
    "train-images-idx3-ubyte": IDX_IMAGES,
    "train-labels-idx1-ubyte": IDX_LABELS,
    "t10k-images-idx3-ubyte": IDX_IMAGES,
    "t10k-labels-idx1-ubyte": IDX_LABELS,
}


Images = Samples  # the former name

# Data sets whose reader refuses wrong labels itself.
CHECKED_BY_READER = ("arrays", "table", "torch", "torchvision", "several")


def load(settings: Values, own: partial[object] | None = None, extractor_of: ExtractorOf | None = None) -> Samples:
    """Return the data set `settings["dataset"]`, downloaded or decoded where it has to be, with zeros padded on.

    Besides `dataset`, the keys `data_dir` (a folder or None) and those of the data set are read. `own` is the function
    of a data set of the user's, with its arguments. With `extractor_of`, features take the place of pictures. Raise
    UsageError where the files are missing or damaged.
    """
    if settings["data_dir"] is not None:
        data_folder(settings["data_dir"])  # refused where it is none, even by data that need no folder
    name = settings["dataset"]
    if own is None and name == "image_folder":  # of which there may be too many for memory
        arrays = _image_folder(settings, extractor_of)
    else:
        arrays = _reader(name)(settings) if own is None else _own(name, own)
    if own is None and name not in CHECKED_BY_READER:
        _check(name, arrays)
    if extractor_of is not None and name != "image_folder":
        arrays = with_features(
            arrays, extractor_of, cache_folder() / "clrun" / "features", f"features={settings['features']}"
        )
    return to_samples(arrays, settings.get("dataset.pad", 0))


def class_names(name: str) -> list[str]:
    """Return the class names that the yaml of a built-in data set states, in the order of their numbers."""
    import yaml  # not needed for images of the user's own

    return yaml.safe_load((CONF / "dataset" / f"{name}.yaml").read_text(encoding="utf-8"))["class_names"]


def data_folder(named: str | os.PathLike | None) -> Path:
    """Return the folder of the data sets: `named`, or a folder in the user's cache, which need not exist.

    Raise UsageError if `named` is not a folder.
    """
    if named is None:
        return cache_folder() / "clrun"
    folder = Path(named).expanduser()
    if not os.path.isdir(folder):  # False, too, where permission is denied
        what = "is not a folder" if os.path.exists(folder) else "does not exist"
        raise UsageError(
            f"data_dir={named} {what}: make the folder first (mkdir -p {named}), name another one, or leave data_dir "
            f"(and CLRUN_DATA_DIR) out to use {cache_folder() / 'clrun'}."
        )
    return folder


def _reader(name: str) -> Callable[[Values], Arrays]:
    readers = {"digits": _digits, "image_folder": _image_folder, "cifar10": _cifar, "cifar100": _cifar}
    readers |= {"arrays": _arrays, "table": _table, "torch": _torch, "torchvision": _torchvision}
    readers |= {"alphabets": _alphabets, "several": _several}
    readers |= dict.fromkeys(("mnist", "fashion_mnist", "kmnist"), _idx)
    if name not in readers:
        raise UsageError(f"dataset={name} is not known: use one of {', '.join(sorted(readers))}.")
    return readers[name]


def _check(name: str, arrays: Arrays) -> None:
    """Raise UsageError for a label that is no class, and for a class without a training or test image."""
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


# ---------------------------------------------------------------- digits


def _digits(settings: Values) -> Arrays:
    """Return UCI's "Optical Recognition of Handwritten Digits" (Alpaydin & Kaynak 1998, CC BY 4.0), as in scikit-learn.

    A quarter of each class is for testing.
    """
    with np.load(Path(__file__).with_name("digits.npz"), allow_pickle=False) as file:
        x, y, train = file["x"], file["y"], int(file["train"])
    x = np.rint(x * (255 / 16)).astype(np.uint8)  # the file has values from 0 to 16
    return Arrays(x[:, None], y.astype(np.int64), train, class_names("digits"))


# ---------------------------------------------------------------- drawn characters


def _alphabets(settings: Values) -> Arrays:
    """Return characters that are drawn from the fonts of matplotlib."""
    from clrun.data import alphabets  # only for this data set

    keys = ("scripts", "characters", "samples", "test_samples")
    return alphabets.read(*(settings[f"dataset.{key}"] for key in keys))


# ---------------------------------------------------------------- images of the user's own


def _image_folder(settings: Values, extractor_of: ExtractorOf | None = None) -> Arrays:
    """Return the images below `dataset.root`, or their features. The cache is not in the data folder, which may be
    shared or read-only."""
    from clrun.data import image_folder  # only for this data set

    keys = ("root", "size", "test_fraction", "white", "skip_broken")
    root, size, test_fraction, white, skip_broken = (settings[f"dataset.{key}"] for key in keys)
    read = image_folder.read(root, size, test_fraction, cache_folder() / "clrun", white, skip_broken, extractor_of)
    x, y, train, classes, fingerprint, record, domain, domains, features = read
    return Arrays(
        x, y, train, classes, domain, domains,
        fingerprint=fingerprint, folder=record, features=features, pillow_version=record.pillow_version,
    )  # fmt: skip


# ---------------------------------------------------------------- torchvision


def _torchvision(settings: Values) -> Arrays:
    """Return the data set of torchvision that `dataset.set` names."""
    from clrun.data import torchvision_sets  # only for this data set

    keys = torchvision_sets.Typed._fields
    typed = torchvision_sets.Typed(**{key: settings[f"dataset.{key}"] for key in keys})
    return torchvision_sets.read(typed, data_folder(settings["data_dir"]), cache_folder() / "clrun")


def _several(settings: Values) -> Arrays:
    """Return the data sets that `dataset.names` lists, one after another."""
    from clrun.data import several  # only for this data set

    names, size, channels = (settings[f"dataset.{key}"] for key in ("names", "size", "channels"))
    return several.read(names, size, channels, partial(_one_of_several, settings))


def _one_of_several(settings: Values, name: str) -> Arrays:
    """Return one of several data sets, by a name of clrun's or of torchvision's."""
    from clrun.data import several

    if name in several.BUILT_IN:
        arrays = _reader(name)({"dataset": name, "data_dir": settings["data_dir"]})
        _check(name, arrays)
        return arrays
    values: dict[str, Any] = {f"dataset.{key}": None for key in ("args", "test_fraction")}
    values |= {"dataset.set": name, "dataset.size": settings["dataset.size"], "data_dir": settings["data_dir"]}
    return _torchvision(values)


# ---------------------------------------------------------------- data of the user's own


def _arrays(settings: Values) -> Arrays:
    """Return the arrays in the file `dataset.file`."""
    from clrun.data import arrays  # only for this data set

    return arrays.read(settings["dataset.file"])


def _table(settings: Values) -> Arrays:
    """Return the table in the file `dataset.file`."""
    from clrun.data import table  # only for this data set

    return table.read(table.Typed(**{key: settings[f"dataset.{key}"] for key in table.Typed._fields}))


def _torch(settings: Values) -> Arrays:
    """Return the two Datasets of PyTorch that the function `dataset.target` returns."""
    from clrun.data import torch_function  # only for this data set

    return torch_function.read(*(settings[f"dataset.{key}"] for key in ("target", "args", "size")))


def _own(name: str, function: partial[object]) -> Arrays:
    """Return what a function of the user's returns. Raise UsageError where it fails, and where that is no data set."""
    from clrun.data.check_parts import to_arrays
    from clrun.data.parts import Parts

    source, called = f"dataset={name}", f"{function.func.__module__}.{function.func.__qualname__}"
    try:
        parts = function()
    except UsageError:
        raise
    except Exception as error:  # any: it is the user's code that runs here
        reason = " ".join(str(error).split())
        raise UsageError(f"{source}: {called} has failed: {type(error).__name__}: {reason}.") from error
    if not isinstance(parts, Parts):
        raise UsageError(
            f"{source}: {called} returned {type(parts).__name__} in place of clrun.data.Parts; return "
            "Parts(x_train, y_train, x_test, y_test)."
        )
    return to_arrays(parts, source)


# ---------------------------------------------------------------- the MNIST family


def _idx(settings: Values) -> Arrays:
    """Return a data set of four IDX files (format: http://yann.lecun.com/exdb/mnist)."""
    name, folder = settings["dataset"], data_folder(settings["data_dir"])
    raw = folder / TORCHVISION[name] / "raw"
    obtain(name, folder, raw, list(IDX_FILES), [f"{file}.gz" for file in IDX_FILES])
    train_x, train_y, test_x, test_y = (_read_idx(name, raw / file, magic) for file, magic in IDX_FILES.items())
    for x, y, part in ((train_x, train_y, "train"), (test_x, test_y, "t10k")):
        if len(x) != len(y):
            raise _damaged_error(name, raw, f"the {part} files hold {len(x)} images but {len(y)} labels")
    if train_x.shape[1:] != test_x.shape[1:]:
        raise _damaged_error(
            name, raw, f"training images are {train_x.shape[1:]} and test images {test_x.shape[1:]} pixels"
        )
    y = np.concatenate([train_y, test_y]).astype(np.int64)
    return Arrays(np.concatenate([train_x, test_x])[:, None], y, len(train_y), class_names(name))


def _read_idx(name: str, path: Path, magic: int) -> np.ndarray:
    """Return the array in an IDX file; raise UsageError if it has another magic number or another size."""
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise _damaged_error(name, path, f"it cannot be read ({error.strerror})") from error
    header = 4 * (1 + magic % 256)  # bytes; the last byte of the magic number is the number of dimensions
    if data.size < header:
        raise _damaged_error(name, path, f"it is torn: {data.size} bytes are no IDX file")
    start = int.from_bytes(data[:4].tobytes(), "big")
    if start != magic:
        raise _damaged_error(
            name, path, f"it starts with 0x{start:08x} instead of 0x{magic:08x}: it is another kind of file"
        )
    shape = data[4:header].view(">u4").tolist()
    if data.size != header + math.prod(shape):
        raise _damaged_error(
            name, path, f"it is torn: {data.size} bytes instead of the {header + math.prod(shape)} that it states"
        )
    return data[header:].reshape(shape)


def _damaged_error(name: str, path: Path, what: str) -> UsageError:
    """Return the error that a file cannot be used; `what` is wrong with it."""
    return UsageError(
        f"dataset={name}: {path} cannot be used: {what}. Remove it and start again to download it, put a good copy in "
        f"its place, or name another folder with data_dir=..."
    )


# ---------------------------------------------------------------- CIFAR


def _cifar(settings: Values) -> Arrays:
    """Return a data set of pickled batches, which torchvision opens only where their checksum is right."""
    import torchvision  # seconds, and only for this data set

    name, folder = settings["dataset"], data_folder(settings["data_dir"])
    kind = getattr(torchvision.datasets, TORCHVISION[name])
    sums = {**dict(kind.train_list), **dict(kind.test_list), kind.meta["filename"]: kind.meta["md5"]}
    obtain(name, folder, folder / kind.base_folder, list(sums), [kind.filename])
    try:
        train, test = kind(folder, train=True), kind(folder, train=False)
    except OSError as error:
        raise _damaged_error(name, folder / kind.base_folder, str(error)) from error
    except RuntimeError as error:  # torchvision raises it for a wrong checksum
        raise _damaged_error(name, _first_wrong(folder / kind.base_folder, sums), "its checksum is wrong") from error
    x = np.concatenate([train.data, test.data]).transpose(0, 3, 1, 2)  # torchvision's are (N, H, W, C)
    y = np.array(train.targets + test.targets, dtype=np.int64)
    return Arrays(np.ascontiguousarray(x), y, len(train.targets), class_names(name))


def _first_wrong(folder: Path, sums: dict[str, str]) -> Path:
    """Return the first file whose checksum is wrong."""
    from torchvision.datasets.utils import check_integrity

    return next((folder / file for file, md5 in sums.items() if not check_integrity(folder / file, md5)), folder)
