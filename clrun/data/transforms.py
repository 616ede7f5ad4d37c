"""Transforms of a batch of images on the device: crop and flip, rotation, normalisation."""

import torch
import torch.nn.functional as F
from torch import Tensor

from clrun.data.datasets import Images


def crop_flip(x: Tensor, noise: Tensor) -> Tensor:
    """Return randomly cropped and flipped images (B, C, H, W).

    Images are padded with black by an eighth of their height, cropped to their size, and flipped left to right in half
    of the cases. noise (3, B), uniform in [0, 1), decides on the row, the column and the flip.
    """
    height, width = x.shape[-2:]
    pad = height // 8
    padded = F.pad(x, (pad, pad, pad, pad))
    shift = (noise[:2] * (2 * pad + 1)).long()
    down = torch.arange(height, device=x.device) + shift[0][:, None]
    right = torch.arange(width, device=x.device)
    right = torch.where(noise[2][:, None] < 0.5, right, right.flip(0)) + shift[1][:, None]
    rows = padded.gather(2, down[:, None, :, None].expand(-1, x.shape[1], -1, padded.shape[-1]))
    return rows.gather(3, right[:, None, None, :].expand(-1, x.shape[1], height, -1))


def turn(x: Tensor, angle: Tensor) -> Tensor:
    """Return images (B, C, H, W) rotated counter-clockwise about their centre by angle (B,) in radians.

    Pixels are interpolated bilinearly; what lies outside of the image is black.
    """
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    affine = torch.stack([torch.stack([cos, -sin, zero], -1), torch.stack([sin, cos, zero], -1)], -2).to(x.dtype)
    grid = F.affine_grid(affine, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def normalisation(images: Images, normalize: bool) -> tuple[Tensor, Tensor]:
    """Return scale and shift (C, 1, 1) in float64, of which pixel * scale + shift is the network's input.

    With `normalize`, each channel has mean 0 and standard deviation 1 over the training images; without it, inputs
    lie in [0, 1].
    """
    channels = images.x.shape[1]
    if not normalize:
        scale = torch.full((channels, 1, 1), 1 / 255, dtype=torch.float64)
        return scale, torch.zeros(channels, 1, 1, dtype=torch.float64)
    share = images.histogram / images.histogram.sum(1, keepdim=True).double()
    values = torch.arange(256, dtype=torch.float64)
    mean = (share * values).sum(1)
    deviation = ((share * values**2).sum(1) - mean**2).clamp(min=0).sqrt()
    deviation = torch.where(deviation > 0, deviation, torch.ones_like(deviation))  # a channel of one value
    return (1 / deviation)[:, None, None], (-mean / deviation)[:, None, None]
