"""Data sets, on small files of the real formats that the tests write themselves."""

import functools
import gzip
import hashlib
import http.server
import os
import pickle
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from loading import refusal, settings, tree

from clrun.data import datasets, downloads
from clrun.data.samples import fingerprint

pytestmark = pytest.mark.usefixtures("cache_home")

CONF = Path(__file__).parents[2] / "conf" / "dataset"
NAMES = ["digits", "mnist", "fashion_mnist", "kmnist", "cifar10", "cifar100", "image_folder"]
IDX = ["mnist", "fashion_mnist", "kmnist"]
CIFAR = ["cifar10", "cifar100"]


# The statements


@pytest.mark.parametrize("name", NAMES)
def test_statement(name):
    stated = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    assert stated["name"] == name and stated["about"] and stated["epochs"] > 0
    assert stated["knobs"]["normalize"]["default"] is True
    assert (stated["knobs"]["pad"]["default"], stated["knobs"]["pad"]["min"]) == (0, 0)
    if name != "image_folder":
        names = stated["class_names"]
        assert all(isinstance(each, str) for each in names)
        assert len(names) == len(set(names)) == (100 if name == "cifar100" else 10)


def test_class_names_of_an_unknown_data_set_and_loading_it_are_refused():
    names = ", ".join(sorted(path.stem for path in CONF.glob("*.yaml")))
    assert f"use one of {names}." in refusal("mnits")


# digits


def test_digits():
    from sklearn.datasets import load_digits

    images = datasets.load(settings("digits"))
    assert images.x.shape == (1797, 1, 8, 8) and images.x.dtype == torch.uint8
    assert images.y.shape == (1797,) and images.y.dtype == torch.int64
    assert images.train == 1347 and images.classes == tuple("0123456789")
    assert int(images.x.max()) == 255 and set(images.x.unique().tolist()) == {round(v * 255 / 16) for v in range(17)}
    source = load_digits()
    assert int(images.x.sum()) == int(np.rint(source.images * 255 / 16).sum())
    pairs = {(row.tobytes(), label) for row, label in zip(source.images, source.target, strict=True)}
    back = (images.x[:, 0].numpy() / 255 * 16).round()
    assert {(row.astype(np.float64).tobytes(), int(label)) for row, label in zip(back, images.y, strict=True)} == pairs


def test_digits_split_is_fixed_and_stratified():
    images, again = datasets.load(settings("digits")), datasets.load(settings("digits"))
    assert torch.equal(images.x, again.x) and images.fingerprint == again.fingerprint == "81be8b1152"
    whole, train = torch.bincount(images.y), torch.bincount(images.y[: images.train])
    assert ((train - 0.75 * whole).abs() <= 1).all()


# What all share


def test_padding_adds_zeros_on_every_side_and_leaves_the_fingerprint():
    plain, padded = datasets.load(settings("digits")), datasets.load(settings("digits", pad=3))
    assert padded.x.shape == (1797, 1, 14, 14) and padded.x.is_contiguous()
    assert torch.equal(padded.x[:, :, 3:-3, 3:-3], plain.x)
    assert int(padded.x.sum(dtype=torch.int64)) == int(plain.x.sum(dtype=torch.int64))
    assert padded.fingerprint == plain.fingerprint


def test_the_fingerprint_tells_pixels_labels_split_names_and_shape_apart():
    base = datasets.Arrays(np.arange(16, dtype=np.uint8).reshape(4, 1, 2, 2), np.array([0, 1, 0, 1]), 2, ("a", "b"))
    pixels = base.x.copy()
    pixels[3, 0, 1, 1] += 1
    others = [
        base,
        base._replace(x=pixels),
        base._replace(y=np.array([0, 1, 1, 0])),
        base._replace(train=3),
        base._replace(classes=("a", "c")),
        base._replace(x=base.x.reshape(4, 1, 1, 4)),
    ]
    marks = [fingerprint(each) for each in others]
    assert len(set(marks)) == len(marks) and all(len(mark) == 10 and int(mark, 16) >= 0 for mark in marks)


@pytest.mark.parametrize("name", ["digits", "mnist", "cifar10"])
def test_a_named_data_dir_must_be_a_folder(name, tmp_path):
    assert f"data_dir={tmp_path / 'no'} does not exist: make the folder" in refusal(name, str(tmp_path / "no"))
    (tmp_path / "file").touch()
    assert "is not a folder" in refusal(name, str(tmp_path / "file"))
    assert tree(tmp_path) == ["file"]


def test_the_default_data_dir_is_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert datasets.data_folder(None) == tmp_path / "clrun"
    for unset in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        monkeypatch.setenv("HOME", str(tmp_path))
        assert datasets.data_folder(None) == tmp_path / ".cache" / "clrun"


# The MNIST family


def idx(array):
    """An array of unsigned bytes in the IDX format."""
    return b"\x00\x00\x08" + bytes([array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def idx_parts():
    """The four arrays of a small data set of 10 classes: 30 training and 20 test images of 6 x 5 pixels."""
    chance = np.random.default_rng(0)
    train, test = (chance.integers(0, 256, (n, 6, 5), np.uint8) for n in (30, 20))
    return [train, np.arange(30, dtype=np.uint8) % 10, test, np.arange(20, dtype=np.uint8) % 10]


def write_idx(data_dir, name):
    raw = data_dir / downloads.TORCHVISION[name] / "raw"
    raw.mkdir(parents=True)
    parts = idx_parts()
    for file, part in zip(datasets.IDX_FILES, parts, strict=True):
        (raw / file).write_bytes(idx(part))
    return raw, parts


@pytest.mark.parametrize("name", IDX)
def test_idx_files_are_used_as_they_lie(name, tmp_path, offline):
    _, (train_x, train_y, test_x, test_y) = write_idx(tmp_path, name)
    before = tree(tmp_path)
    images = datasets.load(settings(name, str(tmp_path)))
    assert np.array_equal(images.x[:, 0].numpy(), np.concatenate([train_x, test_x]))
    assert images.y.tolist() == [*train_y.tolist(), *test_y.tolist()] and images.y.dtype == torch.int64
    assert images.train == 30 and list(images.classes) == datasets.class_names(name)
    assert tree(tmp_path) == before


def test_torchvision_reads_the_same(tmp_path):
    from torchvision.datasets import MNIST

    write_idx(tmp_path, "mnist")
    images, theirs = datasets.load(settings("mnist", str(tmp_path))), MNIST(tmp_path, train=False)
    assert torch.equal(images.x[images.train :, 0], theirs.data) and torch.equal(
        images.y[images.train :], theirs.targets
    )


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
DAMAGE = {
    "empty": (IMAGES, lambda data: b"", "it is torn: 0 bytes"),
    "cut header": (IMAGES, lambda data: data[:10], "it is torn: 10 bytes"),
    "cut": (IMAGES, lambda data: data[:-1], "it is torn: 915 bytes instead of the 916"),
    "too long": (LABELS, lambda data: data + b"\x00", "it is torn: 39 bytes instead of the 38"),
    "labels as images": (LABELS, lambda data: idx(np.zeros((2, 2, 2), np.uint8)), "it starts with 0x00000803"),
    "still packed": (IMAGES, gzip.compress, "it starts with 0x1f8b"),
    "fewer labels": (LABELS, lambda data: idx(np.arange(10, dtype=np.uint8)), "30 images but 10 labels"),
    "label 10": (LABELS, lambda data: data[:-1] + b"\x0a", "image 29 has the label 10"),
    "no class 9": (LABELS, lambda data: data.replace(b"\x09", b"\x01"), "no training image of class 9"),
    "other pixels": ("t10k-images-idx3-ubyte", lambda data: idx(np.zeros((20, 5, 6), np.uint8)), "test images (5, 6)"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_idx_files_are_refused(damage, tmp_path, offline):
    raw, _ = write_idx(tmp_path, "mnist")
    file, change, words = DAMAGE[damage]
    data = (raw / file).read_bytes()
    (raw / file).write_bytes(change(data))
    assert (raw / file).read_bytes() != data
    text = refusal("mnist", str(tmp_path))
    assert words in text and "start again to download" in text and "data_dir=..." in text


def test_real_mnist():
    folder = os.environ.get("CLRUN_DATA_DIR")
    if not folder or not (Path(folder) / "MNIST" / "raw" / IMAGES).is_file():
        pytest.skip("no MNIST: CLRUN_DATA_DIR names no folder with MNIST/raw")
    start = time.process_time()  # not of the clock: others may use the machine
    images = datasets.load(settings("mnist", folder))
    assert time.process_time() - start < 2
    assert images.x.shape == (70000, 1, 28, 28) and images.train == 60000
    assert abs(float(images.x[:60000].double().mean()) / 255 - 0.1307) < 1e-4  # the known mean and counts
    assert images.y[60000:].bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


# CIFAR


def cifar_batches(name, label_of=lambda row: row):
    """Pickled batches of a small data set, as `file -> content`, and all pixels in order."""
    count, key = (10, "labels") if name == "cifar10" else (100, "fine_labels")
    chance = np.random.default_rng(0)
    files = [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"] if name == "cifar10" else ["train", "test"]
    pixels = {file: chance.integers(0, 256, (count, 3072), np.uint8) for file in files}
    batches = {
        file: pickle.dumps({"data": data, key: [label_of(row) for row in range(count)]})
        for file, data in pixels.items()
    }
    meta = {"label_names": ["?"] * count, "fine_label_names": ["?"] * count}
    batches["batches.meta" if name == "cifar10" else "meta"] = pickle.dumps(meta)
    return batches, np.concatenate(list(pixels.values())).reshape(-1, 3, 32, 32)


def md5(data):
    return hashlib.md5(data).hexdigest()


def trust(monkeypatch, name, batches):
    """Let torchvision hold these batches for the real ones."""
    import torchvision

    kind = getattr(torchvision.datasets, downloads.TORCHVISION[name])
    meta = kind.meta["filename"]
    test = [file for file in batches if file.startswith("test")]
    monkeypatch.setattr(kind, "train_list", [[f, md5(b)] for f, b in batches.items() if f not in (*test, meta)])
    monkeypatch.setattr(kind, "test_list", [[f, md5(batches[f])] for f in test])
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": md5(batches[meta])})
    return kind


def write_cifar(monkeypatch, data_dir, name, **options):
    batches, pixels = cifar_batches(name, **options)
    kind = trust(monkeypatch, name, batches)
    (data_dir / kind.base_folder).mkdir()
    for file, content in batches.items():
        (data_dir / kind.base_folder / file).write_bytes(content)
    return data_dir / kind.base_folder, pixels


@pytest.mark.parametrize("name", CIFAR)
def test_cifar_batches_are_used_as_they_lie(name, tmp_path, monkeypatch, offline):
    _, pixels = write_cifar(monkeypatch, tmp_path, name)
    before = tree(tmp_path)
    images = datasets.load(settings(name, str(tmp_path)))
    assert np.array_equal(images.x.numpy(), pixels) and images.x.is_contiguous()
    classes, train = (10, 50) if name == "cifar10" else (100, 100)
    assert images.train == train and images.y.tolist() == list(range(classes)) * (len(pixels) // classes)
    assert list(images.classes) == datasets.class_names(name) and len(images.classes) == classes
    assert tree(tmp_path) == before


@pytest.mark.parametrize("file", ["data_batch_3", "test_batch", "batches.meta"])
def test_a_cifar_batch_of_a_wrong_checksum_is_refused_and_never_unpickled(file, tmp_path, monkeypatch, offline):
    folder, _ = write_cifar(monkeypatch, tmp_path, "cifar10")
    (folder / file).write_bytes(b"cbuiltins\neval\n(S'1/0'\ntR.")  # a pickle that raises when it is opened
    text = refusal("cifar10", str(tmp_path))
    assert f"{folder / file} cannot be used: its checksum is wrong" in text and "Remove it and start again" in text


def test_cifar_labels_out_of_range_are_refused(tmp_path, monkeypatch):
    write_cifar(monkeypatch, tmp_path, "cifar10", label_of=lambda row: row + 1)
    assert "image 9 has the label 10" in refusal("cifar10", str(tmp_path))


# Downloads, from a server of the test's own


@pytest.fixture
def offline(monkeypatch):
    """Every source of torchvision's is an address where nobody answers."""
    import torchvision

    for name in (*IDX, *CIFAR):
        kind = getattr(torchvision.datasets, downloads.TORCHVISION[name])
        monkeypatch.setattr(kind, "url" if name in CIFAR else "mirrors", nowhere(name))
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def nowhere(name):
    address = "http://127.0.0.1:9/"
    return f"{address}{name}.tar.gz" if name in CIFAR else [address]


@pytest.fixture
def server(tmp_path_factory, monkeypatch):
    """A folder and the address under which it is served."""
    folder = tmp_path_factory.mktemp("served")
    handler = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *arguments: None})
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=folder)) as serving:
        threading.Thread(target=serving.serve_forever, args=(0.01,), daemon=True).start()
        yield folder, f"http://127.0.0.1:{serving.server_port}/"
        serving.shutdown()


def serve_idx(monkeypatch, folder, address):
    import torchvision

    packed = {f"{file}.gz": gzip.compress(idx(p)) for file, p in zip(datasets.IDX_FILES, idx_parts(), strict=True)}
    for file, content in packed.items():
        (folder / file).write_bytes(content)
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [address])
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", [(f, md5(content)) for f, content in packed.items()])


def serve_cifar(monkeypatch, folder, address):
    batches, pixels = cifar_batches("cifar10")
    kind = trust(monkeypatch, "cifar10", batches)
    (folder / kind.base_folder).mkdir()
    for file, content in batches.items():
        (folder / kind.base_folder / file).write_bytes(content)
    with tarfile.open(folder / kind.filename, "w:gz") as archive:
        archive.add(folder / kind.base_folder, kind.base_folder)
    monkeypatch.setattr(kind, "url", address + kind.filename)
    monkeypatch.setattr(kind, "tgz_md5", md5((folder / kind.filename).read_bytes()))
    return pixels


def test_mnist_is_downloaded_into_the_users_cache(server, monkeypatch, cache_home, capfd):
    serve_idx(monkeypatch, *server)
    images = datasets.load(settings("mnist"))
    assert len(images.x) == 50
    raw = cache_home / "clrun" / "MNIST" / "raw"
    assert sorted(file.name for file in raw.iterdir()) == sorted(datasets.IDX_FILES)
    assert tree(cache_home) == [
        "clrun",
        "clrun/MNIST",
        "clrun/MNIST/raw",
        *(f"clrun/MNIST/raw/{f}" for f in sorted(datasets.IDX_FILES)),
    ]
    assert "100" in capfd.readouterr().err  # torchvision's own bar: 100%, or 100.0% where tqdm is missing


def test_cifar_is_downloaded_into_data_dir(server, monkeypatch, tmp_path):
    pixels = serve_cifar(monkeypatch, *server)
    assert np.array_equal(datasets.load(settings("cifar10", str(tmp_path))).x.numpy(), pixels)
    assert {path.parts[0] for path in map(Path, tree(tmp_path))} == {"cifar-10-batches-py"}


def test_only_missing_files_are_replaced(server, monkeypatch, tmp_path):
    serve_idx(monkeypatch, *server)
    raw, parts = write_idx(tmp_path, "mnist")
    mine = idx(255 - parts[0])
    (raw / IMAGES).write_bytes(mine)
    (raw / LABELS).unlink()
    images = datasets.load(settings("mnist", str(tmp_path)))
    assert (raw / IMAGES).read_bytes() == mine and images.y[:30].tolist() == parts[1].tolist()


def test_archives_that_are_there_are_unpacked_without_network(server, monkeypatch, tmp_path, offline):
    folder, address = server
    serve_idx(monkeypatch, folder, address)
    serve_cifar(monkeypatch, folder, address)
    import torchvision

    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", nowhere("mnist"))
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", nowhere("cifar10"))
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    for file in folder.glob("*-ubyte.gz"):
        (tmp_path / "MNIST" / "raw" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "cifar-10-python.tar.gz").write_bytes((folder / "cifar-10-python.tar.gz").read_bytes())
    assert len(datasets.load(settings("mnist", str(tmp_path))).x) == 50
    assert len(datasets.load(settings("cifar10", str(tmp_path))).x) == 60


def test_a_download_of_a_wrong_checksum_is_refused(server, monkeypatch, tmp_path):
    folder, address = server
    serve_idx(monkeypatch, folder, address)
    (folder / f"{LABELS}.gz").write_bytes(gzip.compress(b"something else"))
    said = refusal("mnist", str(tmp_path))
    # The words are torchvision's, and not the same in all its versions.
    causes = "Error downloading train-labels-idx1-ubyte.gz", "File not found or corrupted"
    assert any(f"could not be downloaded ({cause}" in said for cause in causes)
    assert tree(tmp_path) == []


@pytest.mark.parametrize("name", [*IDX, *CIFAR])
def test_no_files_and_no_network(name, offline, cache_home):
    import torchvision

    kind = getattr(torchvision.datasets, downloads.TORCHVISION[name])
    place = kind.base_folder if name in CIFAR else f"{kind.__name__}/raw"
    files = {"cifar10": "data_batch_1", "cifar100": "train, test, meta"}.get(name, "t10k-labels-idx1-ubyte")
    start = time.perf_counter()
    text = refusal(name)
    assert time.perf_counter() - start < 5
    assert f"are not in {cache_home / 'clrun' / place}" in text and files in text
    assert f"Put those files into {cache_home / 'clrun' / place}" in text
    assert "dataset=digits" in text and f"the folder that holds {place} with data_dir=..." in text
    assert not cache_home.exists()


def test_no_network_leaves_a_named_data_dir_as_it_was(offline, tmp_path):
    raw, _ = write_idx(tmp_path, "mnist")
    (raw / LABELS).unlink()
    before = tree(tmp_path)
    text = refusal("mnist", str(tmp_path))
    assert f"dataset=mnist: {LABELS} is not in {raw}" in text and "Put that file into" in text
    assert "dataset=digits" in refusal("cifar10", str(tmp_path))
    assert tree(tmp_path) == before
