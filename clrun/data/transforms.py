"""Transforms of a batch of images on the device: crop and flip, rotation, normalisation."""

import torch
import torch.nn.functional as F
from torch import Tensor

from clrun.data.datasets import Images


def crop_flip(x: Tensor, noise: Tensor) -> Tensor:
    """Random crop after padding by an eighth of the side with black, and a horizontal flip; noise (3, B)."""
    height, width = x.shape[-2:]
    pad = height // 8
    padded = F.pad(x, (pad, pad, pad, pad))
    shift = (noise[:2] * (2 * pad + 1)).long()
    down = torch.arange(height, device=x.device) + shift[0][:, None]
    right = torch.arange(width, device=x.device)
    right = torch.where(noise[2][:, None] < 0.5, right, right.flip(0)) + shift[1][:, None]
    picked = padded.gather(2, down[:, None, :, None].expand(-1, x.shape[1], -1, padded.shape[-1]))
    return picked.gather(3, right[:, None, None, :].expand(-1, x.shape[1], height, -1))


def turn(x: Tensor, angle: Tensor) -> Tensor:
    """Rotate counter-clockwise by angle (B,) radians about the centre, bilinear, black outside."""
    c, s, o = angle.cos(), angle.sin(), torch.zeros_like(angle)
    affine = torch.stack([torch.stack([c, -s, o], -1), torch.stack([s, c, o], -1)], -2).to(x.dtype)
    grid = F.affine_grid(affine, x.shape, align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def normalisation(images: Images, normalize: bool) -> tuple[Tensor, Tensor]:
    """scale and shift (C, 1, 1) in float64: mean 0 and deviation 1 a channel over the training images, or [0, 1]."""
    channels = images.x.shape[1]
    if not normalize:
        return torch.full((channels, 1, 1), 1 / 255, dtype=torch.float64), torch.zeros(
            channels, 1, 1, dtype=torch.float64
        )
    share = images.histogram / images.histogram.sum(1, keepdim=True).double()
    values = torch.arange(256, dtype=torch.float64)
    mean = (share * values).sum(1)
    deviation = ((share * values**2).sum(1) - mean**2).clamp(min=0).sqrt()
    deviation = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
    return (1 / deviation)[:, None, None], (-mean / deviation)[:, None, None]
