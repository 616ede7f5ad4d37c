"""The data set `torchvision`: the classification data sets of torchvision, by the names of their classes there.

Those that torchvision holds in memory are taken from there. Those of picture files are decoded once and cached. Each is
known by its numbers, or by the bytes of its files.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import json
import os
import time
from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from clrun.data import downloads, map_style
from clrun.data.check_parts import to_arrays, wrong
from clrun.data.decoding import RULE
from clrun.data.file_digests import Digests, FileState, digests, read_arrays, write_arrays
from clrun.data.parts import Parts
from clrun.data.progress import WORTH_SAYING, print_seconds, progress_bar
from clrun.data.resizing import resized
from clrun.data.samples import Arrays, fingerprint
from clrun.data.torch_function import names_of
from clrun.system.errors import UsageError
from clrun.system.machine import refuse_if_too_large

NOTHING: Mapping[str, Any] = MappingProxyType({})
TRAIN_TEST = (MappingProxyType({"split": "train"}), MappingProxyType({"split": "test"}))
TRAINVAL_TEST = (MappingProxyType({"split": "trainval"}), MappingProxyType({"split": "test"}))
TRAIN_FLAG = (MappingProxyType({"train": True}), MappingProxyType({"train": False}))
WHOLE = (NOTHING, None)

# Endings of archives, of which the contents lie beside them.
ARCHIVES = (".zip", ".tgz", ".tar", ".tar.gz", ".gz")

# torchvision's classes that have a dataset=... of their own here.
OWN = {
    "MNIST": "mnist", "FashionMNIST": "fashion_mnist", "KMNIST": "kmnist", "CIFAR10": "cifar10", "CIFAR100": "cifar100",
    "ImageFolder": "image_folder",
}  # fmt: skip


class SetRule(NamedTuple):
    """How a data set of torchvision is read."""

    folder: str  # of its files, below the data folder; "" where they lie in the data folder itself
    files: tuple[str, ...]  # that torchvision downloads, below the data folder; empty where it downloads none
    parts: tuple[Mapping[str, Any], Mapping[str, Any] | None] = (
        TRAIN_TEST  # arguments of the parts; None: there is none
    )
    grey: bool = False  # whether pictures are grey, or else coloured
    sizes: bool = False  # whether pictures differ in size
    memory: tuple[str, str] | None = None  # the attributes that hold all pixels and all labels; None: picture files
    args: Mapping[str, tuple[Any, ...]] = NOTHING  # that dataset.args may state, with their values: the default first
    needs: str | None = None  # a library that torchvision reads it with
    keep_archives: bool = False  # whether torchvision wants to see the archives again
    threads: int | None = None  # that read pictures at the same time; None: one for each core


SETS = {
    "Caltech101": SetRule("caltech101", ("caltech101/101_ObjectCategories.tar.gz",), WHOLE, sizes=True),
    "Caltech256": SetRule("caltech256", ("caltech256/256_ObjectCategories.tar",), WHOLE, sizes=True),
    "Country211": SetRule("country211", ("country211.tgz",), sizes=True),
    "DTD": SetRule("dtd", ("dtd/dtd-r1.0.1.tar.gz",), sizes=True, args={"partition": tuple(range(1, 11))}),
    "EMNIST": SetRule(
        "EMNIST", ("EMNIST/raw/gzip.zip",), TRAIN_FLAG, grey=True, memory=("data", "targets"),
        args={"split": ("balanced", "byclass", "bymerge", "letters", "digits", "mnist")},
    ),
    "EuroSAT": SetRule("eurosat", ("eurosat/EuroSAT.zip",), WHOLE),
    "FER2013": SetRule("fer2013", (), grey=True),
    "FGVCAircraft": SetRule(
        "fgvc-aircraft-2013b", ("fgvc-aircraft-2013b.tar.gz",), TRAINVAL_TEST, sizes=True,
        args={"annotation_level": ("variant", "family", "manufacturer")},
    ),
    "Flowers102": SetRule(
        "flowers-102", tuple(f"flowers-102/{file}" for file in ("102flowers.tgz", "imagelabels.mat", "setid.mat")),
        sizes=True, needs="scipy",
    ),
    "Food101": SetRule("food-101", ("food-101.tar.gz",), sizes=True),
    "GTSRB": SetRule(
        "gtsrb", tuple(f"gtsrb/GTSRB{k}.zip" for k in ("-Training_fixed", "_Final_Test_Images", "_Final_Test_GT")),
        sizes=True,
    ),
    "Imagenette": SetRule(
        "imagenette2", ("imagenette2.tgz",), ({"split": "train"}, {"split": "val"}), sizes=True,
    ),
    "Omniglot": SetRule(
        "omniglot-py", ("omniglot-py/images_background.zip",), WHOLE, grey=True, keep_archives=True,
    ),
    "OxfordIIITPet": SetRule(
        "oxford-iiit-pet", ("oxford-iiit-pet/images.tar.gz", "oxford-iiit-pet/annotations.tar.gz"), TRAINVAL_TEST,
        sizes=True,
    ),
    "PCAM": SetRule(
        "pcam", tuple(f"pcam/camelyonpatch_level_2_split_{k}.h5" for k in ("train_x", "train_y", "test_x", "test_y")),
        needs="h5py", threads=1,
    ),
    "QMNIST": SetRule(
        "QMNIST", tuple(f"QMNIST/raw/qmnist-{k}.gz" for k in (
            "train-images-idx3-ubyte", "train-labels-idx2-int", "test-images-idx3-ubyte", "test-labels-idx2-int",
        )), TRAIN_FLAG, grey=True, memory=("data", "targets"),
    ),
    "RenderedSST2": SetRule("rendered-sst2", ("rendered-sst2.tgz",)),
    "SEMEION": SetRule("", ("semeion.data",), WHOLE, grey=True, memory=("data", "labels")),
    "StanfordCars": SetRule("stanford_cars", (), sizes=True, needs="scipy"),
    "STL10": SetRule("", ("stl10_binary.tar.gz",), memory=("data", "labels")),
    "SUN397": SetRule("SUN397", ("SUN397.tar.gz",), WHOLE, sizes=True),
    "SVHN": SetRule("", ("train_32x32.mat", "test_32x32.mat"), memory=("data", "labels"), needs="scipy"),
    "USPS": SetRule("", ("usps.bz2", "usps.t.bz2"), TRAIN_FLAG, grey=True, memory=("data", "targets")),
}  # fmt: skip


class Typed(NamedTuple):
    """What is typed about a data set of torchvision: the values of the keys `dataset.*`."""

    set: str | None
    args: Mapping[str, Any] | None = None
    size: int | None = None
    test_fraction: float | None = None


class Loaded(NamedTuple):
    """A data set that was read: the training samples, then the test samples."""

    x: np.ndarray  # (N, C, H, W) uint8
    y: np.ndarray  # (N,) int64, as torchvision numbers the classes
    train: int  # number of training samples; all where torchvision has no test part
    names: list[str] | None
    pillow_version: str | None = None  # which decoded them; None where they lie decoded in memory


def read(typed: Typed, folder: Path, cache: Path) -> Arrays:
    """Return a data set of torchvision, downloaded into `folder` where it has to be.

    cache: the folder in which decoded pictures are kept. Raise UsageError where it cannot be had, or trained on.
    """
    rule = rule_of(typed)
    assert typed.set is not None  # rule_of() has refused that
    source, start = f"dataset.set={typed.set}", time.monotonic()
    train, test = opened(typed.set, rule, typed.args or {}, folder)
    if rule.memory is not None:
        return from_memory(typed, rule, train, test, source)
    files = found_files(typed, folder / rule.folder, cache)
    held = cached(files.path)
    loaded = held or decoded(typed, rule, train, test, source)
    arrays = to_arrays(divided(loaded, typed, rule, source), source)
    if held is None:  # and nothing is refused
        print_seconds("torchvision", f"reading {len(loaded.x)} pictures of {typed.set}", start, WORTH_SAYING)
        about = np.frombuffer(json.dumps([loaded.train, loaded.names, loaded.pillow_version]).encode(), np.uint8)
        write_arrays(files.path, "torchvision", x=loaded.x, y=loaded.y, about=about)
    files.digests.remember(files.memory)
    mark = digest(files.mark, typed.test_fraction)[:10]
    return arrays._replace(fingerprint=mark, pillow_version=loaded.pillow_version)


def from_memory(typed: Typed, rule: SetRule, train: Any, test: Any, source: str) -> Arrays:
    """Return what torchvision's data sets hold in memory."""
    arrays = to_arrays(divided(in_memory(rule, train, test, source), typed, rule, source), source)
    if typed.size is None:
        return arrays
    mark = digest(fingerprint(arrays), RULE, typed.size)[:10]  # known by the pixels before Pillow resizes them
    return arrays._replace(x=at_size(arrays.x, typed.size, source), fingerprint=mark)


def at_size(x: np.ndarray, size: int, source: str) -> np.ndarray:
    """Return pictures at another size. Raise UsageError where they do not fit into memory."""
    needed = len(x) * x.shape[1] * size**2
    refuse_if_too_large(needed, f"{source} dataset.size={size} for {len(x)} pictures", "a smaller one")
    return resized(x, size)


# ---------------------------------------------------------------- what is typed


def rule_of(typed: Typed) -> SetRule:
    """Return the rule of the data set that is typed. Raise UsageError where there is none, or where other keys do not
    fit it; nothing is read or downloaded before."""
    if typed.set is None:
        raise UsageError(
            f"dataset=torchvision needs the name of a data set: type dataset.set=SVHN, or another of {', '.join(SETS)}."
        )
    if typed.set in OWN:
        raise UsageError(f"dataset.set={typed.set}: this one is read by dataset={OWN[typed.set]}; type that.")
    if typed.set not in SETS:
        lower = {name.lower(): name for name in (*SETS, *OWN)}
        near = difflib.get_close_matches(typed.set.lower(), lower, 1)
        meant = f"; did you mean {lower[near[0]]}? " if near else ". "
        raise UsageError(
            f"dataset.set={typed.set}: this is no classification data set of torchvision that clrun reads{meant}There "
            f"are {', '.join(SETS)}."
        )
    rule = SETS[typed.set]
    refuse_args(typed, rule)
    refuse_parts(typed, rule)
    if rule.sizes and typed.size is None:
        raise UsageError(
            f"dataset.set={typed.set}: its pictures differ in size; type the height and width that all are brought to, "
            "such as dataset.size=64."
        )
    if rule.needs is not None and importlib.util.find_spec(rule.needs) is None:
        raise UsageError(
            f"dataset.set={typed.set} is read with {rule.needs}, which is not installed here; type pip install "
            "'clrun[torchvision]'."
        )
    return rule


def refuse_args(typed: Typed, rule: SetRule) -> None:
    """Raise UsageError for an argument that the data set does not take, and for another value than it takes."""
    for name, value in (typed.args or {}).items():
        if name not in rule.args:
            takes = f"it takes {', '.join(rule.args)}" if rule.args else "it takes none, so leave dataset.args out"
            raise UsageError(f"dataset.args: {typed.set} has no argument {name} that changes its classes; {takes}.")
        if value not in rule.args[name]:
            values = ", ".join(map(str, rule.args[name]))
            raise UsageError(f"dataset.args: {name} of {typed.set} is {value}, and must be one of {values}.")


def refuse_parts(typed: Typed, rule: SetRule) -> None:
    """Raise UsageError where the test part is not there, or is there twice."""
    if rule.parts[1] is None and typed.test_fraction is None:
        raise UsageError(
            f"dataset.set={typed.set} has no test part; hold a share of each class out for testing, as "
            "dataset.test_fraction=0.2."
        )
    if rule.parts[1] is not None and typed.test_fraction is not None:
        raise UsageError(
            f"dataset.set={typed.set} has a test part, and dataset.test_fraction={typed.test_fraction} would hold out "
            "other pictures; leave dataset.test_fraction out."
        )


# ---------------------------------------------------------------- opening and downloading


def opened(name: str, rule: SetRule, args: Mapping[str, Any], folder: Path) -> tuple[Any, Any]:
    """Return the training and the test part as torchvision's data sets, downloaded where they are not there. The test
    part is None where there is none. Raise UsageError where they cannot be had, or are damaged."""
    import torchvision  # seconds

    kind = getattr(torchvision.datasets, name)

    def opened_in(root: Path, download: bool) -> tuple[Any, Any]:
        stated = {"download": download} if rule.files else {}
        defaults = {argument: values[0] for argument, values in rule.args.items()}
        train, test = (
            None if part is None else kind(root, **{**defaults, **part, **args}, **stated) for part in rule.parts
        )
        return train, test

    try:
        return opened_in(folder, False)
    except (RuntimeError, FileNotFoundError, NotADirectoryError) as error:  # they are not there, or not as they were
        first = error
    except Exception as error:  # any: damaged files make readers raise nearly anything
        raise damaged_error(name, rule, folder, error) from error
    if not rule.files:
        raise absent_error(name, rule, folder, first, "torchvision does not download it")
    try:
        downloads.fetch(folder, rule.files, lambda stage: opened_in(stage, True), rule.keep_archives)
    except downloads.download_errors() as error:
        reason = " ".join(str(getattr(error, "reason", error)).split())
        raise absent_error(name, rule, folder, error, f"it could not be downloaded ({reason})") from error
    try:
        return opened_in(folder, False)
    except Exception as error:  # any, as above: files that lay there before are damaged
        raise damaged_error(name, rule, folder, error) from error


def absent_error(name: str, rule: SetRule, folder: Path, error: Exception, why: str) -> UsageError:
    """Return the error that the files are not there; why they were not downloaded."""
    place = folder / rule.folder
    what = (
        f"{', '.join(rule.files)} into {folder}" if rule.files else f"its files into {place}, as torchvision reads them"
    )
    found = "" if rule.files else f" ({map_style.cause(error)})"
    return UsageError(
        f"dataset.set={name}: torchvision does not find it whole in {folder}{found}, and {why}. Put {what}, name the "
        "folder that holds them with data_dir=... or CLRUN_DATA_DIR, or use dataset=digits, which needs no files."
    )


def damaged_error(name: str, rule: SetRule, folder: Path, error: Exception) -> UsageError:
    """Return the error that the files that are there cannot be read."""
    what = folder / rule.folder if rule.folder else f"{' or '.join(rule.files)} in {folder}"
    return UsageError(
        f"dataset.set={name}: {what} cannot be used ({map_style.cause(error)}): remove it and start again to download "
        "it, put a good copy in its place, or name another folder with data_dir=..."
    )


# ---------------------------------------------------------------- reading


def in_memory(rule: SetRule, train: Any, test: Any, source: str) -> Loaded:
    """Return what the data sets hold in memory."""
    assert rule.memory is not None
    blocks, labels = [], []
    for part in (train, test):
        if part is not None:
            x, y = (np.asarray(getattr(part, name)) for name in rule.memory)
            blocks.append(x[:, None] if x.ndim == 3 else x)
            labels.append((y if y.ndim == 1 else y[:, 0]).astype(np.int64))
    if any(len(x) != len(y) for x, y in zip(blocks, labels, strict=True)):
        raise wrong(source, "its files hold other numbers of pictures and of labels; remove them to download them anew")
    return Loaded(np.concatenate(blocks), np.concatenate(labels), len(labels[0]), class_names(train, source))


class Files(NamedTuple):
    """The files of a data set."""

    mark: str  # digits of the bytes of all of them, and of what is typed about them
    path: Path  # of the cache file with their pictures
    digests: Digests
    memory: Path  # of the cache file with their digests


def found_files(typed: Typed, folder: Path, cache: Path) -> Files:
    """Return what is known of the files in a folder."""
    paths, states = files_below(folder)
    name = hashlib.blake2b(os.fsencode(os.path.abspath(folder)), digest_size=10).hexdigest()
    memory = cache / "file_digests" / f"{name}.npz"
    found = digests(paths, states, memory)
    relative = [os.path.relpath(path, folder) for path in paths]
    mark = digest(found.rows.tobytes().hex(), relative, RULE, typed.set, dict(typed.args or {}), typed.size)
    return Files(mark, cache / "torchvision" / f"{mark}.npz", found, memory)


def files_below(folder: Path) -> tuple[list[str], list[FileState]]:
    """Return all files in and below a folder but for archives, by name, and their states."""
    paths = sorted(
        os.path.join(inside, file)
        for inside, _, files in os.walk(folder)
        for file in files
        if not file.lower().endswith(ARCHIVES)
    )
    found = [os.stat(path) for path in paths]
    return paths, [FileState(one.st_size, one.st_mtime_ns, one.st_ctime_ns, one.st_ino % 2**63) for one in found]


def cached(path: Path) -> Loaded | None:
    """Return what a cache file holds; None where there is none, or where it is damaged or of something else."""
    arrays = read_arrays(path, "torchvision")
    if arrays is None or not {"x", "y", "about"} <= set(arrays):
        return None
    train, names, pillow_version = json.loads(arrays["about"].tobytes())
    return Loaded(arrays["x"], arrays["y"], train, names, pillow_version)


def decoded(typed: Typed, rule: SetRule, train: Any, test: Any, source: str) -> Loaded:
    """Return all pictures, read with a progress bar. Raise UsageError for one that cannot be read."""
    parts = {name: part for name, part in (("train", train), ("test", test)) if part is not None}
    count = sum(map(len, parts.values()))
    convert = partial(picture, size=typed.size, grey=rule.grey)
    threads = rule.threads or os.cpu_count() or 1
    with progress_bar(f"reading {count} pictures of {typed.set}", count) as advance:
        blocks = [map_style.collect(part, name, source, convert, advance, threads) for name, part in parts.items()]
    x, y = (np.concatenate(arrays) for arrays in zip(*blocks, strict=True))
    return Loaded(x, y, len(train), class_names(train, source), version("pillow"))


def picture(image: Any, where: str, size: int | None, grey: bool) -> np.ndarray:
    """Return a picture of Pillow, or a tensor of one, as (C, H, W) uint8."""
    from PIL import Image

    if not isinstance(image, Image.Image):
        image = Image.fromarray(np.asarray(image))
    return map_style.picture(image, size, grey)


def class_names(dataset: Any, source: str) -> list[str] | None:
    """Return the names of the classes under the attribute that has them; None where there is none."""
    attributes = (getattr(dataset, name, None) for name in ("classes", "categories", "_characters"))
    found = next((names for names in attributes if names is not None), None)
    return None if found is None else names_of(found, source)


def divided(loaded: Loaded, typed: Typed, rule: SetRule, source: str) -> Parts:
    """Return training and test part, without classes of which there is no picture, such as N/A of EMNIST's letters."""
    if loaded.y.min() < 0 or (loaded.names is not None and loaded.y.max() >= len(loaded.names)):
        raise wrong(
            source,
            f"its labels go from {loaded.y.min()} to {loaded.y.max()}, beyond its classes: its files are damaged; "
            "remove them and start again to download them",
        )
    there = np.unique(loaded.y)
    names = None if loaded.names is None else [loaded.names[k] for k in there.tolist()]
    y = np.searchsorted(there, loaded.y)
    held = np.arange(len(y)) >= loaded.train
    if rule.parts[1] is None:
        assert typed.test_fraction is not None  # refuse_parts() has refused that
        held = held_out(y, typed.test_fraction, names or list(map(str, there.tolist())), source)
    return Parts(loaded.x[~held], y[~held], loaded.x[held], y[held], names)


def held_out(y: np.ndarray, fraction: float, names: list[str], source: str) -> np.ndarray:
    """Return whether each sample (N,) is held out for testing: a share of each class, always the same samples. Raise
    UsageError where a class has too few."""
    random = np.random.RandomState(0)  # not default_rng, whose stream may change between versions of NumPy
    held = np.zeros(len(y), bool)
    for label, name in enumerate(names):
        rows = random.permutation(np.flatnonzero(y == label))
        count = round(len(rows) * fraction)
        if count in (0, len(rows)):
            raise wrong(
                source,
                f"class {name} has too few pictures to split: dataset.test_fraction={fraction} of {len(rows)} leaves "
                f"none for {'testing' if count == 0 else 'training'}; type another dataset.test_fraction",
            )
        held[rows[:count]] = True
    return held


def digest(*stated: Any) -> str:
    """Return 20 hexadecimal digits of what can be written as JSON."""
    return hashlib.blake2b(json.dumps(stated, sort_keys=True).encode(), digest_size=10).hexdigest()
