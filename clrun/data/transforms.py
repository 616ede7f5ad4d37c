"""Transforms of a batch of samples on the device: crop and flip, rotation, normalisation."""

import torch
import torch.nn.functional as F
from torch import Tensor

from clrun.data.samples import Samples


def crop_flip(x: Tensor, noise: Tensor) -> Tensor:
    """Return randomly cropped and flipped images (B, C, H, W).

    Images are padded with black by an eighth of their height, cropped to their size, and flipped left to right in half
    of the cases. noise (3, B), uniform in [0, 1), decides on the row, the column and the flip.
    """
    right = torch.arange(x.shape[-1], device=x.device)
    return cropped(x, noise, torch.where(noise[2][:, None] < 0.5, right, right.flip(0)))


def crop(x: Tensor, noise: Tensor) -> Tensor:
    """Return randomly cropped images (B, C, H, W), as `crop_flip` without its flips."""
    return cropped(x, noise, torch.arange(x.shape[-1], device=x.device))


def flip(x: Tensor, noise: Tensor) -> Tensor:
    """Return images (B, C, H, W) flipped left to right in half of the cases, as `crop_flip` without its crops."""
    return torch.where(noise[2][:, None, None, None] < 0.5, x, x.flip(-1))


def cropped(x: Tensor, noise: Tensor, columns: Tensor) -> Tensor:
    """Return images (B, C, H, W) cropped by noise (2 or more, B), with their columns in the order (W,) or (B, W)."""
    height = x.shape[-2]
    pad = height // 8
    padded = F.pad(x, (pad, pad, pad, pad))
    shift = (noise[:2] * (2 * pad + 1)).long()
    down = torch.arange(height, device=x.device) + shift[0][:, None]
    right = columns + shift[1][:, None]
    rows = padded.gather(2, down[:, None, :, None].expand(-1, x.shape[1], -1, padded.shape[-1]))
    return rows.gather(3, right[:, None, None, :].expand(-1, x.shape[1], height, -1))


def turn(x: Tensor, angle: Tensor) -> Tensor:
    """Return images (B, C, H, W) rotated counter-clockwise about their centre by angle (B,) in radians.

    Pixels are interpolated bilinearly; what lies outside of the image is black.
    """
    height, width = x.shape[-2:]
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    right = torch.stack([cos, -height / width * sin, zero], -1)  # both sides are from -1 to 1, however long they are
    down = torch.stack([width / height * sin, cos, zero], -1)
    return F.grid_sample(x, affine_grid(torch.stack([right, down], -2).to(x.dtype), height, width), align_corners=False)


def affine_grid(affine: Tensor, height: int, width: int) -> Tensor:
    """Return the positions (B, H, W, 2), x before y in [-1, 1], to which affine maps (B, 2, 3) take the middles of
    pixels.

    It is `torch.nn.functional.affine_grid`, bit by bit, which `torch.vmap` would call for each run of a stack.
    """
    rows, columns = middles(height, affine), middles(width, affine)
    places = torch.meshgrid(rows, columns, indexing="ij")
    base = torch.stack([places[1], places[0], torch.ones_like(places[0])], -1)
    of_all = base.view(1, height * width, 3) + torch.zeros_like(affine[:, :1, :1])  # an export knows no size for expand
    positions = of_all.bmm(affine.mT)
    return positions.view(-1, height, width, 2)


def middles(n: int, like: Tensor) -> Tensor:
    """Return where the middles (n,) of n pixels lie, whose outer edges are at -1 and 1."""
    if n == 1:
        return like.new_zeros(1)
    return torch.linspace(-1, 1, n, dtype=like.dtype, device=like.device) * (n - 1) / n


def normalisation(samples: Samples, normalize: bool) -> tuple[Tensor, Tensor]:
    """Return scale and shift in float64, of which number * scale + shift is the network's input; their shape is (F,)
    for features and (C, 1, ...) for all else.

    With `normalize`, each feature, or each channel of pictures and series, has mean 0 and standard deviation 1 over
    the training samples. Without it, pixels are divided by 255, and floats stay as they are. What its reader has
    standardised stays as it is.
    """
    later = (1,) * (len(samples.shape) - 1)
    if not normalize or samples.standardised:
        scale = torch.ones(samples.shape[0], dtype=torch.float64) / (255 if samples.x.dtype == torch.uint8 else 1)
        return scale.view(-1, *later), torch.zeros_like(scale).view(-1, *later)
    mean, deviation = samples.moments
    deviation = torch.where(deviation > 0, deviation, torch.ones_like(deviation))  # a channel of one value
    return (1 / deviation).view(-1, *later), (-mean / deviation).view(-1, *later)
