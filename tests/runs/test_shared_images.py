"""Data sets in memory: one copy of each, as long as a run needs it."""

import gc
import weakref
from dataclasses import replace

import torch

from clrun.data.datasets import Images
from clrun.runs.prepare import SharedImages


class Disk:
    """Data sets that are read, by their name; `a copy` has the images of `a`."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def __call__(self, settings, own=None, features=None) -> Images:
        self.read.append(settings["dataset"])
        pad, fingerprint = settings.get("dataset.pad", 0), settings["dataset"].partition(" ")[0]
        x = torch.zeros(2, 1, 2 + 2 * pad, 2 + 2 * pad, dtype=torch.uint8)
        return Images(x, torch.zeros(2, dtype=torch.long), 1, ("k",), fingerprint)


def named(name: str, **more) -> dict:
    return {"dataset": name, **more}


def test_runs_that_take_turns_share_their_data_sets():
    disk = Disk()
    shared = SharedImages(disk)
    held = [shared.load(named(name)) for _ in range(8) for name in ("a", "b")]
    assert disk.read == ["a", "b"] and len({id(images) for images in held}) == 2


def test_equal_images_of_two_folders_are_held_once():
    disk = Disk()
    shared = SharedImages(disk)
    one, other = shared.load(named("a")), shared.load(named("a copy"))
    padded = shared.load(named("a", **{"dataset.pad": 1}))
    assert one is other and padded is not one and padded.x.shape[-1] == 4
    assert shared.load(named("a copy")) is one and disk.read == ["a", "a copy", "a"]


def test_what_no_run_needs_is_let_go_but_for_the_last():
    disk = Disk()
    shared = SharedImages(disk)
    gone = weakref.ref(shared.load(named("a")))
    assert shared.load(named("a")) is gone() and disk.read == ["a"], "asked for again at once"
    shared.load(named("b"))
    gc.collect()
    assert gone() is None
    kept = shared.load(named("a"))
    shared.load(named("b"))
    assert shared.load(named("a")) is kept and disk.read == ["a", "b", "a", "b"]


def test_a_data_set_is_let_go_before_another_is_read():
    first: list[weakref.ref] = []

    def read(settings, own=None, features=None) -> Images:
        gc.collect()
        assert all(one() is None for one in first), "two at once are twice the memory"
        return Disk()(settings)

    shared = SharedImages(read)
    first.append(weakref.ref(shared.load(named("a"))))
    shared.load(named("b"))


def test_the_runs_of_a_sweep_over_data_sets_share_them(prepared_of):
    runs = [prepared_of(f"seed={seed}", f"dataset.pad={pad}") for seed in range(2) for pad in (0, 1)]
    assert runs[0].images is runs[2].images and runs[1].images is runs[3].images
    assert runs[0].id != runs[2].id and replace(runs[0], images=runs[2].images).id == runs[0].id
