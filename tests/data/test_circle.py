"""Pairs of classes that come in rounds while their pictures turn (split.circle), of which MNIST-360 is one."""

import pandas as pd
import pytest
import torch
from conftest import live
from interrupting import ends_as_one_that_is_not

from clrun.data.batches import make_data
from clrun.data.transforms import turn
from clrun.runs import train
from clrun.system.errors import UsageError

CIRCLE = ("split.circle=9", "split.order=fixed", "scenario=class")
SMALL = (*CIRCLE, "model.widths=[8]", "device=cpu", "plots=false")


def test_pairs_come_in_three_rounds_and_every_sample_once(prepared_of):
    """(0, 1), (1, 2) ... (8, 0); the tenth class does not come, and each class is dealt to six tasks evenly."""
    prepared = prepared_of(*SMALL, "strategy=finetune")
    stream, labels = prepared.stream, prepared.images.y
    images = torch.cat(stream.arrivals) % len(labels)
    pairs = [{*labels[rows % len(labels)].tolist()} for rows in stream.arrivals]
    assert pairs == [{t % 9, (t + 1) % 9} for t in range(27)]
    nine = torch.arange(prepared.images.train)[labels[: prepared.images.train] < 9]
    assert torch.equal(images.sort().values, nine)
    assert len(stream.names) == 9 and (prepared.settings["boundaries"], prepared.settings["stream"]) == (
        False,
        "online",
    )
    for k in range(9):
        sizes = [int((labels[rows % len(labels)] == k).sum()) for rows in stream.arrivals]
        dealt = [size for size in sizes if size]
        assert len(dealt) == 6 and max(dealt) - min(dealt) <= 1


def test_the_pictures_of_a_class_turn_once_around(prepared_of):
    """By equal steps, in the order in which the stepper takes them, from 60 (k - 1) degrees."""
    prepared = prepared_of(*SMALL, "strategy=finetune")
    stream, labels = prepared.stream, prepared.images.y
    come = torch.cat(stream.arrivals) % len(labels)
    for k in range(9):
        angle = stream.tables.turned[come[labels[come] == k]].rad2deg()
        since = (angle - 60 * (k - 1)).remainder(360)
        expected = torch.arange(len(angle)) * 360 / len(angle)
        error = (since - expected + 180).remainder(360) - 180
        assert error.abs().max() < 1e-3


def test_samples_are_trained_on_in_the_order_of_their_angles(stack_of):
    stack = stack_of(*CIRCLE, "strategy=finetune", "epochs=null", "batch_size=10")
    for stage in (0, 8, 26):
        sampler = stack.schedule.sampler(0, stage, "learn")
        steps = sampler.sample(0, sampler.steps)
        assert torch.equal(steps.rows[steps.weight > 0], stack.streams[0].arrivals[stage])


def test_what_the_network_sees_is_turned_by_the_angle_of_its_picture(prepared_of):
    prepared = prepared_of(*CIRCLE, "dataset.normalize=false", "strategy=finetune")
    stream = prepared.stream
    data = make_data(prepared.images, prepared.settings, *stream.tables.active.shape[1:], "cpu", torch.float64)
    image = torch.cat([stream.train[0][:5], stream.test[0][:5]])
    seen = data.inputs(stream.tables, image, torch.zeros(10, dtype=torch.long))
    plain = data.images[image].double()
    assert torch.allclose(seen, turn(plain, stream.tables.turned[image]) * data.scale)
    assert not torch.allclose(seen, plain * data.scale, atol=0.1)


def test_equal_seeds_give_equal_streams_whatever_the_method(prepared_of):
    """And the angles of test pictures, which cover the circle, are others for another seed."""
    one = prepared_of(*SMALL, "strategy=er")
    other, third = prepared_of(*SMALL, "strategy=derpp", "lr=0.5"), prepared_of(*SMALL, "strategy=er", "seed=1")
    fixed = [prepared_of(*SMALL, "strategy=er", "split.seed=4", f"seed={seed}") for seed in (0, 1)]
    assert torch.equal(one.stream.tables.turned, other.stream.tables.turned)
    assert torch.equal(fixed[0].stream.tables.turned, fixed[1].stream.tables.turned)
    assert all(torch.equal(a, b) for a, b in zip(one.stream.arrivals, other.stream.arrivals, strict=True))
    tests = torch.cat(one.stream.test)
    angles, drawn = one.stream.tables.turned[tests], third.stream.tables.turned[tests]
    assert not torch.equal(angles, drawn)
    assert torch.histc(angles, 4, 0, 2 * torch.pi).min() > len(tests) / 6


def test_a_stack_is_as_its_runs_alone(stack_of):
    typed = (*CIRCLE, "tasks=9", "split.circle=5", "strategy=er", "memory_size=20", "epochs=null", "batch_size=20")
    together, _ = live(stack_of(*typed, seeds=(0, 1)))
    for r, seed in enumerate((0, 1)):
        alone, _ = live(stack_of(*typed, seeds=(seed,)))
        assert torch.allclose(together.theta[r], alone.theta.view(-1), atol=1e-10)


def test_a_run_that_is_killed_ends_as_one_that_is_not(prepared_of, tmp_path):
    typed = (*SMALL, "split.circle=4", "tasks=8", "strategy=er", "memory_size=20", "batch_size=20")
    ends_as_one_that_is_not(prepared_of, tmp_path / "whole", typed, 12)


def test_the_files_state_classes_and_angles(prepared_of):
    prepared = prepared_of(*SMALL, "split.circle=4", "strategy=finetune", "batch_size=50")
    train.train_run(prepared, quiet=True)
    counts = pd.read_csv(prepared.directory / "class_counts.csv")
    assert len(counts) == 24 and prepared.settings["tasks"] == 12
    assert counts["samples"].sum() == sum(map(len, prepared.stream.train))
    ones = counts[counts["class"] == 1]
    assert ones["task"].tolist() == [1, 2, 5, 6, 9, 10] and ones["first_angle"].iloc[0] == 0
    assert ones["first_angle"].is_monotonic_increasing and (ones["last_angle"] > ones["first_angle"]).all()
    tasks = pd.read_csv(prepared.directory / "tasks.csv")
    assert tasks.to_numpy().tolist() == [[1, 0], [1, 1], [2, 2], [3, 3]]


def test_tasks_that_are_left_out_change_no_angle(prepared_of):
    whole, part = (prepared_of(*SMALL, "strategy=er", *more) for more in ((), ("first_tasks=4",)))
    assert torch.equal(part.stream.tables.turned, whole.stream.tables.turned)
    assert len(part.stream.arrivals) == 4
    assert all(torch.equal(a, b) for a, b in zip(part.stream.arrivals, whole.stream.arrivals, strict=False))


@pytest.mark.parametrize(
    ("typed", "why"),
    [
        (("scenario=task",), "type scenario=class"),
        (("scenario=class", "boundaries=true"), "a stream without boundaries"),
        (("scenario=class", "tasks=3"), "type tasks=27"),
        (("scenario=class", "overlap=0.3"), "leave overlap out"),
        (("scenario=class", "split.slots=3"), "both say which classes"),
        (("scenario=class", "split.blurry=0.1"), "both say which classes"),
        (("scenario=class", "split.circle=11"), "there are 10 classes"),
        (("scenario=class", "split.circle=2"), "split.circle"),
        (("scenario=class", "strategy=ewc"), "must be told where a task"),
        (("scenario=class", "epochs=3"), "each sample is seen once"),
    ],
    ids=" ".join,
)
def test_what_does_not_go_with_it_is_refused_in_a_sentence(prepared_of, typed, why):
    with pytest.raises(UsageError, match=why):
        prepared_of("split.circle=9", "strategy=er", *typed)


def test_no_run_goes_on_from_one_whose_pictures_turned(prepared_of):
    before = prepared_of(*SMALL, "split.circle=4", "strategy=er", "batch_size=50", "keep_checkpoint=true")
    train.train_run(before, quiet=True)
    with pytest.raises(UsageError, match="turned as they came"):
        prepared_of("strategy=er", "scenario=class", "model.widths=[8]", f"init_from={before.directory}", "tasks=2")
