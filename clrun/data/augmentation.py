"""Augmentation of a batch of pictures on the device, each picture by random numbers of its own.

Every function takes pictures x (B, C, H, W), bytes or floats, and noise (3, B) uniform in [0, 1), and returns pictures
of the same shape and type. Cropping and flipping read that noise as it is; where other numbers are needed, they are
hashed from it. Nothing is drawn here, so that a step gives the same pictures alone, in a stack and in a CUDA graph. For
given numbers the pictures are those of `torchvision.transforms.v2.functional`, bit by bit on a CPU. Of `hue` and
`rotate`, a few bytes differ by one; and bytes of `resized_crop` are those of floats, rounded at the end.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log, pi

import torch
import torch.nn.functional as F
from torch import Tensor

from clrun.data.samples import Samples
from clrun.data.seeding import Purpose
from clrun.data.transforms import crop, crop_flip, flip, turn
from clrun.data.values import Values
from clrun.system.errors import UsageError
from clrun.system.hashing import sample_keys, uniforms
from clrun.system.text import format_value

# Share of the pictures that become grey: the default of torchvision's RandomGrayscale.
GREY_SHARE = 0.1

# Of torchvision's RandomErasing, its defaults: the share of the pictures of which a rectangle is erased, the area of
# the rectangle as a part of the picture, and its height over its width.
ERASED_SHARE = 0.5
ERASED_AREA = (0.02, 0.33)
ERASED_RATIO = (0.3, 3.3)

# Brightness of red, green and blue, as torchvision has them (ITU-R BT.601 in four digits).
RED, GREEN, BLUE = 0.2989, 0.587, 0.114

# Of torchvision's RandomResizedCrop, its defaults: the area of what is cut out as a part of the picture, and its width
# over its height.
CROPPED_AREA = (0.08, 1.0)
CROPPED_RATIO = (3 / 4, 4 / 3)

# What works on red, green and blue.
OF_COLOURS = ("greyscale", "colour", "hue")

# How many copies of a batch in float32 are there at once: places between pixels count as much as a grey picture each.
COPIES_OF = {"greyscale": 6, "colour": 6, "hue": 8, "rotate": 9, "resized_crop": 7}
COPIES = 4  # of a batch that is not changed, or by other changes


@dataclass(frozen=True)
class Augmentation:
    """What is done to every picture that is trained on, one after the other.

    names are of `crop`, `flip`, `crop_flip`, `vertical_flip`, `rotate`, `resized_crop`, `greyscale`, `erase`, `colour`
    and `hue`. The factors of brightness, contrast and saturation are within `colour_strength` of 1. Hues are turned by
    at most `hue_strength` of a circle, and pictures by at most `rotate_degrees`, either way.
    """

    names: Sequence[str]
    colour_strength: float
    hue_strength: float = 0.0
    rotate_degrees: float = 0.0

    def __call__(self, x: Tensor, noise: Tensor) -> Tensor:
        """Return the pictures x (B, C, H, W) augmented by noise (3, B)."""
        named: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
            "crop": crop,
            "flip": flip,
            "crop_flip": crop_flip,
            "vertical_flip": vertical_flip,
            "rotate": self.rotate,
            "resized_crop": resized_crop,
            "greyscale": greyscale,
            "erase": erase,
            "colour": self.colour,
            "hue": self.hue,
        }
        for name in self.names:
            x = named[name](x, noise)
        return x

    def colour(self, x: Tensor, noise: Tensor) -> Tensor:
        """Return pictures with another brightness, contrast and saturation, changed in this order."""
        brightness, contrast, saturation = self.colour_factors(noise).unbind(1)
        return with_saturation(with_contrast(with_brightness(x, brightness), contrast), saturation)

    def colour_factors(self, noise: Tensor) -> Tensor:
        """Return the factors (B, 3) of brightness, contrast and saturation."""
        return 1 + self.colour_strength * (2 * uniforms(sample_keys(noise, Purpose.COLOUR), 3) - 1)

    def hue(self, x: Tensor, noise: Tensor) -> Tensor:
        """Return pictures whose hues are turned."""
        return with_hue(x, self.turns(noise))

    def turns(self, noise: Tensor) -> Tensor:
        """Return by how much of a circle the hues are turned: (B,)."""
        return self.hue_strength * (2 * uniforms(sample_keys(noise, Purpose.HUE), 1)[:, 0] - 1)

    def rotate(self, x: Tensor, noise: Tensor) -> Tensor:
        """Return pictures rotated about their centre, interpolated bilinearly; what was outside of them is black."""
        return as_before(turn(x.to(x_type(x)), self.angles(noise).to(x_type(x))), x)

    def angles(self, noise: Tensor) -> Tensor:
        """Return the angles (B,) of the rotations in radians, counter-clockwise."""
        drawn = 2 * uniforms(sample_keys(noise, Purpose.ROTATE), 1)[:, 0] - 1
        return self.rotate_degrees * pi / 180 * drawn


def augmentation_of(settings: Values) -> Augmentation | None:
    """Return what the settings `augment`, `colour_strength`, `hue_strength` and `rotate_degrees` name; None for
    nothing."""
    names = settings["augment"]
    if names == "none":
        return None
    strengths = (settings[key] or 0.0 for key in ("colour_strength", "hue_strength", "rotate_degrees"))
    return Augmentation([names] if isinstance(names, str) else names, *strengths)


def of_colours(augment: str | Sequence[str]) -> list[str]:
    """Return what the setting `augment` names that works on red, green and blue."""
    names = [augment] if isinstance(augment, str) else augment
    return [name for name in names if name in OF_COLOURS]


def copies_of(augment: str | Sequence[str]) -> int:
    """Return how many copies of a batch in float32 are there at once while it is made, at most."""
    names = [augment] if isinstance(augment, str) else augment
    return max(COPIES_OF.get(name, COPIES) for name in names)


def refuse_without_colours(images: Samples, augment: str | Sequence[str]) -> None:
    """Raise UsageError where pictures have no red, green and blue and `augment` names what works on them."""
    wanted = of_colours(augment)
    if not wanted or (images.shape[0] == 3 and images.x.dtype == torch.uint8):
        return
    has = f"have {images.shape[0]}" if images.shape[0] != 3 else "are floats"
    raise UsageError(
        f"augment={format_value(augment)}: {wanted[0]} needs pictures of bytes with three channels (red, green and "
        f"blue), and those of this data set {has}; leave {' and '.join(wanted)} out."
    )


# ---------------------------------------------------------------- places of pixels


def vertical_flip(x: Tensor, noise: Tensor) -> Tensor:
    """Return pictures of which half are flipped upside down."""
    drawn = uniforms(sample_keys(noise, Purpose.VERTICAL_FLIP), 1)[:, :, None, None]
    return torch.where(drawn < 0.5, x, x.flip(-2))


def resized_crop(x: Tensor, noise: Tensor) -> Tensor:
    """Return parts of the pictures, made as large as the whole by bilinear interpolation, without antialiasing."""
    height, width = x.shape[-2:]
    top, left, high, wide = parts(noise, height, width).to(x_type(x)).unbind(1)
    rows = places(top, high, height)[:, :, None].expand(-1, -1, width)
    columns = places(left, wide, width)[:, None].expand(-1, height, -1)
    grid = torch.stack([columns, rows], -1)
    return as_before(F.grid_sample(x.to(x_type(x)), grid, align_corners=False), x)


def parts(noise: Tensor, height: int, width: int) -> Tensor:
    """Return what is cut out of each picture: its top, its left, its height and its width, in pixels: (B, 4) int64.

    The area is uniform and the ratio of the sides log-uniform. A part that would be higher or wider than the picture,
    of which torchvision draws another, is as high or as wide as the picture.
    """
    area, ratio, down, right = uniforms(sample_keys(noise, Purpose.RESIZED_CROP), 4).unbind(1)
    area = height * width * (CROPPED_AREA[0] + (CROPPED_AREA[1] - CROPPED_AREA[0]) * area)
    narrowest, widest = log(CROPPED_RATIO[0]), log(CROPPED_RATIO[1])
    ratio = (narrowest + (widest - narrowest) * ratio).exp()
    high = (area / ratio).sqrt().round().clamp(1, height)
    wide = (area * ratio).sqrt().round().clamp(1, width)
    top, left = (down * (height - high + 1)).floor(), (right * (width - wide + 1)).floor()
    return torch.stack([top, left, high, wide], 1).long()


def places(start: Tensor, size: Tensor, n: int) -> Tensor:
    """Return where n pixels (B, n) lie that are made of `size` (B,) pixels from `start` (B,) on, of n in all.

    They are from -1 to 1 between the outer edges of the picture, and no further out than the middles of the part's
    first and last pixel.
    """
    middles = (torch.arange(n, device=start.device, dtype=start.dtype) + 0.5) / n * size[:, None] - 0.5
    within = torch.minimum(middles.clamp(min=0), size[:, None] - 1)
    return (2 * (start[:, None] + within) + 1) / n - 1


def x_type(x: Tensor) -> torch.dtype:
    """Return the type in which the pictures x are interpolated: their own, or float32 for bytes."""
    return x.dtype if x.is_floating_point() else torch.float32


def as_before(made: Tensor, x: Tensor) -> Tensor:
    """Return what was made of the pictures x in their type: rounded, where they are bytes."""
    return made if x.is_floating_point() else made.round_().to(x.dtype)


# ---------------------------------------------------------------- grey pictures and rectangles


def brightness_of(x: Tensor) -> Tensor:
    """Return the brightness (B, 1, H, W) float32 of pictures of bytes (B, 3, H, W)."""
    red, green, blue = x.unbind(-3)
    return red.mul(RED).add_(green, alpha=GREEN).add_(blue, alpha=BLUE).unsqueeze(-3)


def greyscale(x: Tensor, noise: Tensor) -> Tensor:
    """Return pictures of which a tenth are grey."""
    drawn = uniforms(sample_keys(noise, Purpose.GREYSCALE), 1)[:, :, None, None]
    return torch.where(drawn < GREY_SHARE, brightness_of(x).to(x.dtype), x)


def erase(x: Tensor, noise: Tensor) -> Tensor:
    """Return pictures of which half have a rectangle of zeros: black, or the mean of normalised floats."""
    height, width = x.shape[-2:]
    drawn, top, left, high, wide = rectangles(noise, height, width).unbind(1)
    rows, columns = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
    in_rows = (rows >= top[:, None]) & (rows < (top + high)[:, None])
    in_columns = (columns >= left[:, None]) & (columns < (left + wide)[:, None])
    erased = in_rows[:, :, None] & in_columns[:, None] & (drawn > 0)[:, None, None]
    return x.masked_fill(erased[:, None], 0)


def rectangles(noise: Tensor, height: int, width: int) -> Tensor:
    """Return for each picture whether a rectangle is erased (1 or 0), its top, its left, its height and its width, in
    pixels: (B, 5) int64.

    The area is uniform and the ratio of the sides log-uniform. A rectangle that would be as high or as wide as the
    picture, of which torchvision draws another, is one pixel smaller than that.
    """
    share, area, ratio, down, right = uniforms(sample_keys(noise, Purpose.ERASE), 5).unbind(1)
    area = height * width * (ERASED_AREA[0] + (ERASED_AREA[1] - ERASED_AREA[0]) * area)
    shortest, longest = log(ERASED_RATIO[0]), log(ERASED_RATIO[1])
    ratio = (shortest + (longest - shortest) * ratio).exp()
    high = (area * ratio).sqrt().round().clamp(max=height - 1)
    wide = (area / ratio).sqrt().round().clamp(max=width - 1)
    top, left = (down * (height - high + 1)).floor(), (right * (width - wide + 1)).floor()
    return torch.stack([(share < ERASED_SHARE).to(area), top, left, high, wide], 1).long()


# ---------------------------------------------------------------- colours, of pictures of bytes


def with_brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Return pictures of bytes (B, 3, H, W) brighter by factor (B,), as torchvision's `adjust_brightness`."""
    return as_bytes(x.mul(factor[:, None, None, None]))


def with_contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Return pictures of bytes (B, 3, H, W) with their contrast times factor (B,), as torchvision's `adjust_contrast`:
    away from their mean brightness, or towards it."""
    height, width = x.shape[-2:]
    brightness = brightness_of(x).floor_()
    total = brightness.sum((-3, -2, -1), keepdim=True, dtype=torch.float64)  # exact, so the same in any order
    return blended(x, total.float() / (height * width), factor)


def with_saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Return pictures of bytes (B, 3, H, W) with their saturation times factor (B,), as torchvision's
    `adjust_saturation`: away from grey, or towards it."""
    return blended(x, brightness_of(x).floor_(), factor)


def with_hue(x: Tensor, turn: Tensor) -> Tensor:
    """Return pictures of bytes (B, 3, H, W) whose hues are turned by turn (B,) of a circle, as torchvision's
    `adjust_hue`: 1/3 makes red green, green blue and blue red. Saturation and the largest of the three stay."""
    red, green, blue = x.float().div(255).unbind(-3)
    largest = torch.maximum(torch.maximum(red, green), blue)
    chroma = largest - torch.minimum(torch.minimum(red, green), blue)
    divisor = torch.where(chroma == 0, 1, chroma)  # a grey picture element has no hue, and keeps its grey
    sixths = torch.where(
        largest == red,
        (green - blue) / divisor,
        torch.where(largest == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    turned = sixths + 6 * turn[:, None, None]

    def slope(place: int) -> Tensor:
        """Around the circle, a colour is the largest for a third of it, the least for a third, and between them on a
        slope."""
        away = (turned + place).remainder(6)
        return torch.minimum(away, 4 - away).clamp(0, 1)

    made = torch.stack([largest - chroma * slope(place) for place in (5, 3, 1)], -3)
    return as_bytes(made.mul(256 - 1e-3))  # as torchvision makes bytes of numbers from 0 to 1


def blended(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """Return factor * x + (1 - factor) * other as bytes (B, 3, H, W), with factor (B,)."""
    factor = factor[:, None, None, None]
    return as_bytes(torch.addcmul(x.mul(factor), other, 1 - factor))


def as_bytes(x: Tensor) -> Tensor:
    """Return x as whole numbers from 0 to 255, rounded towards zero."""
    return x.clamp(0, 255).to(torch.uint8)
