"""Data sets, on small files of the real formats that the tests write themselves."""

import functools
import gzip
import hashlib
import http.server
import os
import pickle
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image, PngImagePlugin

from clrun.data import datasets, decoding, downloads
from clrun.data.file_digests import FileState, digest_of, digests
from clrun.data.samples import fingerprint
from clrun.system.errors import UsageError

CONF = Path(__file__).parents[2] / "conf" / "dataset"
NAMES = ["digits", "mnist", "fashion_mnist", "kmnist", "cifar10", "cifar100", "image_folder"]
IDX = ["mnist", "fashion_mnist", "kmnist"]
CIFAR = ["cifar10", "cifar100"]


def settings(name, data_dir=None, **dataset):
    """What `load` reads, with the defaults of the statements."""
    values = {"root": None, "size": 32, "test_fraction": None, "pad": 0, "white": None, "skip_broken": False} | dataset
    return {"dataset": name, "data_dir": data_dir} | {f"dataset.{key}": value for key, value in values.items()}


def refusal(*arguments, **dataset):
    """The text of the UsageError that loading ends with: one paragraph."""
    with pytest.raises(UsageError) as error:
        datasets.load(settings(*arguments, **dataset))
    text = str(error.value)
    assert "\n" not in text
    return text


def tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture(autouse=True)
def cache_home(tmp_path_factory, monkeypatch):
    """No test touches the user's own cache."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    return home / "cache"


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


def test_class_names_are_read_without_torch(tmp_path):
    make_folder(tmp_path, {"train": {"cat": 1, "dog": 1}, "test": {"cat": 1, "dog": 1}})
    program = (
        "import sys; from clrun.data.datasets import class_names; from clrun.data.image_folder import find\n"
        f"print(class_names('digits'), list(find({str(tmp_path)!r}, None).classes))\n"
        "assert not {'torch', 'torchvision', 'sklearn', 'PIL'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=CONF.parent.parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("] [")[1].strip() == "'cat', 'dog']"


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
        monkeypatch.setenv("HOME", "/home/someone")
        assert datasets.data_folder(None) == Path("/home/someone/.cache/clrun")


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
    assert "could not be downloaded (Error downloading train-labels-idx1-ubyte.gz" in refusal("mnist", str(tmp_path))
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


# Folders of pictures


def noise(size=(40, 48), seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8))


def make_folder(root, shape):
    """Make folders and pictures: a number is how many pictures a class folder holds."""
    for name, inside in shape.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        if isinstance(inside, dict):
            make_folder(root / name, inside)
        else:
            for k in range(inside):
                noise(seed=len(name) * 100 + k).save(root / name / f"{k:02}.png")
    return root


TWO = {"train": {"cat": 3, "dog": 4}, "test": {"cat": 2, "dog": 1}}


def load_folder(root, **options):
    return datasets.load(settings("image_folder", root=str(root), **options))


def refused_folder(root, **options):
    return refusal("image_folder", root=None if root is None else str(root), **options)


def test_train_and_test_folders(tmp_path):
    images = load_folder(make_folder(tmp_path, TWO), size=16, pad=1)
    assert images.x.shape == (10, 3, 18, 18) and images.x.dtype == torch.uint8
    assert images.train == 7 and images.classes == ("cat", "dog")
    assert images.y.tolist() == [0, 0, 0, 1, 1, 1, 1, 0, 0, 1]
    last = decoding.decode(str(tmp_path / "test" / "dog" / "00.png"), 16)
    assert np.array_equal(images.x[-1, :, 1:-1, 1:-1].numpy(), last)


def test_numbered_classes_are_in_the_order_of_their_numbers(tmp_path):
    make_folder(tmp_path, {"10": 2, "9": 2, "1": 2})
    assert load_folder(tmp_path, size=4, test_fraction=0.5).classes == ("1", "9", "10")


@pytest.mark.parametrize("below", ["", "train"])
def test_a_fraction_of_every_class_is_held_out(tmp_path, below):
    make_folder(tmp_path / below, {"cat": 10, "dog": 5})
    images, again = (load_folder(tmp_path, size=8, test_fraction=0.2) for _ in range(2))
    assert images.train == 12 and images.y[12:].tolist() == [0, 0, 1]
    assert torch.equal(images.x, again.x) and images.fingerprint == again.fingerprint
    for label, name in enumerate(images.classes):
        files = sorted((tmp_path / below / name).iterdir())
        expected = {decoding.decode(str(file), 8).tobytes() for file in files}
        assert {row.numpy().tobytes() for row in images.x[images.y == label]} == expected
    assert images.fingerprint != load_folder(tmp_path, size=8, test_fraction=0.4).fingerprint


def test_symbolic_links_are_followed(tmp_path):
    make_folder(tmp_path / "real", TWO)
    (tmp_path / "linked" / "train").mkdir(parents=True)
    (tmp_path / "linked" / "train" / "cat").symlink_to(tmp_path / "real" / "train" / "cat")
    (tmp_path / "linked" / "train" / "dog").mkdir()
    (tmp_path / "linked" / "train" / "dog" / "x.png").symlink_to(tmp_path / "real" / "train" / "dog" / "00.png")
    (tmp_path / "linked" / "test").symlink_to(tmp_path / "real" / "test")
    assert load_folder(tmp_path / "linked", size=8).train == 4


def test_hidden_files_are_passed_over_and_others_are_said(tmp_path, capsys):
    make_folder(tmp_path, TWO)
    plain = load_folder(tmp_path, size=8)
    assert "ignored" not in capsys.readouterr().err
    for clutter in (".DS_Store", "train/.git", "train/cat/Thumbs.db", "test/dog/._00.png", "train/desktop.ini"):
        (tmp_path / clutter).write_text("x")
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    assert load_folder(tmp_path, size=8).fingerprint == plain.fingerprint
    assert "ignored" not in capsys.readouterr().err
    (tmp_path / "train" / "cat" / "notes.txt").write_text("x")
    (tmp_path / "train" / "dog" / "more").mkdir()
    (tmp_path / "val").mkdir()
    assert load_folder(tmp_path, size=8).fingerprint == plain.fingerprint
    said = capsys.readouterr().err
    ignored, unused = said.splitlines()
    assert "ignored 3 files and folders" in ignored
    assert unused.startswith(f"image_folder: {tmp_path / 'val'} is not used: validation=0.1")
    assert all(str(tmp_path / name) in said for name in ("val", "train/cat/notes.txt", "train/dog/more"))


def test_a_folder_that_cannot_be_used_is_refused(tmp_path):
    assert "dataset.root=path/to/pictures" in refused_folder(None)
    assert f"dataset.root={tmp_path / 'no'} does not exist: name the folder" in refused_folder(tmp_path / "no")
    (tmp_path / "file").touch()
    assert "is not a folder: name the folder" in refused_folder(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert "has no class folders: put your pictures" in refused_folder(tmp_path / "empty", test_fraction=0.2)


REFUSED = {
    "one class": ({"train": {"cat": 2}, "test": {"cat": 2}}, None, "only the class cat: put your pictures into one"),
    "no test": ({"cat": 2, "dog": 2}, None, "(classes: cat, dog): put some into {root}/test/<class>/ and the others"),
    "no test beside train": ({"train": {"cat": 2, "dog": 2}}, None, "hold some out with dataset.test_fraction=0.2"),
    "empty test": ({"train": {"cat": 2, "dog": 2}, "test": {}}, None, "has no test pictures"),
    "test only": ({"test": {"cat": 2, "dog": 2}}, None, "in test but none in train: put the training pictures into"),
    "not sorted": ({"train": 2, "test": 2}, 0.5, "sort them into one folder a class, train/<class>/ and test/<class>/"),
    "both": (TWO, 0.5, "leave dataset.test_fraction out, or name {root}/train as dataset.root"),
    "lacks in test": (
        {"train": {"cat": 1, "dog": 1, "eel": 1}, "test": {"cat": 1, "dog": 1}},
        None,
        "eel is a class in {root}/train but not in {root}/test: each class needs a folder in both",
    ),
    "lacks in train": (
        {"train": {"cat": 1, "dog": 1}, "test": {"cat": 1, "dog": 1, "eel": 1, "fox": 1}},
        None,
        "eel, fox are classes in {root}/test but not in {root}/train",
    ),
    "empty class": (
        {"train": {"cat": 1, "dog": 0}, "test": TWO["test"]},
        None,
        "{root}/train/dog has no pictures: put",
    ),
    "none to test": (
        {"cat": 9, "dog": 2},
        0.2,
        "class dog has too few pictures to split: dataset.test_fraction=0.2 of 2",
    ),
    "none to train": ({"cat": 1, "dog": 9}, 0.6, "leaves none for training; add pictures to {root}/cat, or state"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_folders_that_make_no_data_set_are_refused(case, tmp_path, cache_home):
    shape, fraction, words = REFUSED[case]
    make_folder(tmp_path, shape)
    assert words.format(root=tmp_path) in refused_folder(tmp_path, test_fraction=fraction)
    assert not cache_home.exists()


def truncated(path):
    path.with_suffix(".png").unlink()
    noise((200, 200)).save(path.with_suffix(".jpg"))
    data = path.with_suffix(".jpg").read_bytes()
    path.with_suffix(".jpg").write_bytes(data[: len(data) // 2])


def dangling(path):
    path.unlink()
    path.symlink_to("nothing")


BROKEN = {
    "zero bytes": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("this is no picture"),
    "truncated jpeg": truncated,
    "truncated png": lambda path: path.write_bytes(path.read_bytes()[:-2000]),
    "no file": dangling,
    "not finite": lambda path: Image.fromarray(np.full((9, 9), np.nan, np.float32)).save(path, format="TIFF"),
    "negative": lambda path: Image.fromarray(np.full((9, 9), -1, np.int32)).save(path, format="TIFF"),
    "postscript": lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_picture_is_named(case, tmp_path, cache_home):
    make_folder(tmp_path, TWO)
    BROKEN[case](tmp_path / "train" / "dog" / "02.png")
    text = refused_folder(tmp_path)
    assert text.startswith(f"{tmp_path}/train/dog/02.") and "is a broken picture" in text and "remove it" in text
    assert "dataset.skip_broken=true" in text and not cache_home.exists()


def test_a_huge_picture_is_refused_by_pillows_limit(tmp_path, monkeypatch, recwarn):
    make_folder(tmp_path, TWO)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 48 - 1)
    load_folder(tmp_path, size=8)  # above the limit, Pillow only warns; it refuses above twice the limit
    assert not [warning for warning in recwarn if issubclass(warning.category, Image.DecompressionBombWarning)]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 48 // 2 - 1)
    text = refused_folder(tmp_path, size=9)
    assert "10 pictures are broken" in text and "train/cat/00.png (it is too huge a picture" in text


def test_all_broken_pictures_are_named_or_left_out(tmp_path, capsys):
    root = make_folder(tmp_path / "pictures", {"train": {"cat": 20, "dog": 3}, "test": TWO["test"]})
    clean = make_folder(tmp_path / "clean", {"train": {"cat": 20, "dog": 3}, "test": TWO["test"]})
    for k in range(12):
        (root / "train" / "cat" / f"{k:02}.png").write_bytes(b"")
        (clean / "train" / "cat" / f"{k:02}.png").unlink()
    text = refused_folder(root)
    assert text.startswith("12 pictures are broken: ") and "and 2 more" in text
    assert all(f"cat/{k:02}.png (" in text for k in range(10)) and "cat/10.png" not in text
    capsys.readouterr()
    for _ in range(2):  # decoded, and from the cache
        left = load_folder(root, skip_broken=True)
        assert "12 broken pictures were left out" in capsys.readouterr().err
        assert len(left.x) == 14 and left.train == 11
        assert left.fingerprint == load_folder(clean).fingerprint
        assert torch.equal(left.x, load_folder(clean).x)
    assert "12 pictures are broken" in refused_folder(root)
    for k in range(12, 20):
        (root / "train" / "cat" / f"{k:02}.png").write_bytes(b"")
    assert "train/cat has no picture that can be read" in refused_folder(root, skip_broken=True)


def damaged_text(data):
    at = data.index(b"tEXt") + 6
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_without_its_end_is_read_and_one_without_rows_is_broken(progressive, tmp_path):
    noise((200, 200)).save(tmp_path / "a.jpg", progressive=progressive)
    data = (tmp_path / "a.jpg").read_bytes()
    whole = decoding.decode(str(tmp_path / "a.jpg"), 200)
    for cut in (1, 2):
        (tmp_path / "b.jpg").write_bytes(data[:-cut])
        assert np.array_equal(decoding.decode(str(tmp_path / "b.jpg"), 200), whole)
    for kept in (len(data) - 30, len(data) - 300, len(data) // 2):
        (tmp_path / "b.jpg").write_bytes(data[:kept])
        with pytest.raises(UsageError, match="broken picture"):
            decoding.decode(str(tmp_path / "b.jpg"), 200)


def test_a_png_with_damaged_metadata_is_read_and_one_without_rows_is_broken(tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_text("about", "a picture")
    noise().save(tmp_path / "a.png", pnginfo=text)
    data = (tmp_path / "a.png").read_bytes()
    whole = decoding.decode(str(tmp_path / "a.png"), 40)
    for mended in (damaged_text(data), data[:-1], data[:-12]):
        (tmp_path / "b.png").write_bytes(mended)
        assert np.array_equal(decoding.decode(str(tmp_path / "b.png"), 40), whole)
    at = data.index(b"IDAT") + 1000
    for broken in (data[:at], data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :]):
        (tmp_path / "b.png").write_bytes(broken)
        with pytest.raises(UsageError, match="broken picture"):
            decoding.decode(str(tmp_path / "b.png"), 40)


def test_damaged_notes_on_turning_leave_a_picture_as_it_is(tmp_path):
    noise((16, 16)).save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff nonsense", quality=95)
    assert decoding.decode(str(tmp_path / "a.jpg"), 16).shape == (3, 16, 16)


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "avif", "jp2", "tga", "dib", "pnm"])
def test_more_kinds_of_files_are_read(suffix, tmp_path):
    root = make_folder(tmp_path, TWO)
    kinds = {"jfif": "JPEG", "jpe": "JPEG", "avif": "AVIF", "jp2": "JPEG2000", "tga": "TGA", "dib": "DIB", "pnm": "PPM"}
    Image.new("RGB", (9, 9), (90, 90, 90)).save(root / "train" / "cat" / f"x.{suffix}", kinds[suffix])
    images = load_folder(root, size=8)
    assert images.train == 8 and (images.x[3].float() - 90).abs().max() <= 2


def test_what_is_ignored_is_counted_by_suffix(tmp_path, capsys):
    root = make_folder(tmp_path, TWO)
    for name in ("a.heic", "b.heic", "c.txt", "d"):
        (root / "train" / "cat" / name).touch()
    load_folder(root)
    assert "ignored 4 files and folders" in (said := capsys.readouterr().err)
    assert "(2 .heic, 1 .txt, 1 without a suffix)" in said


def test_a_link_in_a_circle_is_no_class(tmp_path, capsys):
    root = make_folder(tmp_path, TWO)
    (root / "train" / "loop").symlink_to("loop")
    (root / "train" / "cat" / "loop.png").symlink_to("loop.png")
    assert "loop.png is a broken picture" in refused_folder(root)
    assert load_folder(root, skip_broken=True).classes == ("cat", "dog")


# The identity


def test_the_identity_follows_from_the_bytes_of_the_files(tmp_path):
    first = load_folder(make_folder(tmp_path / "a", TWO))
    assert load_folder(make_folder(tmp_path / "b", TWO)).fingerprint == first.fingerprint, "another place"
    (tmp_path / "b" / "train" / "cat" / "02.png").rename(tmp_path / "b" / "train" / "cat" / "09.png")
    assert load_folder(tmp_path / "b").fingerprint == first.fingerprint, "another name in the same order"
    file = tmp_path / "a" / "test" / "dog" / "00.png"
    Image.open(file).save(file, compress_level=0)
    assert load_folder(tmp_path / "a").fingerprint != first.fingerprint, "other bytes of the same pixels"
    assert load_folder(tmp_path / "b", size=16).fingerprint != first.fingerprint


def test_a_file_that_keeps_its_size_and_time_is_noticed(tmp_path, cache_home):
    root = make_folder(tmp_path, {part: {"cat": 1, "dog": 1} for part in ("train", "test")})
    file = root / "train" / "cat" / "00.ppm"
    noise().save(file)
    os.utime(file, (1, 1))
    before = load_folder(root, size=40)
    noise(seed=77).save(file)
    os.utime(file, (1, 1))
    assert load_folder(root, size=40).fingerprint != before.fingerprint


def test_a_digest_is_remembered_until_a_file_changes(tmp_path):
    file, cache = tmp_path / "a", tmp_path / "cache.npz"
    file.write_bytes(b"one")
    old = FileState(3, 10**9, 10**9, 5)
    first = digests([str(file)], [old], cache)
    first.remember(cache)
    assert first.rows.tobytes() == digest_of(b"one")
    file.write_bytes(b"two")
    assert digests([str(file)], [old], cache).rows.tobytes() == digest_of(b"one"), "it was not read"
    for changed in (old._replace(modified=2), old._replace(changed=2), old._replace(inode=6), old._replace(bytes=4)):
        assert digests([str(file)], [changed], cache).rows.tobytes() == digest_of(b"two")
    other = digests([str(file), str(tmp_path / "none")], [old, old], cache)
    assert other.rows[0].tobytes() == digest_of(b"one") and not other.rows[1].any()
    just = old._replace(modified=time.time_ns())
    digests([str(file)], [just], cache).remember(cache)
    file.write_bytes(b"six")
    assert digests([str(file)], [just], cache).rows.tobytes() == digest_of(b"six"), "it may have changed at once"


def test_the_number_of_pictures_and_their_digest_are_recorded(tmp_path):
    record = load_folder(make_folder(tmp_path, TWO)).folder
    assert [(one.part, one.name, one.pictures) for one in record.classes] == [
        ("train", "cat", 3), ("train", "dog", 4), ("test", "cat", 2), ("test", "dog", 1),
    ]  # fmt: skip
    assert record.pillow_version == Image.__version__ and record.whites is None


# More than 8 bits


def deep_folder(root, values, dtype, suffix="png"):
    """A folder in which every picture of a class has one value."""
    for part in ("train", "test"):
        for name, value in values[part].items():
            (root / part / name).mkdir(parents=True)
            Image.fromarray(np.full((9, 9), value, dtype)).save(root / part / name / f"a.{suffix}")
    return root


TWELVE_BITS = {"train": {"dark": 1000, "light": 4095}, "test": {"dark": 2047, "light": 4000}}


@pytest.mark.parametrize(
    ("dtype", "suffix"), [(np.uint16, "png"), (np.uint16, "tif"), (np.int32, "tif"), (np.float32, "tif")]
)
def test_twelve_bits_use_all_grey_levels(dtype, suffix, tmp_path, capsys):
    root = deep_folder(tmp_path, TWELVE_BITS, dtype, suffix)
    for _ in range(2):
        assert load_folder(root, size=4).x[:, 0, 0, 0].tolist() == [62, 255, 127, 249]
        assert "4 pictures have more than 8 bits: 0 becomes black and 4095 white" in capsys.readouterr().err
    assert load_folder(root, size=4, white=8190.0).x[:, 0, 0, 0].tolist() == [31, 128, 64, 125]
    assert "8190 white, typed" in capsys.readouterr().err


def test_floating_point_up_to_one_is_white_at_one(tmp_path):
    root = deep_folder(tmp_path, {"train": {"a": 0.2, "b": 0.6}, "test": {"a": 0.4, "b": 2.0}}, np.float32, "tif")
    assert load_folder(root, size=4).x[:, 0, 0, 0].tolist() == [51, 153, 102, 255]


def test_test_pictures_do_not_say_what_is_white(tmp_path):
    lists = {"train": {"dark": 100, "light": 900}, "test": {"dark": 200, "light": 60000}}
    assert load_folder(deep_folder(tmp_path, lists, np.uint16), size=4).x[:2, 0, 0, 0].tolist() == [25, 224]


def test_pictures_of_8_bits_beside_deep_ones_stay_as_they_are(tmp_path, capsys):
    root = make_folder(tmp_path, TWO)
    plain = load_folder(root, size=40).x[1:]
    assert "more than 8 bits" not in capsys.readouterr().err
    Image.fromarray(np.full((40, 48), 4095, np.uint16)).save(root / "train" / "cat" / "00.png")
    images = load_folder(root, size=40)
    assert torch.equal(images.x[1:], plain) and (images.x[0] == 255).all()
    assert images.folder.whites.whole == 4095


# Names of folders


@pytest.mark.parametrize(("train", "test"), [("Train", "Test"), ("training", "testing"), ("TRAINING", "test")])
def test_the_parts_are_found_in_any_case(train, test, tmp_path):
    images = load_folder(make_folder(tmp_path, {train: TWO["train"], test: TWO["test"]}), size=8)
    assert images.classes == ("cat", "dog") and images.train == 7


@pytest.mark.parametrize("name", ["val", "Valid", "validation"])
def test_a_folder_for_validation_is_explained(name, tmp_path, capsys):
    root = make_folder(tmp_path, {"Train": TWO["train"], name: TWO["test"]})
    text = refused_folder(root)
    assert f"has the folder {name}, but no test" in text and "rename it to test" in text and "validation=0.1" in text
    (root / name).rename(root / "test")
    assert load_folder(root, size=8).train == 7
    make_folder(root, {name: TWO["test"]})
    capsys.readouterr()
    load_folder(root, size=8)
    assert f"{root / name} is not used" in capsys.readouterr().err


def test_two_folders_for_one_part_are_refused(tmp_path):
    make_folder(tmp_path, TWO | {"training": TWO["train"]})
    assert "train and training, which are both for training pictures" in refused_folder(tmp_path)


def test_pictures_in_the_parts_themselves_are_refused_in_any_case(tmp_path):
    make_folder(tmp_path, {"Train": 2, "Val": 2})
    assert "pictures in Train, Val themselves" in refused_folder(tmp_path, test_fraction=0.5)


def test_class_names_that_look_alike(tmp_path):
    composed, apart = "M\u00fcller", "Mu\u0308ller"
    root = make_folder(tmp_path / "a", {"train": {composed: 2, "dog": 2}, "test": {apart: 1, "dog": 1}})
    images = load_folder(root, size=8)
    assert composed in images.classes and images.train == 4
    make_folder(root, {"train": {apart: 1}})
    assert "look alike, " in (text := refused_folder(root)) and "\\xfc" in text and "\\u0308" in text
    root = make_folder(tmp_path / "b", {"train": {"cat": 2, "dog": 2}, "test": {"cat ": 1, "dog": 1}})
    text = refused_folder(root)
    assert "'cat'" in text and "'cat '" in text and "cannot be seen" in text
    root = make_folder(tmp_path / "c", {"train": {"a b": 2, "dog": 2}, "test": {"a\u00a0b": 1, "dog": 1}})
    assert "'a b'" in (text := refused_folder(root)) and "'a\\xa0b'" in text


# One picture


def decoded(tmp_path, image, size=4, name="picture.png", **options):
    image.save(tmp_path / name, **options)
    return decoding.decode(str(tmp_path / name), size)


def test_the_shorter_side_is_resized_and_the_centre_cropped(tmp_path):
    wide = np.zeros((24, 72, 3), np.uint8)
    wide[:, 24:48] = (10, 20, 30)
    for pixels in (wide, wide.transpose(1, 0, 2)):
        x = decoded(tmp_path, Image.fromarray(pixels), size=8)
        assert x.shape == (3, 8, 8)
        inner = x[:, 1:-1, 1:-1]  # the filter reaches a little beyond the cut
        assert (inner == np.array([10, 20, 30])[:, None, None]).all()


def test_a_picture_of_the_right_size_is_left_as_it_is(tmp_path):
    image = noise((16, 16))
    assert np.array_equal(decoded(tmp_path, image, size=16), np.asarray(image).transpose(2, 0, 1))


def test_modes_become_rgb(tmp_path):
    def colour(image, **options):
        x = decoded(tmp_path, image, **options)
        assert (x == x[:, :1, :1]).all()
        return x[:, 0, 0].tolist()

    assert colour(Image.new("L", (9, 9), 77)) == [77] * 3
    assert colour(Image.new("1", (9, 9), 1)) == [255] * 3
    assert colour(Image.fromarray(np.full((9, 9), 2047, np.uint16))) == [255] * 3  # 11 bits
    assert colour(Image.new("RGBA", (9, 9), (255, 0, 0, 0))) == [255] * 3  # transparent: white
    assert colour(Image.new("RGBA", (9, 9), (255, 0, 0, 255))) == [255, 0, 0]
    assert colour(Image.new("LA", (9, 9), (0, 0))) == [255] * 3
    assert colour(Image.new("RGB", (9, 9), (1, 2, 3)).quantize(4)) == [1, 2, 3]
    assert colour(Image.new("RGB", (9, 9), (1, 2, 3)).quantize(4), transparency=0) == [255] * 3
    assert colour(Image.new("CMYK", (9, 9), (0, 0, 0, 255)), name="picture.tif") == [0] * 3


def test_exif_turns_a_picture_upright(tmp_path):
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    x = decoded(tmp_path, Image.fromarray(pixels), name="picture.jpg", exif=exif, quality=95)
    assert x[:, 0].max() < 10 and x[:, -1].min() > 245


def test_a_large_jpeg_keeps_its_look(tmp_path):
    ramp = np.broadcast_to(np.linspace(0, 255, 512).astype(np.uint8)[None, :, None], (512, 512, 3))
    x = decoded(tmp_path, Image.fromarray(np.ascontiguousarray(ramp)), size=16, name="picture.jpg", quality=95)
    expected = ramp.reshape(16, 32, 16, 32, 3).mean((1, 3)).transpose(2, 0, 1)
    assert np.abs(x - expected)[:, :, 1:-1].max() < 3


# The cache


@pytest.fixture
def opened(monkeypatch):
    """The paths of the pictures that were opened."""
    paths, open_image = [], Image.open

    def counted(file, **options):
        paths.append(file)
        return open_image(file, **options)

    monkeypatch.setattr(Image, "open", counted)
    return paths


def test_the_second_load_decodes_nothing(tmp_path, opened, cache_home, capsys):
    make_folder(tmp_path, TWO)
    first = load_folder(tmp_path)
    assert len(opened) == 10 and len(list((cache_home / "clrun" / "image_folder").iterdir())) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "decoding 10 pictures" in said
    second = load_folder(tmp_path)
    assert len(opened) == 10 and capsys.readouterr().err == ""
    assert torch.equal(first.x, second.x) and first.fingerprint == second.fingerprint


def test_other_pictures_or_another_size_are_decoded_again(tmp_path, opened):
    root = make_folder(tmp_path, TWO)
    load_folder(root)
    load_folder(root, size=8)
    assert len(opened) == 20
    os.utime(root / "test" / "dog" / "00.png", (1, 1))
    load_folder(root)
    assert len(opened) == 20, "the same bytes"
    noise(seed=9).save(root / "test" / "dog" / "01.png")
    assert len(load_folder(root).x) == 11 and len(opened) == 31
    (root / "test" / "dog" / "01.png").rename(root / "test" / "cat" / "09.png")
    assert load_folder(root).y[-4:].tolist() == [0, 0, 0, 1] and len(opened) == 42


def flipped(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize("tear", [lambda data: b"", lambda data: data[:-100], lambda data: data[:900], flipped])
def test_a_torn_cache_is_decoded_again(tear, tmp_path, opened, cache_home, capsys):
    make_folder(tmp_path, TWO)
    first = load_folder(tmp_path)
    (file,) = (cache_home / "clrun" / "image_folder").iterdir()
    file.write_bytes(tear(file.read_bytes()))
    assert torch.equal(load_folder(tmp_path).x, first.x) and len(opened) == 20
    assert f"{file} is torn" in capsys.readouterr().err
    load_folder(tmp_path)
    assert len(opened) == 20


class MakesFolder:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_cache_file_of_something_else_is_not_used(tmp_path, opened, cache_home):
    make_folder(tmp_path, TWO)
    first = load_folder(tmp_path)
    (file,) = (cache_home / "clrun" / "image_folder").iterdir()
    np.savez(file, x=np.array([MakesFolder(str(tmp_path / "unpickled"))], dtype=object))
    assert torch.equal(load_folder(tmp_path).x, first.x) and len(opened) == 20
    assert not (tmp_path / "unpickled").exists()
    np.savez(file, x=np.zeros((10, 3, 8, 8), np.uint8))
    assert torch.equal(load_folder(tmp_path).x, first.x) and len(opened) == 30


def test_a_named_data_dir_is_only_read(tmp_path, cache_home):
    """It may be shared, or on a disk that nobody may write to: the cache is in the user's own folder all the same."""
    make_folder(tmp_path / "pictures", TWO)
    (tmp_path / "data").mkdir()
    datasets.load(settings("image_folder", str(tmp_path / "data"), root=str(tmp_path / "pictures")))
    assert tree(tmp_path / "data") == [] and len(list((cache_home / "clrun" / "image_folder").iterdir())) == 1


def test_a_cache_that_cannot_be_written_only_costs_time(tmp_path, cache_home, capsys):
    make_folder(tmp_path, TWO)
    cache_home.mkdir()
    (cache_home / "clrun").touch()
    assert len(load_folder(tmp_path).x) == 10
    assert "nothing cached" in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser may read everything")
def test_folders_that_may_not_be_read_are_refused(tmp_path):
    make_folder(tmp_path / "pictures", TWO)
    closed = tmp_path / "pictures" / "train" / "cat"
    closed.chmod(0)
    assert f"{closed} cannot be read (Permission denied)" in refused_folder(tmp_path / "pictures")
    closed.chmod(0o755)
    (closed / "00.png").chmod(0)
    assert f"{closed / '00.png'} is a broken picture (PermissionError" in refused_folder(tmp_path / "pictures")
