"""Masks of dropout as a pure function of the noise of a step.

Random numbers are data in clrun: they are drawn outside the step, from the run's seed, a few for each sample. A mask
needs one for each unit. So the numbers of a sample are hashed together with the number of the layer's call and the
number of the unit, by the finalizer of MurmurHash3 (Appleby, public domain), which changes every bit of its result with
probability 1/2 where one bit of its input changes. Equal noise gives an equal mask: alone, in a stack, in a CUDA graph,
and in a run that was interrupted.

Shapes: B samples.
"""

from math import prod

import torch
from torch import Tensor

# Constants of MurmurHash3's finalizer, and the golden ratio times 2**32, as signed 32-bit integers.
MULTIPLIERS = (-2048144789, -1028477387)
GOLDEN = -1640531527

BITS = 24  # of a number in [0, 1), as in float32


def keep_mask(noise: Tensor, call: int, shape: tuple[int, ...], p: float) -> Tensor:
    """Return a mask of this shape (B, ...) bool, each entry True with probability 1 - p, independently of the others.

    noise (K, B) are uniform numbers in [0, 1), new at every step. `call` is the number of the layer's call in a pass.
    """
    sample = torch.full(shape[:1], call + 1, dtype=torch.int32, device=noise.device)
    for row in noise.unbind(0):
        sample = mixed(sample * GOLDEN ^ (row * 2**BITS).to(torch.int32))
    unit = torch.arange(prod(shape[1:]), dtype=torch.int32, device=noise.device) * GOLDEN
    number = mixed(sample[:, None] ^ mixed(unit)) & (2**BITS - 1)
    return (number >= round(p * 2**BITS)).view(shape)


def mixed(h: Tensor) -> Tensor:
    """Return MurmurHash3's finalizer of h, int32."""
    h = (h ^ (h >> 16 & 0xFFFF)) * MULTIPLIERS[0]
    h = (h ^ (h >> 13 & 0x7FFFF)) * MULTIPLIERS[1]
    return h ^ (h >> 16 & 0xFFFF)
