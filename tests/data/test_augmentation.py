"""Augmentation: for given numbers the pictures of torchvision, and numbers that are uniform and a sample's own."""

import math
import warnings

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from clrun.data import augmentation
from clrun.data.augmentation import Augmentation, rectangles
from clrun.data.batches import StepContext, make_data
from clrun.data.samples import Arrays, to_samples
from clrun.data.seeding import Purpose
from clrun.data.tasks import make_tasks
from clrun.system.errors import UsageError
from clrun.system.hashing import sample_keys, uniforms

NAMES = (
    *("crop", "flip", "crop_flip", "vertical_flip", "rotate", "resized_crop"),
    *("greyscale", "erase", "colour", "hue"),
)


def pictures(n, channels=3, height=16, width=16):
    """Random pictures, a half of them of little contrast, so that few numbers are cut off at 0 and 255."""
    x = torch.randint(0, 256, (n, channels, height, width), generator=torch.Generator().manual_seed(0))
    x[: n // 2] = x[: n // 2] // 4 + 90
    return x.to(torch.uint8)


def noise_of(n, seed=1):
    return torch.rand(3, n, generator=torch.Generator().manual_seed(seed))


def one_by_one(f, x, *numbers):
    """torchvision's function for each picture, with its own numbers."""
    return torch.stack([f(picture, *own) for picture, *own in zip(x, *(v.tolist() for v in numbers), strict=True)])


# ---------------------------------------------------------------- as torchvision has it


FACTORS = {
    "brightness": (augmentation.with_brightness, F.adjust_brightness),
    "contrast": (augmentation.with_contrast, F.adjust_contrast),
    "saturation": (augmentation.with_saturation, F.adjust_saturation),
}


@pytest.mark.parametrize("shape", [(16, 16), (5, 33), (32, 32)])
@pytest.mark.parametrize("name", FACTORS)
def test_colours_are_those_of_torchvision(name, shape):
    """Also for the factors 0 and 1, and for more than there are between them."""
    ours, theirs = FACTORS[name]
    x = pictures(60, 3, *shape)
    factor = 2 * torch.rand(60, generator=torch.Generator().manual_seed(2))
    factor[:2] = torch.tensor([0.0, 1.0])
    assert torch.equal(ours(x, factor), one_by_one(theirs, x, factor))


def test_colour_is_brightness_then_contrast_then_saturation():
    x, noise = pictures(60), noise_of(60)
    colour = Augmentation(["colour"], 0.4)
    wanted = x
    for factor, (_, theirs) in zip(colour.colour_factors(noise).T, FACTORS.values(), strict=True):
        wanted = one_by_one(theirs, wanted, factor)
    assert torch.equal(colour(x, noise), wanted)
    assert not torch.equal(wanted, x)


@pytest.mark.parametrize("shape", [(16, 16), (5, 33)])
def test_hues_are_those_of_torchvision(shape):
    """Bytes that lie between two may be rounded to the other one: each step of both is rounded to float32."""
    x, turn = pictures(60, 3, *shape), torch.rand(60, generator=torch.Generator().manual_seed(2)) - 0.5
    x[:5] = x[:5, :1]  # grey
    turn[5:8] = torch.tensor([0.0, 0.5, -0.5])
    ours, theirs = augmentation.with_hue(x, turn), one_by_one(F.adjust_hue, x, turn)
    away = (ours.int() - theirs.int()).abs()
    assert away.max() <= 1
    assert (away == 0).double().mean() > 0.999
    assert torch.equal(ours[:6], x[:6])


def test_a_third_of_a_circle_exchanges_the_colours():
    x = pictures(20)
    turned = augmentation.with_hue(x, torch.full((20,), 1 / 3))
    assert (turned.int() - x.roll(1, 1).int()).abs().max() <= 1


@pytest.mark.parametrize("strength", [0.1, 0.5])
def test_hues_are_turned_as_far_as_is_said(strength):
    turns = Augmentation(["hue"], 0.0, strength).turns(noise_of(5000))
    assert turns.abs().max() <= strength
    assert turns.min() < -0.99 * strength
    assert turns.max() > 0.99 * strength


def test_grey_pictures_are_those_of_torchvision():
    x, noise = pictures(400), noise_of(400)
    made = Augmentation(["greyscale"], 0.0)(x, noise)
    grey = one_by_one(lambda picture: F.rgb_to_grayscale(picture, 3), x)
    is_grey = (made == grey).flatten(1).all(1)
    assert torch.equal(made[~is_grey], x[~is_grey])
    assert 20 < is_grey.sum() < 62  # a tenth of 400, and 3.7 standard deviations


@pytest.mark.parametrize("kind", [torch.uint8, torch.float64])
@pytest.mark.parametrize("shape", [(16, 16), (8, 40), (1, 9), (3, 1)])
def test_erased_rectangles_are_those_of_torchvision(shape, kind):
    x, noise = pictures(300, 2, *shape).to(kind) + 1, noise_of(300)
    made = Augmentation(["erase"], 0.0)(x, noise)
    for picture, ours, (erased, *where) in zip(x, made, rectangles(noise, *shape).tolist(), strict=True):
        assert torch.equal(ours, F.erase(picture, *where, torch.zeros((), dtype=kind)) if erased else picture)


def test_flips_and_crops_are_those_of_torchvision():
    """Two pixels of black around pictures of 16, and 5 x 5 places at which they can be cut out again."""
    x, noise = pictures(300), noise_of(300)
    flipped = [F.horizontal_flip(picture) if u >= 0.5 else picture for picture, u in zip(x, noise[2], strict=True)]
    assert torch.equal(Augmentation(["flip"], 0.0)(x, noise), torch.stack(flipped))
    places = (noise[:2] * 5).long().T.tolist()
    cut = [F.crop(F.pad(picture, 2), *place, 16, 16) for picture, place in zip(x, places, strict=True)]
    assert torch.equal(Augmentation(["crop"], 0.0)(x, noise), torch.stack(cut))
    assert len({tuple(place) for place in places}) == 25


def close_to(ours, theirs, kind):
    """Whether pictures are the same but for rounding: one byte in a hundred may be one more or less."""
    away = (ours.double() - theirs.double()).abs()
    if kind.is_floating_point:
        return away.max() < 1e-3
    return away.max() <= 1 and (away == 0).double().mean() > 0.99


@pytest.mark.parametrize("kind", [torch.uint8, torch.float64])
@pytest.mark.parametrize("shape", [(16, 16), (8, 40), (1, 9)])
def test_rotated_pictures_are_those_of_torchvision(shape, kind):
    x, noise = pictures(200, 3, *shape).to(kind), noise_of(200)
    augment = Augmentation(["rotate"], 0.0, rotate_degrees=90)
    degrees = augment.angles(noise).rad2deg()
    wanted = one_by_one(lambda picture, a: F.rotate(picture, a, InterpolationMode.BILINEAR), x, degrees)
    assert close_to(augment(x, noise), wanted, kind)
    assert degrees.abs().max() <= 90 and degrees.min() < -85 and degrees.max() > 85


@pytest.mark.parametrize("kind", [torch.uint8, torch.float64])
@pytest.mark.parametrize("shape", [(16, 16), (8, 40), (1, 9), (3, 1)])
def test_resized_parts_are_those_of_torchvision(shape, kind):
    x, noise = pictures(200, 3, *shape).to(kind), noise_of(200)
    cut = augmentation.parts(noise, *shape)
    exact = x if kind.is_floating_point else x.float()  # PyTorch's kernel for bytes rounds on the way, ours at the end
    wanted = one_by_one(lambda picture, *of: F.resized_crop(picture, *of, shape, antialias=False), exact, *cut.T)
    made = Augmentation(["resized_crop"], 0.0)(x, noise)
    assert close_to(made, wanted if kind.is_floating_point else wanted.round(), kind)


def test_parts_have_the_sizes_that_are_documented():
    """Of 20000 in pictures of 64: areas uniform from 8 to 100 % where they fit, ratios of 3/4 to 4/3, everywhere."""
    top, left, high, wide = augmentation.parts(noise_of(20_000), 64, 64).unbind(1)
    assert ((top >= 0) & (left >= 0) & (top + high <= 64) & (left + wide <= 64) & (high > 0) & (wide > 0)).all()
    area, ratio = (high * wide).double() / 64**2, wide.double() / high
    assert 0.07 < area.min() < 0.09 and area.max() == 1
    assert 0.72 < ratio.min() < 0.76 and 1.32 < ratio.max() < 1.4
    small = area < 0.5  # which fit at any ratio
    assert abs(area[small].mean() - 0.29) < 0.005
    assert abs(ratio[small].log().mean()) < 0.01
    for start, size in ((top, high), (left, wide)):
        place = (start / (64 - size))[size < 64]
        assert (place == 0).any() and (place == 1).any() and abs(place.mean() - 0.5) < 0.015


def test_half_of_the_pictures_stand_on_their_heads():
    x, noise = pictures(400), noise_of(400)
    made = Augmentation(["vertical_flip"], 0.0)(x, noise)
    turned = (made == one_by_one(F.vertical_flip, x)).flatten(1).all(1)
    assert torch.equal(made[~turned], x[~turned])
    assert 163 < turned.sum() < 237  # half of 400, and 3.7 standard deviations


# ---------------------------------------------------------------- several, and their numbers


def test_several_are_applied_in_their_order():
    x, noise = pictures(100), noise_of(100)
    for names in (["crop", "flip", "colour"], ["colour", "erase"], ["erase", "colour"], ["flip", "crop", "greyscale"]):
        made = x
        for name in names:
            made = Augmentation([name], 0.4)(made, noise)
        assert torch.equal(Augmentation(names, 0.4)(x, noise), made)
    both = Augmentation(["crop", "flip"], 0.0)(x, noise)
    assert torch.equal(Augmentation(["crop_flip"], 0.0)(x, noise), both)
    assert not torch.equal(Augmentation(["flip", "crop"], 0.0)(x, noise), both)


@pytest.mark.parametrize("name", NAMES)
def test_shape_and_type_stay_and_so_does_what_is_given(name):
    x, noise = pictures(50), noise_of(50)
    given = x.clone()
    made = Augmentation([name], 0.4, 0.1, 15)(x, noise)
    assert made.shape == x.shape
    assert made.dtype == x.dtype
    assert torch.equal(x, given)
    assert not torch.equal(made, x)


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_does_not_depend_on_those_beside_it(name):
    """Also where runs of a stack are augmented at once, for which no operation is called run by run: PyTorch warns of
    one that would be."""
    x, noise, augment = pictures(24), noise_of(24), Augmentation([name], 0.4, 0.1, 15)
    whole = augment(x, noise)
    assert torch.equal(whole, torch.cat([augment(x[i : i + 5], noise[:, i : i + 5]) for i in range(0, 24, 5)]))
    runs, of_runs = x.view(3, 8, *x.shape[1:]), noise.view(3, 3, 8).movedim(1, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(torch.vmap(augment)(runs, of_runs), whole.view_as(runs))


def test_rectangles_have_the_sizes_that_are_documented():
    """Of 20000 in pictures of 64: half of them, areas uniform from 2 to 33 %, ratios of 0.3 to 3.3, within the
    picture, as often high as wide, and everywhere."""
    n = 20_000
    erased, top, left, high, wide = rectangles(noise_of(n), 64, 64).unbind(1)
    assert abs(erased.double().mean() - 0.5) < 5 * 0.5 / n**0.5
    assert ((top >= 0) & (left >= 0) & (top + high <= 64) & (left + wide <= 64)).all()
    assert (torch.stack([high, wide]) <= 63).all()
    area, ratio = (high * wide).double() / 64**2, high.double() / wide
    assert area.min() > 0.015
    assert area.max() < 0.34
    assert abs(area.mean() - 0.175) < 0.005
    assert ratio.min() > 0.25
    assert ratio.max() < 4
    assert abs((high > wide).double().mean() - (wide > high).double().mean()) < 0.03
    for start, size in ((top, high), (left, wide)):
        place = start.double() / (64 - size)
        assert (place == 0).any() and (place == 1).any()
        assert abs(place.mean() - 0.5) < 0.015


def test_numbers_of_one_purpose_say_nothing_of_another():
    """20000 samples: uniform, and uncorrelated with the noise they are hashed from and among all purposes."""
    n = 20_000
    noise = noise_of(n)
    drawn = [uniforms(sample_keys(noise, purpose), 5).T for purpose in Purpose.__members__.values()]
    centred = torch.cat([noise, *drawn]).double() - 0.5
    assert (centred.mean(1).abs() < 5 * (1 / 12 / n) ** 0.5).all()
    correlation = torch.corrcoef(centred) - torch.eye(len(centred))
    assert (correlation.abs() < 5.5 / math.sqrt(n)).all()


def test_what_becomes_of_a_picture_is_independent_of_what_else_does():
    """Of 20000 pictures of one pixel: factors, rectangles, whether it is grey, and the noise of crops and flips."""
    n, noise = 20_000, noise_of(20_000)
    red = torch.tensor([255, 0, 0], dtype=torch.uint8)[None, :, None, None].expand(n, 3, 1, 1)
    is_grey = Augmentation(["greyscale"], 0.0)(red, noise)[:, 1, 0, 0] > 0
    groups = [noise, Augmentation(["colour"], 1.0).colour_factors(noise).T, rectangles(noise, 64, 64).T, is_grey[None]]
    groups.append(Augmentation(["hue"], 0.0, 0.5).turns(noise)[None])
    groups.append(Augmentation(["rotate"], 0.0, rotate_degrees=180).angles(noise)[None])
    groups.append(augmentation.parts(noise, 64, 64).T)
    for i, one in enumerate(groups):
        for other in groups[:i]:
            together = torch.corrcoef(torch.cat([one, other]).double())[: len(one), len(one) :]
            assert (together.abs() < 5 / math.sqrt(n)).all()


@pytest.mark.parametrize("strength", [0.2, 0.4, 1.0])
def test_colours_are_as_strong_as_is_said(strength):
    factors = Augmentation(["colour"], strength).colour_factors(noise_of(5000))
    assert ((factors - 1).abs() <= strength).all()
    assert (factors.min(0).values < 1 - 0.99 * strength).all()
    assert (factors.max(0).values > 1 + 0.99 * strength).all()


# ---------------------------------------------------------------- as keys


def arrays_of(channels, kind=np.uint8, shape=(16, 16)):
    random = np.random.default_rng(0)
    x = random.integers(0, 256, (40, channels, *shape)).astype(kind)
    return to_samples(Arrays(x, np.arange(40) % 4, 30, ["a", "b", "c", "d"]), 0)


def batch_of(settings_of, *typed, samples=None, augment=True):
    """The 30 training pictures as a batch of float64."""
    settings, samples = settings_of("tasks=2", "dataset.normalize=false", *typed), samples or arrays_of(3)
    stream = make_tasks(samples, settings)
    data = make_data(samples, settings, *stream.tables.active.shape[1:], torch.device("cpu"), torch.float64)
    noise = torch.rand(6, 30, generator=torch.Generator().manual_seed(3))
    moment = StepContext(torch.tensor(0), torch.tensor(0), torch.tensor(0.0), torch.tensor(0), noise)
    return data.batch(stream.tables, torch.arange(30), torch.ones(30), moment, augment), noise


def test_a_batch_is_augmented_before_it_is_normalised(settings_of):
    samples = arrays_of(3)
    batch, noise = batch_of(settings_of, "augment=[crop,flip,colour,erase]", "colour_strength=0.7", samples=samples)
    wanted = Augmentation(["crop_flip", "colour", "erase"], 0.7)(samples.x[:30], noise[3:])
    assert torch.allclose(batch.x * 255, wanted.double())
    still, _ = batch_of(settings_of, "augment=colour", samples=samples, augment=False)
    assert torch.allclose(still.x * 255, samples.x[:30].double())


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("crop_flip", "crop_flip"),
        ("[crop_flip]", "crop_flip"),
        ("[crop,flip]", "crop_flip"),
        ("[none]", "none"),
        ("[flip]", "flip"),
        ("[flip,crop]", ["flip", "crop"]),
        ("[colour,crop,flip]", ["colour", "crop_flip"]),
        ("[crop,colour,flip]", ["crop", "colour", "flip"]),
    ],
)
def test_one_augmentation_has_one_spelling(settings_of, typed, value):
    settings = settings_of("dataset=cifar10", f"augment={typed}")
    assert settings["augment"] == value
    assert settings["colour_strength"] == (0.4 if "colour" in typed else None)


def test_strength_is_part_of_the_identity_where_it_counts(settings_of):
    def identity(*typed):
        return settings_of("dataset=cifar10", *typed).identity("")

    assert identity("augment=colour") == identity("augment=colour", "colour_strength=0.4")
    assert identity("augment=colour") != identity("augment=colour", "colour_strength=0.5")
    assert identity("augment=hue") == identity("augment=hue", "hue_strength=0.1")
    assert identity("augment=hue") != identity("augment=hue", "hue_strength=0.2")
    assert identity("augment=rotate") == identity("augment=rotate", "rotate_degrees=15")
    assert identity("augment=rotate") != identity("augment=rotate", "rotate_degrees=10")
    assert len({identity(f"augment={one}") for one in ("none", "crop_flip", "crop", "[flip,crop]")}) == 4


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["augment=[crop,crop]"], r"augment=\[crop,crop\] has crop twice"),
        (["augment=[crop_flip,flip]"], "has flip twice"),
        (["augment=[none,flip]"], "none is nothing at all"),
        (["augment=[crop,color]"], "did you mean colour"),
        (["augment=grayscale"], "did you mean greyscale"),
        (["augment=[]"], "must be one of"),
        (["augment=crop", "colour_strength=0.3"], "belongs to augment=colour"),
        (["augment=colour", "colour_strength=0"], "above 0"),
        (["augment=colour", "hue_strength=0.2"], "belongs to augment=hue"),
        (["augment=hue", "hue_strength=0.7"], "at most 0.5"),
        (["augment=flip", "rotate_degrees=10"], "belongs to augment=rotate"),
        (["augment=rotate", "rotate_degrees=0"], "above 0"),
        (["augment=rotation"], "did you mean rotate"),
    ],
)
def test_what_cannot_be_meant_is_refused(settings_of, typed, said):
    with pytest.raises(UsageError, match=said):
        settings_of("dataset=cifar10", *typed)


@pytest.mark.parametrize("name", ["colour", "greyscale", "hue"])
def test_colours_need_colours(settings_of, name):
    """Refused for grey pictures and floats; crops, flips and rectangles are not."""
    for samples, has in ((arrays_of(1), "have 1"), (arrays_of(4), "have 4"), (arrays_of(3, np.float32), "are floats")):
        with pytest.raises(UsageError) as refused:
            batch_of(settings_of, f"augment=[flip,{name}]", samples=samples)
        assert str(refused.value) == (
            f"augment=[flip,{name}]: {name} needs pictures of bytes with three channels (red, green and blue), and "
            f"those of this data set {has}; leave {name} out."
        )
        moved, _ = batch_of(settings_of, "augment=[crop,flip,rotate,resized_crop,erase]", samples=samples)
        still, _ = batch_of(settings_of, samples=samples)
        assert not torch.equal(moved.x, still.x)


@pytest.mark.parametrize("name", NAMES)
def test_every_augmentation_needs_pictures(settings_of, name):
    samples = to_samples(Arrays(np.ones((40, 7), np.float32), np.arange(40) % 4, 30, ["a", "b", "c", "d"]), 0)
    with pytest.raises(UsageError, match=f"augment={name} needs pictures"):
        batch_of(settings_of, f"augment={name}", samples=samples)
