"""dataset=torchvision: data sets of torchvision, on small files of the real formats; downloads; and what is refused."""

import bz2
import gzip
import io
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
import torchvision
from PIL import Image
from test_bad_input import refused, written
from test_datasets import idx, md5, server  # noqa: F401 (a fixture)

from clrun.data import torchvision_sets
from clrun.data.resizing import resized, with_channels
from clrun.data.torchvision_sets import OWN, SETS, Typed

scipy_io = pytest.importorskip("scipy.io")
pytestmark = pytest.mark.usefixtures("empty_folder")

SHORT = ("iterations=2", "model.widths=[8]", "device=cpu", "workers=1", "pictures=false", "tasks=2")
CLASSES = torchvision.datasets


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Every download of these tests would come from an address where nobody answers."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(CLASSES.EMNIST, "url", "http://127.0.0.1:9/gzip.zip")
    monkeypatch.setattr(CLASSES.STL10, "url", "http://127.0.0.1:9/stl10_binary.tar.gz")
    monkeypatch.setattr(CLASSES.Flowers102, "_download_url_prefix", "http://127.0.0.1:9/")
    for kind in (CLASSES.SVHN, CLASSES.USPS):
        lists = {
            split: [f"http://127.0.0.1:9/{file}", file, sum_] for split, (_, file, sum_) in kind.split_list.items()
        }
        monkeypatch.setattr(kind, "split_list", lists)


def pixels(count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, *shape), np.uint8)


def emnist(split: str = "letters", classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """The first letters (whose labels go from 1), as torchvision unpacks them."""
    raw = Path("data/EMNIST/raw")
    raw.mkdir(parents=True)
    first = split == "letters"
    x, y = pixels(32, 6, 5), np.arange(32, dtype=np.uint8) % classes + first
    for part, rows in (("train", slice(24)), ("test", slice(24, 32))):
        (raw / f"emnist-{split}-{part}-images-idx3-ubyte").write_bytes(idx(x[rows]))
        (raw / f"emnist-{split}-{part}-labels-idx1-ubyte").write_bytes(idx(y[rows]))
    return x[:, None], y.astype(int) - first


def svhn(monkeypatch) -> tuple[np.ndarray, np.ndarray]:
    """Pictures in MATLAB's format; the digit 0 has the label 10 there."""
    Path("data").mkdir()
    x, y = pixels(60, 3, 8, 8), np.arange(60) % 10
    lists = dict(CLASSES.SVHN.split_list)
    for part, rows in (("train", slice(40)), ("test", slice(40, 60))):
        file = Path("data") / lists[part][1]
        label = np.where(y[rows] == 0, 10, y[rows]).astype(np.uint8)[:, None]
        scipy_io.savemat(file, {"X": x[rows].transpose(2, 3, 1, 0), "y": label})
        lists[part] = [*lists[part][:2], md5(file.read_bytes())]
    monkeypatch.setattr(CLASSES.SVHN, "split_list", lists)
    return x, y


def stl10(monkeypatch) -> tuple[np.ndarray, np.ndarray]:
    """Binary files of 96 x 96 pixels, column by column, with labels from 1."""
    folder = Path("data/stl10_binary")
    folder.mkdir(parents=True)
    x, y = pixels(40, 3, 96, 96), np.arange(40) % 10
    content = {
        "train_X.bin": x[:20].transpose(0, 1, 3, 2).tobytes(), "train_y.bin": (y[:20] + 1).astype(np.uint8).tobytes(),
        "test_X.bin": x[20:].transpose(0, 1, 3, 2).tobytes(), "test_y.bin": (y[20:] + 1).astype(np.uint8).tobytes(),
        "unlabeled_X.bin": b"", "class_names.txt": b"\n".join(name.encode() for name in STL10_NAMES),
    }  # fmt: skip
    for name, data in content.items():
        (folder / name).write_bytes(data)
    lists = {
        name: [[f, md5(content[f])] for f, _ in getattr(CLASSES.STL10, name)] for name in ("train_list", "test_list")
    }
    for name, listed in lists.items():
        monkeypatch.setattr(CLASSES.STL10, name, listed)
    return x, y


STL10_NAMES = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]


def usps() -> tuple[np.ndarray, np.ndarray]:
    """Lines of LIBSVM's format: labels from 1, and pixels from -1 to 1."""
    Path("data").mkdir(exist_ok=True)
    x, y = pixels(30, 16, 16), np.arange(30) % 10
    for file, rows in (("usps.bz2", slice(20)), ("usps.t.bz2", slice(20, 30))):
        lines = [
            " ".join([str(label + 1), *(f"{k + 1}:{2 * v / 255 - 1:.12f}" for k, v in enumerate(image.reshape(-1)))])
            for image, label in zip(x[rows].astype(float), y[rows], strict=True)
        ]
        Path("data", file).write_bytes(bz2.compress("\n".join(lines).encode()))
    return x[:, None], y


def flowers(monkeypatch, kinds: int = 4) -> Path:
    """Photos of different sizes, with labels and parts in MATLAB's format."""
    folder = Path("data/flowers-102")
    (folder / "jpg").mkdir(parents=True)
    for number in range(1, 25):
        size = (20 + number, 30 - number % 5)
        Image.fromarray(pixels(number, size[1], size[0], 3)[0]).save(folder / "jpg" / f"image_{number:05d}.jpg")
    scipy_io.savemat(folder / "imagelabels.mat", {"labels": np.arange(24)[None] % kinds + 1})
    numbers = np.arange(1, 25)[None]
    scipy_io.savemat(
        folder / "setid.mat", {"trnid": numbers[:, :12], "valid": numbers[:, 12:16], "tstid": numbers[:, 16:]}
    )
    files = {
        name: (file, md5((folder / file).read_bytes()) if file.endswith(".mat") else sum_)
        for name, (file, sum_) in CLASSES.Flowers102._file_dict.items()
    }
    monkeypatch.setattr(CLASSES.Flowers102, "_file_dict", files)
    return folder


def eurosat(classes=("Forest", "River"), count: int = 10) -> Path:
    folder = Path("data/eurosat/2750")
    for k, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for n in range(count):
            Image.fromarray(pixels(10 * k + n + 1, 12, 12, 3)[0]).save(folder / name / f"{name}_{n}.png")
    return folder


def of(name: str, *typed: str) -> tuple[str, ...]:
    return "dataset=torchvision", f"dataset.set={name}", "data_dir=data", *typed, *SHORT


def load(name: str, **typed):
    return torchvision_sets.read(Typed(name, **typed), Path("data"), Path("cache"))


# ---------------------------------------------------------------- what is read


def test_emnist(prepared_of):
    x, y = emnist()
    images = prepared_of(*of("EMNIST", "dataset.args={split:letters}")).images
    assert np.array_equal(images.x.numpy(), x) and images.y.tolist() == y.tolist() and images.train == 24
    assert images.classes == ("a", "b", "c", "d")  # without N/A, of which there is no picture
    theirs = CLASSES.EMNIST("data", "letters", train=False)
    assert np.array_equal(np.asarray(theirs[3][0]), x[27, 0]) and theirs[3][1] == y[27] + 1


def test_svhn_stl10_and_usps(prepared_of, monkeypatch):
    for write, shape in ((svhn, (3, 8, 8)), (stl10, (3, 96, 96))):
        x, y = write(monkeypatch)
        images = prepared_of(*of(write.__name__.upper())).images
        assert images.shape == shape and np.array_equal(images.x.numpy(), x) and images.y.tolist() == y.tolist()
        assert images.classes == (tuple(STL10_NAMES) if write is stl10 else tuple("0123456789"))
        shutil.rmtree("data")
    x, y = usps()
    images = prepared_of(*of("USPS")).images
    assert np.abs(images.x.numpy().astype(int) - x).max() <= 1 and images.y.tolist() == y.tolist()  # torchvision cuts


def test_pictures_of_other_sizes(prepared_of, monkeypatch, cache_home, capfd):
    folder = flowers(monkeypatch)
    typed = of("Flowers102", "dataset.size=16")
    run = prepared_of(*typed)
    first = run.images
    assert first.shape == (3, 16, 16) and first.train == 12 and len(first.x) == 20
    assert first.classes == ("pink primrose", "hard-leaved pocket orchid", "canterbury bells", "sweet pea")
    assert first.y.tolist() == [(n - 1) % 4 for n in [*range(1, 13), *range(17, 25)]]
    from clrun.data.decoding import decode

    assert np.array_equal(first.x[15].numpy(), decode(str(folder / "jpg" / "image_00020.jpg"), 16)) or (
        np.abs(first.x[15].numpy().astype(int) - decode(str(folder / "jpg" / "image_00020.jpg"), 16)).mean() < 12
    )  # a folder's pictures may be decoded at a part of their size first
    capfd.readouterr()
    again = torchvision_sets.read(Typed("Flowers102", size=16), Path("data"), cache_home / "clrun")
    assert capfd.readouterr().err == "" and np.array_equal(again.x, first.x.numpy())  # from the cache
    assert again.fingerprint == first.fingerprint and again.pillow_version == first.pillow_version == PIL.__version__
    shutil.copytree("data", "elsewhere", dirs_exist_ok=True)
    assert prepared_of(*typed[:2], "data_dir=elsewhere", *typed[3:]).id == run.id
    Image.new("RGB", (30, 30), "red").save(folder / "jpg" / "image_00001.jpg")
    changed_one = torchvision_sets.read(Typed("Flowers102", size=16), Path("data"), cache_home / "clrun")
    assert changed_one.fingerprint != first.fingerprint and (changed_one.x[0, 1:] < 10).all()  # red, and decoded anew


def test_a_test_part_is_held_out_where_there_is_none(prepared_of):
    eurosat()
    images = prepared_of(*of("EuroSAT", "dataset.test_fraction=0.3", "scenario=class")).images
    assert images.shape == (3, 12, 12) and images.train == 14 and images.classes == ("Forest", "River")
    assert images.y[14:].bincount().tolist() == [3, 3]
    files = sorted(Path("data/eurosat/2750").rglob("*.png"))
    found = {np.asarray(Image.open(file)).transpose(2, 0, 1).tobytes() for file in files}
    assert {picture.numpy().tobytes() for picture in images.x} == found


def test_a_damaged_cache_is_read_anew(monkeypatch, capfd):
    flowers(monkeypatch)
    first = load("Flowers102", size=16)
    (file,) = Path("cache/torchvision").glob("*.npz")
    file.write_bytes(file.read_bytes()[:-300])
    capfd.readouterr()
    assert np.array_equal(load("Flowers102", size=16).x, first.x)
    assert "torchvision: " in (said := capfd.readouterr().err) and "is torn" in said


def test_a_size_of_data_in_memory(prepared_of, monkeypatch):
    x, _ = svhn(monkeypatch)
    small, plain = prepared_of(*of("SVHN", "dataset.size=4")), prepared_of(*of("SVHN"))
    assert small.images.shape == (3, 4, 4) and np.array_equal(small.images.x.numpy(), resized(x, 4))
    assert small.id != plain.id and small.images.fingerprint != plain.images.fingerprint


def test_a_run(clrun, monkeypatch):
    svhn(monkeypatch)
    code, _, err = clrun(*of("SVHN"), "split.classes=[[0,1],[2,3]]", "scenario=class")
    assert code == 0, err
    assert (
        len(list(Path("outputs").glob("runs/*/torchvision-classes-class-2tasks-dataset.set=SVHN-*/summary.csv"))) == 1
    )


def test_resizing_and_channels():
    x = pixels(3, 3, 10, 8)
    images = [Image.fromarray(one.transpose(1, 2, 0)) for one in x]
    grey = np.stack([np.asarray(image.convert("L")) for image in images])[:, None]
    assert np.array_equal(with_channels(x, 1), grey)
    assert np.array_equal(with_channels(grey, 3), np.concatenate([grey] * 3, 1)) and with_channels(x, 3) is x
    fitted = images[1].resize((4, 4), Image.Resampling.BILINEAR, box=(0, 1, 8, 9))
    assert np.array_equal(resized(x, 4)[1], np.asarray(fitted).transpose(2, 0, 1))
    fitted = images[2].convert("L").resize((4, 4), Image.Resampling.BILINEAR, box=(0, 1, 8, 9))
    assert np.array_equal(resized(grey, 4)[2, 0], np.asarray(fitted))


def test_every_rule_names_a_class_of_torchvision():
    """The arguments that a rule states are those of the class, and what it needs is there."""
    import inspect

    for name, rule in SETS.items():
        kind = getattr(CLASSES, name)
        parameters = {
            parameter
            for base in kind.__mro__ if "__init__" in vars(base)
            for parameter in inspect.signature(base.__init__).parameters
        }  # fmt: skip
        stated = {*rule.args, *rule.parts[0], *(rule.parts[1] or {})} | ({"download"} if rule.files else set())
        assert stated <= parameters, name
        assert not rule.sizes or rule.memory is None
    assert all(hasattr(CLASSES, name) for name in OWN)


# ---------------------------------------------------------------- downloads


def test_a_download_and_an_archive_that_is_there(server, monkeypatch, prepared_of):  # noqa: F811
    served, address = server
    x, y = emnist("balanced", 47)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for file in sorted(Path("data/EMNIST/raw").iterdir()):
            archive.writestr(f"gzip/{file.name}.gz", gzip.compress(file.read_bytes()))
    shutil.rmtree("data")
    (served / "gzip.zip").write_bytes(packed.getvalue())
    monkeypatch.setattr(CLASSES.EMNIST, "md5", md5(packed.getvalue()))
    Path("data").mkdir()
    monkeypatch.setattr(CLASSES.EMNIST, "url", f"{address}gzip.zip")
    parts = torchvision_sets.opened("EMNIST", SETS["EMNIST"], {}, Path("data"))
    assert np.array_equal(parts[0].data.numpy(), x[:24, 0]) and parts[1].targets.tolist() == y[24:].tolist()
    names = sorted(path.name for path in Path("data").rglob("*") if path.is_file())
    assert len(names) == 4 and not any(name.endswith((".gz", ".zip")) for name in names)
    assert [path.name for path in Path("data").iterdir()] == ["EMNIST"]  # nothing else is left there
    for file in Path("data/EMNIST/raw").iterdir():
        file.unlink()
    Path("data/EMNIST/raw/gzip.zip").write_bytes(packed.getvalue())
    monkeypatch.setattr(CLASSES.EMNIST, "url", "http://127.0.0.1:9/gzip.zip")
    parts = torchvision_sets.opened("EMNIST", SETS["EMNIST"], {}, Path("data"))
    assert len(parts[0]) == 24 and Path("data/EMNIST/raw/gzip.zip").is_file()


# ---------------------------------------------------------------- what is refused


def empty(*_) -> None:
    Path("data").mkdir()


def changed(write, file: str, content: bytes):
    """Return a function that writes a data set and then changes one of its files."""

    def made(monkeypatch) -> None:
        write(monkeypatch)
        Path("data", file).write_bytes(content)

    return made


def broken_photo(monkeypatch) -> None:
    (flowers(monkeypatch) / "jpg" / "image_00003.jpg").write_bytes(b"no picture")


def without_photo(monkeypatch) -> None:
    (flowers(monkeypatch) / "jpg" / "image_00018.jpg").unlink()


def empty_without_h5py(monkeypatch) -> None:
    empty(monkeypatch)
    monkeypatch.setitem(sys.modules, "h5py", None)


LETTERS = "EMNIST/raw/emnist-letters-train-"
OF_LETTERS = of("EMNIST", "dataset.args={split:letters}")

WRONG = {
    "none named": (empty, ("dataset=torchvision", *SHORT), "type dataset.set=SVHN, or another of Caltech101"),
    "misspelt": (empty, of("SHVN"), "dataset.set=SHVN: this is no classification data set of torchvision"),
    "in small letters": (empty, of("svhn"), "did you mean SVHN?"),
    "no pictures of classes": (empty, of("CocoDetection"), "There are Caltech101, Caltech256"),
    "one of clrun's": (empty, of("CIFAR10"), "dataset.set=CIFAR10: this one is read by dataset=cifar10; type that"),
    "sizes": (empty, of("Flowers102"), "its pictures differ in size; type the height and width"),
    "a small size": (empty, of("Flowers102", "dataset.size=2"), "dataset.size=2: must be a whole number, at least 4"),
    "no argument": (
        empty,
        of("SVHN", "dataset.args={split:extra}"),
        "SVHN has no argument split that changes its classes; it takes none",
    ),
    "another argument": (
        empty,
        of("EMNIST", "dataset.args={part:letters}"),
        "has no argument part that changes its classes; it takes split",
    ),
    "another value": (
        empty,
        of("EMNIST", "dataset.args={split:greek}"),
        "split of EMNIST is greek, and must be one of balanced",
    ),
    "no test part": (empty, of("EuroSAT"), "dataset.set=EuroSAT has no test part; hold a share of each class out"),
    "two test parts": (
        empty,
        of("SVHN", "dataset.test_fraction=0.2"),
        "has a test part, and dataset.test_fraction=0.2 would",
    ),
    "no library": (
        empty_without_h5py,
        of("PCAM"),
        "is read with h5py, which is not installed here; type pip install 'clrun[torchvision]'",
    ),
    "no folder": (lambda _: None, of("SVHN"), "data_dir=data does not exist: make the folder first"),
    "absent": (empty, of("SVHN"), "Put train_32x32.mat, test_32x32.mat into data, name the folder that holds them"),
    "absent archive": (empty, of("STL10"), "could not be downloaded ([Errno 111] Connection refused). Put"),
    "absent photos": (
        empty,
        of("Flowers102", "dataset.size=16"),
        "flowers-102/102flowers.tgz, flowers-102/imagelabels.mat",
    ),
    "never downloaded": (empty, of("FER2013"), "torchvision does not download it. Put its files into data/fer2013"),
    "absent idx": (empty, OF_LETTERS, "Put EMNIST/raw/gzip.zip into data"),
    "one part alone": (changed(svhn, "test_32x32.mat", b""), of("SVHN"), "torchvision does not find it whole in data"),
    "another checksum": (
        changed(stl10, "stl10_binary/test_y.bin", b"\1" * 20),
        of("STL10"),
        "does not find it whole in data",
    ),
    "a torn file": (
        changed(lambda _: emnist(), f"{LETTERS}images-idx3-ubyte", b"\0\0\x08\3\0"),
        OF_LETTERS,
        "data/EMNIST cannot be used",
    ),
    "text in place of a file": (
        changed(lambda _: usps(), "usps.bz2", b"text"),
        of("USPS"),
        "usps.bz2 or usps.t.bz2 in data",
    ),
    "fewer labels": (
        changed(lambda _: emnist(), f"{LETTERS}labels-idx1-ubyte", idx(np.arange(9, dtype=np.uint8))),
        OF_LETTERS,
        "other numbers of pictures and of labels",
    ),
    "labels beyond": (
        changed(lambda _: emnist(), f"{LETTERS}labels-idx1-ubyte", idx(np.full(24, 90, np.uint8))),
        OF_LETTERS,
        "its labels go from 1 to 90, beyond its classes",
    ),
    "one class": (lambda _: emnist(classes=1), OF_LETTERS, "there is one class only"),
    "a class untested": (
        changed(lambda _: emnist(), "EMNIST/raw/emnist-letters-test-labels-idx1-ubyte", idx(np.ones(8, np.uint8))),
        OF_LETTERS,
        "y_test has no test sample of class b",
    ),
    "a broken photo": (
        broken_photo,
        of("Flowers102", "dataset.size=16"),
        "train[2] cannot be read (UnidentifiedImageError",
    ),
    "a photo that is not there": (
        without_photo,
        of("Flowers102", "dataset.size=16"),
        "test[1] cannot be read (FileNotFoundError",
    ),
    "too few to hold out": (
        lambda _: eurosat(count=2),
        of("EuroSAT", "dataset.test_fraction=0.1"),
        "class Forest has too few pictures to split",
    ),
    "one class folder": (
        lambda _: eurosat(classes=("Forest",)),
        of("EuroSAT", "dataset.test_fraction=0.5"),
        "there is one class only",
    ),
    "tasks that do not fit": (
        lambda _: eurosat(),
        (*of("EuroSAT", "dataset.test_fraction=0.5")[:-1], "tasks=3"),
        "2 classes do not divide into 3 equal tasks",
    ),
}


@pytest.mark.parametrize("make, typed, said", WRONG.values(), ids=WRONG)
def test_wrong_data_sets(clrun, monkeypatch, cache_home, make, typed, said):
    make(monkeypatch)
    before = written()
    refused(clrun(*typed), said, before)


def test_tensors_are_pictures_too():
    image = torch.zeros(5, 4, dtype=torch.uint8)
    assert torchvision_sets.picture(image, "train[0]", None, True).shape == (1, 5, 4)
