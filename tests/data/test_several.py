"""dataset=several: data sets one after another, brought to one shape; and what is refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from test_bad_input import refused, written
from test_datasets import idx, write_idx
from test_torchvision_sets import emnist, offline, usps  # noqa: F401 (a fixture)

from clrun.data import several
from clrun.data.datasets import class_names
from clrun.data.resizing import resized
from clrun.data.samples import Arrays

pytestmark = pytest.mark.usefixtures("empty_folder", "cache_home")

SHORT = ("iterations=2", "model.widths=[8]", "device=cpu", "workers=1", "pictures=false")
THREE = ("mnist", "fashion_mnist", "kmnist")


def of(*typed: str, names="mnist,fashion_mnist,kmnist") -> tuple[str, ...]:
    return "dataset=several", f"dataset.names=[{names}]", "data_dir=data", *typed, *SHORT


@pytest.fixture
def three() -> list[np.ndarray]:
    """Three data sets of 30 and 20 pictures of 6 x 5 pixels, of ten classes each -> the four arrays of each."""
    return [write_idx(Path("data"), name)[1] for name in THREE]


def test_one_after_another(three, prepared_of):
    run = prepared_of(*of("split=domains", "scenario=class"))
    images = run.images
    assert images.shape == (1, 6, 5) and images.train == 90 and len(images.x) == 150
    assert images.domains == THREE and run.settings["tasks"] == 3
    assert images.classes[0] == "0" and images.classes[10:] == (
        *class_names("fashion_mnist"),
        *class_names("kmnist"),
    )
    for number, (train_x, train_y, test_x, test_y) in enumerate(three):
        train, test = run.stream.train[number], run.stream.test[number]
        assert np.array_equal(images.x[train, 0].numpy(), train_x) and np.array_equal(images.x[test, 0].numpy(), test_x)
        assert images.y[train].tolist() == [k + 10 * number for k in train_y.tolist()]
        assert images.y[test].tolist() == [k + 10 * number for k in test_y.tolist()]
    assert run.stream.names == list(images.classes)


def test_tasks_may_share_outputs_where_the_numbers_of_classes_agree(three, prepared_of):
    run = prepared_of(*of("split=domains", "scenario=domain"))
    names = [class_names("fashion_mnist"), class_names("kmnist")]
    assert run.stream.names == [f"{k}/{names[0][k]}/{names[1][k]}" for k in range(10)]
    label = run.stream.tables.label
    assert [label[t, 10 * t : 10 * t + 10].tolist() for t in range(3)] == [list(range(10))] * 3


def test_the_order_is_that_of_the_names_and_part_of_the_identity(three, prepared_of):
    first, other = (
        prepared_of(*of("split=domains", "scenario=class")),
        prepared_of(*of("split=domains", "scenario=class", names="kmnist,mnist,fashion_mnist")),
    )
    assert first.id != other.id and other.images.domains == ("kmnist", "mnist", "fashion_mnist")
    assert np.array_equal(other.images.x[other.stream.train[0], 0].numpy(), three[2][0])
    listed = prepared_of(*of("split.classes=[[0,bag],[3,o]]", "scenario=task"))
    assert listed.stream.names == ["0", "bag", "3", "o"]


def test_shapes_and_channels(three, prepared_of):
    usps()
    assert prepared_of(*of("split=domains", "scenario=class", names="mnist,USPS")).images.shape == (1, 16, 16)
    run = prepared_of(
        *of("split=domains", "scenario=class", "dataset.size=12", "dataset.channels=colour", names="mnist,USPS")
    )
    assert run.images.shape == (3, 12, 12)
    grey = run.images.x[:, :1]
    assert (run.images.x == grey).all()
    assert np.array_equal(grey[run.stream.train[0]].numpy(), resized(three[0][0][:, None], 12))
    plain = prepared_of(*of("split=domains", "scenario=class", "dataset.size=12", names="mnist,USPS"))
    assert plain.images.shape == (1, 12, 12) and plain.id != run.id


def arrays(channels: int, side: int, classes) -> Arrays:
    x = np.random.default_rng(side).integers(0, 256, (8, channels, side, side), np.uint8)
    return Arrays(x, np.arange(8) % 2, 4, classes)


def test_grey_and_coloured_ones():
    found = {
        "mnist": arrays(1, 4, ["0", "1"]),
        "cifar10": arrays(3, 8, ["cat", "dog"]),
        "kmnist": arrays(1, 4, ["1", "2"]),
    }
    made = several.read([*found], None, "auto", found.__getitem__)
    assert made.x.shape == (24, 3, 8, 8) and made.train == 12
    assert np.array_equal(made.x[4:8], found["cifar10"].x[:4])
    assert list(made.classes) == ["mnist_0", "mnist_1", "cat", "dog", "kmnist_1", "kmnist_2"]
    assert made.y.tolist() == [0, 1, 0, 1, 2, 3, 2, 3, 4, 5, 4, 5] * 2
    assert several.read([*found], None, "grey", found.__getitem__).x.shape == (24, 1, 8, 8)


def test_a_run(three, clrun):
    for scenario in ("class", "domain", "task"):
        code, _, err = clrun(*of("split=domains", f"scenario={scenario}", "strategy=er"))
        assert code == 0, err
    assert len(list(Path("outputs").glob("runs/er/several-domains-*-3tasks-*/summary.csv"))) == 3


# ---------------------------------------------------------------- what is refused


def nothing() -> None:
    Path("data").mkdir()


def written_three() -> None:
    for name in THREE:
        write_idx(Path("data"), name)


def without(file: str):
    def made() -> None:
        written_three()
        Path("data", file).unlink()

    return made


def changed(file: str, content: bytes):
    def made() -> None:
        written_three()
        Path("data", file).write_bytes(content)

    return made


def with_letters() -> None:
    emnist("balanced", 4)
    shutil.rmtree("data/MNIST", ignore_errors=True)
    write_idx(Path("data"), "mnist")


LABELS = "KMNIST/raw/train-labels-idx1-ubyte"
BY_DOMAINS = ("split=domains", "scenario=class")

WRONG = {
    "none named": (nothing, ("dataset=several", *SHORT), "needs two data sets or more: type 'dataset.names=[mnist,"),
    "one": (nothing, of(names="mnist"), "needs two data sets or more"),
    "no list": (
        nothing,
        ("dataset=several", "dataset.names=mnist", *SHORT),
        "dataset.names=mnist: must be a list of texts",
    ),
    "twice": (nothing, of(names="mnist,kmnist,mnist"), "dataset.names has mnist twice; name each data set once"),
    "misspelt": (nothing, of(names="mnist,fashion_mnits"), "did you mean fashion_mnist?"),
    "unknown": (nothing, of(names="mnist,notmnist"), "notmnist is no data set that can be one of several"),
    "a name of torchvision's": (nothing, of(names="MNIST,KMNIST"), "dataset.names: MNIST is mnist here; type that"),
    "small letters": (nothing, of(names="mnist,svhn"), "did you mean SVHN?"),
    "arrays": (nothing, of(names="mnist,arrays"), "arrays is no data set that can be one of several"),
    "a folder": (nothing, of(names="mnist,image_folder"), "image_folder is no data set that can be one of several"),
    "an empty name": (nothing, of(names="mnist,''"), "dataset.names=[mnist,]: must be a list of texts"),
    "a number": (nothing, of(names="mnist,3"), "3 is no data set that can be one of several"),
    "sizes": (nothing, of(names="mnist,Food101"), "the pictures of Food101 differ in size; type the height and width"),
    "no test part": (nothing, of(names="mnist,EuroSAT"), "EuroSAT has no test part; leave it out"),
    "a small size": (nothing, of("dataset.size=2"), "dataset.size=2: must be a whole number, at least 4"),
    "another colour": (nothing, of("dataset.channels=rgb"), "dataset.channels=rgb: must be one of auto, grey, colour"),
    "no folder": (lambda: None, of(), " does not exist: make the folder first"),
    "absent": (without(LABELS), of(), "dataset=kmnist: train-labels-idx1-ubyte is not in data/KMNIST/raw"),
    "absent of torchvision": (
        written_three,
        of(names="mnist,USPS"),
        "dataset.set=USPS: torchvision does not find it whole",
    ),
    "torn": (changed(LABELS, b"\0"), of(), "cannot be used: it is torn: 1 bytes are no IDX file"),
    "a label beyond": (changed(LABELS, idx(np.full(30, 10, np.uint8))), of(), "image 0 has the label 10"),
    "a class without pictures": (
        changed(LABELS, idx(np.zeros(30, np.uint8))),
        of(),
        "dataset=kmnist has no training image",
    ),
    "other numbers of classes": (
        with_letters,
        of("split=domains", "scenario=domain", names="mnist,EMNIST"),
        "mnist has 10 classes but EMNIST has 4",
    ),
    "other tasks": (written_three, of(*BY_DOMAINS, "tasks=2"), "tasks=2: the data set has 3 domains"),
    "more first tasks": (written_three, of(*BY_DOMAINS, "first_tasks=4"), "first_tasks=4: the stream has 3 tasks"),
    "tasks that do not divide": (written_three, of("tasks=4"), "tasks=4: 30 classes do not divide into 4 equal tasks"),
    "a class that is not there": (
        written_three,
        of("split.classes=[[0,1],[bags,o]]"),
        "split.classes: there is no class",
    ),
    "padding below nothing": (nothing, of("dataset.pad=-1"), "dataset.pad=-1: must be a whole number, at least 0"),
}


@pytest.mark.parametrize("number, case", [*enumerate(WRONG)], ids=WRONG)
def test_wrong_data_sets(clrun, number, case, monkeypatch):
    import torchvision

    make, typed, said = WRONG[case]

    for name in ("MNIST", "FashionMNIST", "KMNIST"):
        monkeypatch.setattr(getattr(torchvision.datasets, name), "mirrors", ["http://127.0.0.1:9/"])
    make()
    folder = f"data{number}"  # a process reads a folder once
    if Path("data").is_dir():
        Path("data").rename(folder)
    typed, said = [text.replace("=data", f"={folder}") for text in typed], said.replace("data/", f"{folder}/")
    before = written()
    refused(clrun(*typed), said, before)
