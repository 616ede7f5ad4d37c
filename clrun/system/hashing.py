"""Random numbers as a pure function of others: the finalizer of MurmurHash3 (Appleby, public domain) on tensors.

It changes every bit of its result with probability 1/2 where one bit of its input changes. Equal numbers give equal
numbers: alone, in a stack, in a CUDA graph, and in a run that was interrupted.

Shapes: B samples.
"""

import torch
from torch import Tensor

# Constants of MurmurHash3's finalizer, and the golden ratio times 2**32, as signed 32-bit integers.
MULTIPLIERS = (-2048144789, -1028477387)
GOLDEN = -1640531527

BITS = 24  # of a number in [0, 1), as in float32


def mixed(h: Tensor) -> Tensor:
    """Return MurmurHash3's finalizer of h, int32."""
    h = (h ^ (h >> 16 & 0xFFFF)) * MULTIPLIERS[0]
    h = (h ^ (h >> 13 & 0x7FFFF)) * MULTIPLIERS[1]
    return h ^ (h >> 16 & 0xFFFF)


def sample_keys(noise: Tensor, purpose: int) -> Tensor:
    """Return a key (B,) int32 for each sample, from numbers (K, B) uniform in [0, 1); equal numbers have other keys for
    another purpose."""
    keys = torch.full(noise.shape[1:], purpose, dtype=torch.int32, device=noise.device)
    for row in noise.unbind(0):
        keys = mixed(keys * GOLDEN ^ (row * 2**BITS).to(torch.int32))
    return keys


def bits_of(keys: Tensor, n: int) -> Tensor:
    """Return n whole numbers below 2**24 of each of the keys (...): (..., n) int32; the first ones whatever n is."""
    counter = mixed(torch.arange(n, dtype=torch.int32, device=keys.device) * GOLDEN)
    return mixed(keys[..., None] ^ counter) & (2**BITS - 1)


def uniforms(keys: Tensor, n: int) -> Tensor:
    """Return n numbers of each of the keys (...), uniform in [0, 1) with 24 bits: (..., n) float32."""
    return bits_of(keys, n).to(torch.float32) / 2**BITS
