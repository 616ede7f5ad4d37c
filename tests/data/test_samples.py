"""Data sets of any shape: how floats are normalised, permuted and fingerprinted, and what needs pictures."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import CPU

from clrun.data import datasets, samples
from clrun.data.batches import StepContext, make_data
from clrun.data.samples import Arrays, fingerprint, moments_of, to_samples
from clrun.data.tasks import make_tasks
from clrun.system.errors import UsageError

SHAPES = {"features": (7,), "series": (3, 20), "maps": (2, 5, 6)}


def arrays_of(shape, kind=np.float32, classes=4, train=60, test=20) -> Arrays:
    """Random samples of four classes; floats have another mean and deviation in every feature or channel."""
    random = np.random.default_rng(0)
    if kind == np.uint8:
        x = random.integers(0, 256, (train + test, *shape), np.uint8)
    else:
        later = (1,) * (len(shape) - 1)
        deviation, mean = (10.0 ** np.arange(shape[0])).reshape(-1, *later), np.arange(shape[0]).reshape(-1, *later)
        x = (random.normal(size=(train + test, *shape)) * deviation + 5 * mean).astype(kind)
    return Arrays(x, np.arange(train + test) % classes, train, [f"c{k}" for k in range(classes)])


@pytest.fixture
def data_of(settings_of):
    """data_of(samples, "split=permuted") -> (Data in float64, TaskStream)."""

    def build(loaded, *overrides):
        settings = settings_of("tasks=2", *overrides)
        stream = make_tasks(loaded, settings)
        return make_data(loaded, settings, *stream.tables.active.shape[1:], "cpu", torch.float64), stream

    return build


def inputs(data, stream, rows, noise=False):
    moment = StepContext(
        stage=torch.tensor(1),
        horizon=torch.tensor(1),
        progress=torch.tensor(0.0),
        epoch=torch.tensor(0),
        noise=torch.rand(6, len(rows)),
    )
    return data.batch(stream.tables, rows, torch.ones(len(rows)), moment, augment=noise).x


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_floats_have_mean_0_and_deviation_1_over_the_training_part(data_of, shape):
    loaded = to_samples(arrays_of(shape), 0)
    data, stream = data_of(loaded)
    x = inputs(data, stream, torch.arange(60))
    axes = [0, *range(2, x.dim())]
    assert x.mean(axes).abs().max() < 1e-6  # the mean of each feature, or of each channel
    assert (x.std(axes, correction=0) - 1).abs().max() < 1e-6
    assert inputs(data, stream, torch.arange(60, 80)).mean(axes).abs().max() > 1e-3  # not by the test part


@pytest.mark.parametrize("at_once", [1, 130, 10**6])  # one sample, two samples, all
def test_the_moments_are_numpys_however_the_block_is_cut(at_once):
    arrays = arrays_of((3, 20))
    mean, deviation = moments_of(to_samples(arrays, 0).x[:60], at_once)
    train = arrays.x[:60].astype(np.float64)
    assert mean.numpy() == pytest.approx(train.mean((0, 2)))
    assert deviation.numpy() == pytest.approx(train.std((0, 2)))


def test_floats_stay_as_they_are_without_normalisation(data_of):
    loaded = to_samples(arrays_of((7,)), 0)
    data, stream = data_of(loaded, "dataset.normalize=false")
    assert torch.equal(inputs(data, stream, torch.arange(60)), loaded.x[:60].double())


def test_a_feature_of_one_value_becomes_zero(data_of):
    """0.1 has no exact mean: its rounding error must not be divided by itself."""
    arrays = arrays_of((7,))
    arrays.x[:, 2] = 0.1
    data, stream = data_of(to_samples(arrays, 0))
    assert inputs(data, stream, torch.arange(80))[:, 2].abs().max() < 1e-6


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_permuted_moves_what_is_normalised(data_of, shape):
    loaded = to_samples(arrays_of(shape), 0)
    plain, still = data_of(loaded)
    data, stream = data_of(loaded, "split=permuted", "tasks=3")
    rows, N = torch.arange(80), 80
    assert loaded.positions == {1: 7, 2: 20, 3: 30}[len(shape)]
    before = inputs(plain, still, rows)
    for task in range(3):
        order = stream.tables.permutation[task]
        assert sorted(order.tolist()) == list(range(loaded.positions))
        by_hand = before[:, order] if len(shape) == 1 else before.flatten(2)[..., order].view(before.shape)
        assert torch.equal(inputs(data, stream, rows + N * task), by_hand)


def test_floats_can_be_turned_and_augmented_where_they_are_maps(data_of):
    loaded = to_samples(arrays_of((2, 16, 16)), 0)
    for overrides in (("split=rotated",), ("augment=crop_flip",)):
        data, stream = data_of(loaded, *overrides)
        assert inputs(data, stream, torch.arange(80, 90), noise=True).shape == (10, 2, 16, 16)


def test_pictures_stay_bytes_and_floats_stay_floats(data_of):
    assert data_of(to_samples(arrays_of((1, 8, 8), np.uint8), 0))[0].images.dtype == torch.uint8
    assert data_of(to_samples(arrays_of((7,)), 0))[0].images.dtype == torch.float64  # the type of this engine


NEED_PICTURES = {
    "split=rotated": "split=rotated needs pictures (channels, height, width), and a sample of this data set is {} "
    "numbers; type split=permuted or split=classes.",
    "augment=crop_flip": "augment=crop_flip needs pictures (channels, height, width), and a sample of this data set is "
    "{} numbers; leave augment out.",
}


@pytest.mark.parametrize("shape, said", [((7,), "7"), ((3, 20), "3 x 20")])
@pytest.mark.parametrize("typed", NEED_PICTURES)
def test_what_needs_pictures_says_so(data_of, typed, shape, said):
    with pytest.raises(UsageError) as caught:
        data_of(to_samples(arrays_of(shape), 0), typed)
    assert str(caught.value) == NEED_PICTURES[typed].format(said)


@pytest.mark.parametrize("pad, shape", [(2, (7,)), (1, (3, 20))])
def test_only_pictures_are_padded(pad, shape):
    with pytest.raises(UsageError, match=f"dataset.pad={pad} needs pictures .*; leave dataset.pad out"):
        to_samples(arrays_of(shape), pad)
    maps = arrays_of((2, 5, 6))
    padded = to_samples(maps, pad).x
    assert padded.shape == (80, 2, 5 + 2 * pad, 6 + 2 * pad) and padded.dtype == torch.float32
    assert np.array_equal(padded[:, :, pad:-pad, pad:-pad], maps.x) and padded[:, :, :pad].abs().max() == 0


def test_a_fingerprint_changes_with_everything():
    plain = arrays_of((7,))
    moved = plain._replace(x=plain.x + np.float32(1e-3))
    others = [
        plain,
        moved,
        plain._replace(x=plain.x.reshape(80, 7, 1)),
        plain._replace(x=plain.x.view(np.int32).astype(np.float64)),
        plain._replace(y=plain.y[::-1].copy()),
        plain._replace(train=61),
        plain._replace(classes=["a", "b", "c", "d"]),
        plain._replace(domain=np.zeros(80, np.int64), domains=["here"]),
        plain._replace(domain=np.zeros(80, np.int64), domains=["there"]),
        plain._replace(domain=np.arange(80) % 2, domains=["here", "there"]),
    ]
    assert len({fingerprint(arrays) for arrays in others}) == len(others)
    big = plain._replace(x=plain.x.astype(">f4"))  # the same numbers on another machine
    assert fingerprint(big) == fingerprint(plain)


def test_the_former_name():
    assert datasets.Images is samples.Samples


@pytest.mark.parametrize("shape", [(7,), (3, 20)])
@pytest.mark.parametrize("model", ["cnn", "resnet18"])
def test_networks_for_pictures_refuse_other_samples(settings_of, model, shape):
    from clrun.runs.build import initialize

    with pytest.raises(UsageError, match=f"model={model} needs pictures .* {shape[0]}.* numbers; type model=mlp"):
        initialize(settings_of(f"model={model}"), shape, 4)


def test_pictures_of_which_cnn_leaves_nothing(settings_of):
    from clrun.runs.build import initialize

    with pytest.raises(UsageError, match="of 3 x 9 pixels nothing is left"):
        initialize(settings_of("model=cnn"), (1, 3, 9), 4)
    assert initialize(settings_of("model=cnn"), (1, 4, 9), 4).widths


@pytest.mark.parametrize("strategy", ["er", "ewc", "hat", "packnet", "agem", "imm"])
def test_features_are_trained_like_pictures(settings_of, tmp_path, data_of, strategy):
    """A block of floats goes through the engine: the same numbers as a picture of one channel give the same network."""
    from clrun.engine.stack import Stack
    from clrun.runs import prepare
    from clrun.runs.build import build

    small = ("tasks=2", "iterations=3", "model.widths=[6]", "dataset.normalize=false", f"outputs={tmp_path}")
    settings = settings_of(f"strategy={strategy}", *small)
    run = prepare.prepare(settings)
    thetas = []
    for shape in ((7,), (1, 1, 7)):
        loaded = to_samples(arrays_of(shape), 0)
        loaded = replace(loaded, x=torch.arange(80.0 * 7).view(80, *shape).sin())
        fresh = replace(run, images=loaded, stream=make_tasks(loaded, settings))
        stack: Stack = build([fresh], torch.float64, device=CPU)
        state = stack.initialize()
        for stage in range(2):
            state, _ = stack.learn(state, stage)
        thetas.append(state.theta)
    assert torch.equal(*thetas)
