"""Image folders whose folders are domains: each a task with its classes; and what is refused."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from loading import settings
from test_bad_input import refused, written
from test_image_folder import make_folder

from clrun.data import datasets
from clrun.data.decoding import decode
from clrun.runs import changed_pictures

pytestmark = pytest.mark.usefixtures("empty_folder", "cache_home")

SHORT = ("iterations=2", "model.widths=[8]", "device=cpu", "workers=1", "pictures=false")

CLASSES = {"cat": 4, "dog": 4}
ABOVE = {part: {"photo": CLASSES, "sketch": CLASSES} for part in ("train", "test")}
BELOW = {domain: {"train": CLASSES, "test": CLASSES} for domain in ("photo", "sketch")}
WITHOUT = {"photo": CLASSES, "sketch": CLASSES}


def of(*typed: str) -> tuple[str, ...]:
    return "dataset=image_folder", "dataset.root=here", "dataset.size=8", *typed, *SHORT


def domains_of(*typed: str) -> tuple[str, ...]:
    return of("split=domains", "scenario=domain", *typed)


@pytest.mark.parametrize("shape, typed", [(ABOVE, ()), (BELOW, ()), (WITHOUT, ("dataset.test_fraction=0.25",))])
def test_each_folder_is_a_domain_and_a_task(prepared_of, shape, typed):
    make_folder(Path("here"), shape)
    run = prepared_of(*domains_of(*typed))
    images = run.images
    assert images.classes == ("cat", "dog") and images.domains == ("photo", "sketch")
    assert run.settings["tasks"] == 2 and run.stream.names == ["cat", "dog"]
    files = {  # the pictures of each cell, by their bytes
        (domain, label): [path for path in sorted(Path("here").rglob("*.png")) if {domain, label} <= {*path.parts}]
        for domain in images.domains
        for label in images.classes
    }
    for (domain, label), paths in files.items():
        k, c = images.domains.index(domain), images.classes.index(label)
        rows = ((images.domain == k) & (images.y == c)).nonzero().flatten().tolist()
        assert sorted(images.x[row].numpy().tobytes() for row in rows) == sorted(
            decode(str(p), 8).tobytes() for p in paths
        )
        held = [row for row in rows if row >= images.train]
        assert len(held) == (1 if typed else 4)
        if not typed:
            test = {decode(str(path), 8).tobytes() for path in paths if "test" in path.parts}
            assert {images.x[row].numpy().tobytes() for row in held} == test
    for t, (train, test) in enumerate(zip(run.stream.train, run.stream.test, strict=True)):
        assert set(images.domain[torch.cat([train, test])].tolist()) == {t}


def test_classes_of_a_domain_alone_and_the_order(prepared_of):
    make_folder(Path("here"), {"photo": CLASSES, "10": {"cat": 4, "eel": 4, "fox": 4}, "9": CLASSES})
    typed = of("split=domains", "scenario=class", "dataset.test_fraction=0.5")
    run = prepared_of(*typed)
    assert run.images.domains == ("10", "9", "photo") and run.images.classes == ("cat", "dog", "eel", "fox")
    assert run.stream.names == ["cat", "eel", "fox", "cat", "dog", "cat", "dog"]


def test_a_run_and_what_has_changed_since(clrun, prepared_of):
    make_folder(Path("here"), BELOW)
    code, _, err = clrun(*domains_of("strategy=er"))
    assert code == 0, err
    (summary,) = Path("outputs").glob("runs/er/image_folder-domains-domain-2tasks-*/summary.csv")
    make_folder(Path("here"), {"sketch": {"train": {"dog": 6}}})
    Path("here/photo/test/cat/00.png").unlink()
    Path("here").rename("there")
    now = prepared_of("dataset=image_folder", "dataset.root=there", *domains_of("strategy=er")[2:])
    changes = changed_pictures.since(now, summary.parent)
    assert changes == ["2 pictures were added to sketch/dog in train", "1 picture was removed from photo/cat in test"]


def test_domains_are_part_of_the_identity_and_class_folders_are_as_they_were():
    make_folder(Path("one"), {"train": CLASSES, "test": CLASSES})
    make_folder(Path("two"), ABOVE)
    make_folder(Path("other"), {part: {"foto": CLASSES, "sketch": CLASSES} for part in ("train", "test")})
    marks = [datasets.load(settings("image_folder", root=root, size=8)).fingerprint for root in ("one", "two", "other")]
    assert len({*marks}) == 3
    plain = datasets.load(settings("image_folder", root="one", size=8))
    assert plain.domain is None and plain.domains == ()


def test_what_belongs_to_no_class_is_said(capfd):
    make_folder(Path("here"), BELOW | {"photo": {"train": CLASSES, "test": CLASSES, "val": CLASSES}})
    Path("here/notes.txt").write_text("x")
    Path("here/sketch/train/cat/readme.md").write_text("x")
    datasets.load(settings("image_folder", root="here", size=8))
    said = capfd.readouterr().err
    assert "ignored 3 files and folders" in said and "here/notes.txt" in said and "photo/val" in said


# ---------------------------------------------------------------- what is refused


def with_(shape: dict, *path: str, inside=None) -> dict:
    """Return folders with another folder, or without it."""
    if not path:
        return inside
    changed = dict(shape) | {path[0]: with_(shape.get(path[0], {}), *path[1:], inside=inside)}
    return {name: v for name, v in changed.items() if v is not None}


FRACTION = "dataset.test_fraction=0.25"

WRONG = {
    "another split": (
        WITHOUT,
        of(FRACTION, "tasks=1"),
        "here/photo holds no pictures itself, but folders with pictures. If photo, sketch are domains",
    ),
    "no domains": (CLASSES, domains_of(FRACTION), "states no domains"),
    "classes and domains": (
        {"photo": CLASSES, "cat": 3},
        domains_of(FRACTION),
        "here/cat holds pictures itself, and here/photo holds them in folders",
    ),
    "classes and domains below train": (
        with_(ABOVE, "train", "cat", inside=3),
        domains_of(),
        "here/train/cat holds pictures itself",
    ),
    "one domain": ({"photo": CLASSES}, domains_of(FRACTION), "has the one domain photo, with class folders in it"),
    "one class": (
        {"photo": {"cat": 4}, "sketch": {"cat": 4}},
        domains_of(FRACTION),
        "the domains photo, sketch have the one class cat",
    ),
    "no test": (
        WITHOUT,
        domains_of(),
        "has no test pictures (domains: photo, sketch): put them into here/<domain>/test/<class>/",
    ),
    "two tests": (BELOW, domains_of(FRACTION), "dataset.test_fraction=0.25 would hold out other pictures"),
    "two tests above": (ABOVE, domains_of(FRACTION), "dataset.test_fraction=0.25 would hold out other pictures"),
    "test alone": (with_(ABOVE, "train", inside=None), domains_of(), "has class folders in test but none in train"),
    "a domain untested": (
        with_(ABOVE, "test", "sketch", inside=None),
        domains_of(),
        "sketch is a domain in here/train but not in here/test",
    ),
    "a domain untrained": (
        with_(ABOVE, "test", "paint", inside=CLASSES),
        domains_of(),
        "paint is a domain in here/test but not in here/train",
    ),
    "parts twice": (
        dict.fromkeys(("train", "test"), BELOW),
        domains_of(),
        "here/train/photo has folders for training and testing, and lies in one itself",
    ),
    "parts of one domain": (
        BELOW | {"sketch": CLASSES},
        domains_of(),
        "here/sketch has no folder train with class folders, but here/photo has",
    ),
    "half of a domain's parts": (
        with_(BELOW, "sketch", "test", inside=None),
        domains_of(),
        "here/sketch has no folder test with class folders",
    ),
    "a class beside the parts": (
        with_(BELOW, "photo", "cat", inside=2),
        domains_of(),
        "here/photo has the folders train and test, and beside them cat",
    ),
    "a class in one part": (
        with_(BELOW, "photo", "test", "dog", inside=None),
        domains_of(),
        "dog is a class in here/photo/train but not in here/photo/test",
    ),
    "a class in one part above": (
        with_(ABOVE, "test", "photo", "eel", inside=2),
        domains_of(),
        "eel is a class in here/test/photo but not in here/train/photo",
    ),
    "an empty class": (
        with_(BELOW, "photo", "train", "dog", inside=0),
        domains_of(),
        "here/photo/train/dog has no pictures: put some there",
    ),
    "a class missing in a domain": (
        WITHOUT | {"sketch": {"cat": 4}},
        domains_of(FRACTION),
        "domain sketch has no training sample of class dog; with scenario=domain",
    ),
    "one class of a domain": (
        WITHOUT | {"sketch": {"cat": 4}},
        of("split=domains", "scenario=task", FRACTION),
        "the domain sketch has the one class cat",
    ),
    "too few to hold out": (
        with_(WITHOUT, "photo", "dog", inside=1),
        domains_of(FRACTION),
        "class dog has too few pictures to split: dataset.test_fraction=0.25 of 1",
    ),
    "an empty domain": (
        WITHOUT | {"paint": {}},
        domains_of(FRACTION),
        "here/paint has no class folders: domain paint needs",
    ),
    "an empty domain below train": (
        with_(ABOVE, "train", "paint", inside={}),
        domains_of(),
        "paint is a domain in here/train but not in here/test",
    ),
    "deeper folders": (
        {"photo": {"all": CLASSES}, "sketch": {"all": CLASSES}},
        domains_of(FRACTION),
        "split=domains: dataset=image_folder states no domains",
    ),
    "other tasks": (
        WITHOUT,
        domains_of(FRACTION, "tasks=3"),
        "tasks=3: the data set has 2 domains, and each is a task",
    ),
    "the default number of tasks, typed": (
        WITHOUT,
        domains_of(FRACTION, "tasks=5"),
        "tasks=5: the data set has 2 domains",
    ),
    "more first tasks": (WITHOUT, domains_of(FRACTION, "first_tasks=3"), "first_tasks=3: the stream has 2 tasks"),
}


@pytest.mark.parametrize("number, case", [*enumerate(WRONG)], ids=WRONG)
def test_wrong_folders(clrun, number, case):
    shape, typed, said = WRONG[case]
    root = f"here{number}"  # a process reads a folder once
    make_folder(Path(root), shape)
    typed, said, before = (
        [text.replace("=here", f"={root}") for text in typed],
        re.sub("here(?=[ /])", root, said),
        written(),
    )
    refused(clrun(*typed), said, before)


def test_a_broken_picture_of_a_domain_is_left_out():
    make_folder(Path("here"), BELOW)
    Path("here/photo/train/cat/00.png").write_bytes(b"x")
    images = datasets.load(settings("image_folder", root="here", size=8, skip_broken=True))
    assert len(images.x) == 31 and np.bincount(images.domain.numpy()).tolist() == [15, 16]
