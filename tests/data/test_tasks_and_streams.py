"""Splits, tables, transforms: every class in one task, no test picture in training, the same pictures as by hand."""

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clrun.data.batches import StepContext, make_data
from clrun.data.datasets import load
from clrun.data.seeding import generator
from clrun.data.tasks import hold_out, make_tasks
from clrun.data.transforms import affine_grid, crop_flip, normalisation, turn
from clrun.system.errors import UsageError


@pytest.fixture(scope="session")
def digits(settings_of):
    return load(settings_of("dataset=digits"))


@pytest.fixture
def tasks_of(settings_of, digits):
    return lambda *overrides: make_tasks(digits, settings_of(*overrides))


@pytest.fixture
def data_of(settings_of, digits):
    """data_of(*overrides) -> (Data in float64, TaskStream)."""

    def build(*overrides):
        settings = settings_of(*overrides)
        stream = make_tasks(digits, settings)
        return make_data(digits, settings, *stream.tables.active.shape[1:], "cpu", torch.float64), stream

    return build


def moment(rows, horizon=0):
    zero = torch.tensor(horizon)
    return StepContext(
        zero, zero, torch.tensor(0.0), zero, torch.rand(6, len(rows), generator=torch.Generator().manual_seed(0))
    )


# ---------------------------------------------------------------- who is in which task


@pytest.mark.parametrize(
    "overrides", [("tasks=5",), ("tasks=2",), ("split.classes=[[3,1],[0],[9,2,5]]", "scenario=class")]
)
def test_every_class_is_in_one_task(tasks_of, digits, overrides):
    stream = tasks_of(*overrides)
    for part, first, last in (("train", 0, digits.train), ("test", digits.train, len(digits.y))):
        pools = getattr(stream, part)
        classes = [set(digits.y[pool].tolist()) for pool in pools]
        assert sum(map(len, classes)) == len(set().union(*classes))
        wanted = torch.isin(digits.y[first:last], torch.tensor(sorted(set().union(*classes)))).nonzero()[:, 0] + first
        assert torch.equal(torch.cat(pools).sort().values, wanted)


@given(share=st.floats(0, 0.99), counts=st.lists(st.integers(1, 30), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_held_out_and_kept_are_all(share, counts, seed):
    labels = torch.cat([torch.full((n,), k) for k, n in enumerate(counts)])
    numbers = torch.arange(len(labels))
    kept, held = hold_out(numbers, labels, share, generator(seed, "test"))
    assert torch.equal(torch.cat([kept, held]).sort().values, numbers)
    for k, n in enumerate(counts):
        assert (labels[kept] == k).sum() >= 1
        assert abs((labels[held] == k).sum().item() - share * n) <= 1


def test_validation_comes_from_training_alone(tasks_of, digits):
    plain, held = tasks_of(), tasks_of("validation=0.2")
    for whole, train, validation in zip(plain.train, held.train, held.validation, strict=True):
        assert torch.equal(torch.cat([train, validation]).sort().values, whole)
        assert (validation < digits.train).all()
    for one, other in zip(plain.test, held.test, strict=True):
        assert torch.equal(one, other)


def test_order_belongs_to_the_seed(tasks_of):
    names = [tuple(tasks_of(f"seed={seed}").names) for seed in range(4)]
    assert len(set(names)) == 4
    assert tasks_of("seed=1", "split.seed=3").names == list(names[3])
    assert tasks_of("seed=1", "split.order=fixed").names == [str(k) for k in range(10)]


def test_a_class_of_one_picture_refused_where_validation_starves_a_task(settings_of, digits):
    few = torch.cat([(digits.y[: digits.train] == k).nonzero()[:1, 0] for k in range(10)])
    test = torch.arange(digits.train, len(digits.y))
    x, y = (torch.cat([v[few], v[test]]) for v in (digits.x, digits.y))
    with pytest.raises(UsageError, match="validation"):
        make_tasks(replace(digits, x=x, y=y, train=10), settings_of("validation=0.5"))


def test_drop_last_that_drops_everything_is_refused(tasks_of):
    with pytest.raises(UsageError, match="drop_last=false"):
        tasks_of("drop_last=true", "batch_size=1000")


# ---------------------------------------------------------------- the active table


def test_active_tables(tasks_of):
    fixed = ("split.classes=[[0,1,2],[3],[4,5]]",)
    three = tasks_of(*fixed, "scenario=class").tables
    own = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 1, 1]], dtype=torch.bool)
    seen = torch.stack([own[0], own[0] | own[1], own.any(0)])
    assert torch.equal(three.active, seen[:, None].expand(3, 3, 6))
    assert torch.equal(three.unlearnt, own[0] | own)
    assert tasks_of(*fixed, "scenario=class", "active=all").tables.active.all()
    task = tasks_of("split.classes=[[0,1],[2,3,4]]").tables
    own = torch.tensor([[1, 1, 0, 0, 0], [0, 0, 1, 1, 1]], dtype=torch.bool)
    assert torch.equal(task.active, own.expand(2, 2, 5))
    domain = tasks_of("scenario=domain").tables
    assert domain.active.shape == (5, 5, 2)
    assert domain.active.all()


def test_labels(data_of, digits):
    for scenario, expected in (("task", [0, 1, 2, 3, 4]), ("domain", None), ("class", [0, 1, 2, 3, 4])):
        split = "[[7,2],[5,0,1]]" if scenario != "domain" else "[[7,2],[5,0]]"
        data, stream = data_of(f"split.classes={split}", f"scenario={scenario}")
        N = len(digits.y)
        order = [7, 2, 5, 0, 1] if scenario != "domain" else [7, 2, 5, 0]
        for k, place_of in zip(order, expected or [0, 1, 0, 1], strict=True):
            task = int(k not in (7, 2))
            rows = (digits.y == k).nonzero()[:3, 0] + N * task
            batch = data.batch(stream.tables, rows, torch.ones(3), moment(rows))
            assert batch.y.tolist() == [place_of] * 3
            assert batch.t.tolist() == [task] * 3


def test_permuted_and_rotated_keep_all_classes(tasks_of, digits):
    for split in ("permuted", "rotated"):
        for scenario, outputs in (("task", 30), ("domain", 10), ("class", 30)):
            stream = tasks_of(f"split={split}", f"scenario={scenario}", "tasks=3")
            assert stream.tables.active.shape == (3, 3, outputs)
            assert len(stream.names) == outputs
            assert all(torch.equal(pool, torch.arange(digits.train)) for pool in stream.train)


# ---------------------------------------------------------------- pictures


def test_normalised_by_the_training_set(data_of, digits):
    data, stream = data_of()
    rows = torch.arange(digits.train)
    x = data.batch(stream.tables, rows, torch.ones(len(rows)), moment(rows)).x
    assert x.mean().item() == pytest.approx(0, abs=1e-9)
    assert x.std(correction=0).item() == pytest.approx(1, abs=1e-9)
    data, stream = data_of("dataset.normalize=false")
    x = data.batch(stream.tables, rows, torch.ones(len(rows)), moment(rows)).x
    assert torch.equal(x, digits.x[rows].double() * (1 / 255))


def test_the_values_are_counted_once(digits):
    x = torch.arange(2 * 3 * 4, dtype=torch.uint8).view(4, 3, 2, 1)
    images = replace(digits, x=x, train=3)
    expected = [[(x[:3, c] == value).sum().item() for value in range(256)] for c in range(3)]
    assert images.histogram.tolist() == expected and images.histogram is images.histogram


def test_a_colour_that_never_changes(digits):
    scale, shift = normalisation(replace(digits, x=torch.full_like(digits.x, 7)), True)
    assert (7 * scale + shift).abs().max() == 0


def test_permuted_pictures(data_of, digits):
    data, stream = data_of("split=permuted", "tasks=3", "dataset.normalize=false", "seed=4")
    N = len(digits.y)
    assert torch.equal(stream.tables.permutation[0], torch.arange(64))
    for task in range(3):
        x = data.batch(stream.tables, torch.tensor([5 + N * task]), torch.ones(1), moment([0])).x[0, 0].flatten()
        by_hand = [digits.x[5, 0].flatten()[place].item() / 255 for place in stream.tables.permutation[task]]
        assert x.tolist() == pytest.approx(by_hand)
        assert sorted(stream.tables.permutation[task].tolist()) == list(range(64))
    again = data_of("split=permuted", "tasks=3", "seed=5")[1].tables.permutation
    assert not torch.equal(stream.tables.permutation[1], again[1])


def test_rotation_is_pillows():
    picture = np.zeros((21, 21), np.float32)
    picture[3:9, 8:14] = 200
    for degrees in (0, 30, 90, 180):
        ours = turn(torch.tensor(picture)[None, None], torch.tensor([math.radians(degrees)]))[0, 0].numpy()
        theirs = np.asarray(Image.fromarray(picture).rotate(degrees, Image.Resampling.BILINEAR))
        assert abs(ours - theirs)[2:-2, 2:-2].max() < 1


def test_angles(tasks_of):
    drawn = tasks_of("split=rotated", "split.max_angle=90", "tasks=4").tables.angle
    assert ((drawn >= 0) & (drawn < math.pi / 2)).all()
    assert len(set(drawn.tolist())) == 4
    fixed = tasks_of("split=rotated", "split.max_angle=180", "tasks=4", "split.order=fixed").tables.angle
    assert fixed.tolist() == pytest.approx([0, math.pi / 4, math.pi / 2, 3 * math.pi / 4])


def test_crop_flip_by_hand():
    x = torch.arange(2 * 3 * 16 * 16).view(2, 3, 16, 16).to(torch.uint8)
    noise = torch.tensor([[0.0, 0.99], [0.5, 0.2], [0.1, 0.9]])
    ours = crop_flip(x, noise)
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2))
    assert torch.equal(ours[0], padded[0, :, 0:16, 2:18])
    assert torch.equal(ours[1], padded[1, :, 4:20, 1:17].flip(-1))


def test_augmentation_only_where_asked(data_of, digits):
    rows = torch.arange(50)
    plain, stream = data_of()
    on, _ = data_of("augment=crop_flip")
    when, ones = moment(rows), torch.ones(50)
    still = plain.batch(stream.tables, rows, ones, when).x
    assert torch.equal(on.batch(stream.tables, rows, ones, when, augment=False).x, still)
    moving = on.batch(stream.tables, rows, ones, when)
    assert not torch.equal(moving.x, still)
    assert not torch.equal(on.recall(rows, moving).x, still)


@pytest.mark.parametrize("at_once", [1, 3 * 20 * 64, 2**17])  # a step at a time, three and then two, all five
@pytest.mark.parametrize(
    "overrides", [(), ("split=permuted", "tasks=3"), ("split=rotated", "tasks=3"), ("augment=crop_flip",)]
)
def test_steps_gathered_together_are_those_gathered_alone(data_of, overrides, at_once):
    data, stream = data_of(
        "scenario=class" if overrides[:1] == ("augment=crop_flip",) else "scenario=domain", *overrides
    )
    draw = torch.Generator().manual_seed(1)
    rows = torch.randint(3 * len(data.images), (5, 20), generator=draw)
    index = data.index(stream.tables, rows, torch.ones(5, 20, dtype=torch.float64))
    progress, noise = torch.rand(5, generator=draw), torch.rand(5, 6, 20, generator=draw)
    when = StepContext(*[torch.tensor(1)] * 2, progress, torch.arange(5), noise)
    batches = list(data.batches(stream.tables, index, when, at_once))
    assert len(batches) == 5
    for k, batch in enumerate(batches):
        then = when._replace(progress=when.progress[k], epoch=when.epoch[k], noise=when.noise[k])
        alone = data.batch(stream.tables, rows[k], torch.ones(20, dtype=torch.float64), then)
        assert batch.smoothing == alone.smoothing
        for name, ours in alone._asdict().items():
            if isinstance(ours, torch.Tensor):
                assert torch.equal(ours, getattr(batch, name)), name


def test_chance_of_one_purpose_moves_no_other():
    assert torch.rand(3, generator=generator(1, "a")).tolist() == torch.rand(3, generator=generator(1, "a")).tolist()
    assert torch.rand(3, generator=generator(1, "a")).tolist() != torch.rand(3, generator=generator(1, "b")).tolist()
    assert torch.rand(3, generator=generator(1, "a")).tolist() != torch.rand(3, generator=generator(2, "a")).tolist()


AUGMENTATIONS = ("crop", "flip", "crop_flip", "vertical_flip", "rotate", "resized_crop", "erase")
SPLITS = (
    "tasks=2 iterations=1",
    "tasks=2 iterations=1 split=permuted scenario=domain",
    "tasks=2 iterations=1 split=rotated scenario=domain",
    "tasks=2 iterations=1 split=relabelled scenario=domain",
    "tasks=2 iterations=1 split.blurry=0.5 scenario=class",
    "iterations=null stream=online batch_size=100 split.circle=3 tasks=3 scenario=class",
)


@pytest.mark.parametrize("typed", [*SPLITS, *(f"tasks=2 iterations=1 augment={kind}" for kind in AUGMENTATIONS)])
def test_no_operation_is_called_for_each_run_of_a_stack(stack_of, typed):
    """PyTorch warns of one that has no rule for several runs at once."""
    stack = stack_of("strategy=finetune", *typed.split(), seeds=[0, 1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stack.train(stack.initialize(), stack.new_stage(1))


@pytest.mark.parametrize("shape", [(3, 1, 8, 8), (2, 3, 5, 4), (2, 1, 1, 6)])
def test_turned_positions_are_those_of_torch(shape):
    affine = torch.randn(shape[0], 2, 3, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.affine_grid(affine, list(shape), align_corners=False)
    assert torch.equal(affine_grid(affine, *shape[2:]), expected)
