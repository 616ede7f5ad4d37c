"""Tasks with numbers of classes of their own: split.sizes, split.first and split.step, and the orders of papers."""

import numpy as np
import pytest

from clrun.config import compose
from clrun.data.orders import class_order
from clrun.data.split import even_sizes, stepped_sizes
from clrun.system.errors import UsageError

SMALL = ("device=cpu", "model.widths=[4]", "iterations=2")
CLASS = (*SMALL, "scenario=class")

# The first and the last classes of CIFAR-100 in that order, as the configuration files of several papers list them.
FIRST_OF_1993 = [68, 56, 78, 8, 23, 84, 90, 65, 74, 76, 40, 89, 3, 92, 55, 9, 26, 80, 43, 38]
LAST_OF_1993 = [32, 4, 51, 48, 73, 93, 39, 67, 29, 49, 57, 33]


def sizes_of(prepared) -> list[int]:
    """Return the number of classes of each task of a run, from its labels."""
    return [len(prepared.images.y[pool].unique()) for pool in prepared.stream.train]


@pytest.mark.parametrize(
    ("typed", "sizes"),
    [
        (["split.sizes=[6,1,1,1,1]"], [6, 1, 1, 1, 1]),
        (["split.first=6", "split.step=2"], [6, 2, 2]),
        (["split.step=5"], [5, 5]),
        (["split.first=10", "split.step=3"], [10]),
        (["split.sizes=[3,7]", "tasks=2"], [3, 7]),
    ],
)
@pytest.mark.parametrize("order", ["seed", "fixed", "seed1993"])
def test_tasks_have_the_sizes_that_are_typed(prepared_of, typed, sizes, order):
    prepared = prepared_of(*CLASS, *typed, f"split.order={order}")
    assert sizes_of(prepared) == sizes
    assert prepared.settings["tasks"] == len(sizes)
    in_order = [int(name) for name in prepared.stream.names]
    assert sorted(in_order) == list(range(10))  # every class once
    expected = {"fixed": list(range(10)), "seed1993": np.random.RandomState(1993).permutation(10).tolist()}
    assert in_order == expected.get(order, in_order)
    assert (in_order != list(range(10))) == (order != "fixed")


def test_the_order_is_drawn_from_the_seed(prepared_of):
    names = [prepared_of(*CLASS, "split.sizes=[6,4]", f"seed={seed}").stream.names for seed in (0, 1, 0)]
    assert names[0] == names[2] != names[1]
    even = prepared_of(*CLASS, "tasks=5", "seed=1").stream.names
    assert names[1] == even  # the sizes do not change the order


def test_the_order_of_1993_is_that_of_the_papers():
    order = class_order(100, {"split.order": "seed1993"})
    assert order is not None
    assert order[: len(FIRST_OF_1993)] == FIRST_OF_1993
    assert order[-len(LAST_OF_1993) :] == LAST_OF_1993
    assert sorted(order) == list(range(100))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["split.sizes=[2,2,2,2,2]"], ["tasks=5"]),
        (["split.step=2"], ["tasks=5"]),
        (["split.first=6", "split.step=1"], ["split.sizes=[6,1,1,1,1]"]),
        (["split.first=2", "split.step=2", "first_tasks=5"], ["tasks=5"]),
    ],
)
def test_one_stream_has_one_identity(prepared_of, one, other):
    first, second = prepared_of(*CLASS, *one), prepared_of(*CLASS, *other)
    assert first.settings.identity("data") == second.settings.identity("data")
    assert first.directory == second.directory


def test_other_sizes_are_another_stream():
    streams = {
        compose(*CLASS, *typed).stream("data")
        for typed in (["tasks=5"], ["split.sizes=[6,1,1,1,1]"], ["split.sizes=[1,6,1,1,1]"], ["split.order=seed1993"])
    }
    assert len(streams) == 4


def test_classes_that_are_not_known_before_the_data(prepared_of, tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 4)).astype(np.float32), np.arange(60) % 6
    np.savez(tmp_path / "six.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    data = ("dataset=arrays", f"dataset.file={tmp_path / 'six.npz'}")
    assert compose(*CLASS, *data, "split.first=4", "split.step=1")["tasks"] is None
    prepared = prepared_of(*CLASS, *data, "split.first=4", "split.step=1")
    assert sizes_of(prepared) == [4, 1, 1]
    assert prepared.settings.identity("d") == prepared_of(*CLASS, *data, "split.sizes=[4,1,1]").settings.identity("d")
    typed = [("split.sizes=[4,1,1]",), ("split.first=4", "split.step=1")]
    assert len({prepared_of(*CLASS, *data, "batch_size=8", *each).directory for each in typed}) == 1
    even = [prepared_of(*CLASS, *data, *each).directory for each in (("split.sizes=[2,2,2]",), ("tasks=3",))]
    assert even[0] == even[1]
    assert prepared_of(*CLASS, *data, "split.step=2", "first_tasks=3").settings["first_tasks"] is None
    with pytest.raises(UsageError, match="the stream has 3 tasks"):
        prepared_of(*CLASS, *data, "split.step=2", "first_tasks=4")
    with pytest.raises(UsageError, match=r"split\.step gives 3 tasks"):
        prepared_of(*CLASS, *data, "split.step=2", "tasks=4")


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["split.sizes=[6,1]"], "together 7 classes, and there are 10"),
        (["split.sizes=[6,1,1,1,1,1]"], "together 11 classes, and there are 10"),
        (["split.sizes=[]"], "split.sizes"),
        (["split.sizes=[10,0]"], "at least 1"),
        (["split.sizes=[5.5,4.5]"], "whole numbers"),
        (["split.sizes=[5,5]", "tasks=3"], "gives 2 tasks; leave tasks out"),
        (["split.sizes=[6,4]", "split.step=2"], "split.sizes and split.step both say"),
        (["split.sizes=[6,4]", "split.classes=[[0,1],[2,3]]"], "split.classes and split.sizes both say"),
        (["split.step=2", "split.classes=[[0,1],[2,3]]"], "split.classes and split.step both say"),
        (["split.first=5"], "type split.step too"),
        (["split.step=3"], "do not divide into steps of 3; type split.step=1 or 7, or 'split.sizes=[3,3,3,1]'"),
        (["split.first=11", "split.step=1"], "there are 10 classes; type a smaller number"),
        (["split.step=11"], "there are 10 classes; type a smaller number"),
        (["split.step=2", "first_tasks=6"], "the stream has 5 tasks"),
        (["split.sizes=[6,4]", "scenario=domain"], "equally many"),
        (["split.sizes=[9,1]", "scenario=task"], "nothing to tell apart"),
        (["split=permuted", "split.step=2"], "split.step"),
    ],
)
def test_what_does_not_fit_is_refused(clrun, typed, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = clrun(*(SMALL if any("scenario" in key for key in typed) else CLASS), *typed)
    assert code == 2
    assert said in " ".join(err.split())
    assert not list(tmp_path.iterdir())


def test_sizes_are_those_of_the_protocols():
    assert stepped_sizes(100, 50, 10) == [50, 10, 10, 10, 10, 10]  # B50-inc10
    assert stepped_sizes(100, None, 10) == [10] * 10  # B0-inc10
    assert even_sizes(["a", "b", "c", "d"], 2, "class") == [2, 2]
