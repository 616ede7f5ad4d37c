"""Random numbers of a step, as many as a strategy wants.

A step brings six numbers for each sample of its batch (`Batch.noise`). Where more are needed, such as one for each slot
of a memory, they are hashed from those of the batch's first sample, which is there in every batch: by the finalizer of
MurmurHash3, as for the masks of dropout. Equal noise gives equal numbers: alone, in a stack, and in a run that was
interrupted.
"""

import torch
from torch import Tensor

from clrun.models.dropout import BITS, GOLDEN, mixed


def uniform(noise: Tensor, n: int) -> Tensor:
    """Return n numbers, uniform in [0, 1) with 24 bits, from numbers (K,) uniform in [0, 1): (n,) float32.

    The first of them do not depend on n.
    """
    key = torch.ones((), dtype=torch.int32, device=noise.device)
    for number in noise.unbind(0):
        key = mixed(key * GOLDEN ^ (number * 2**BITS).to(torch.int32))
    counter = mixed(torch.arange(n, dtype=torch.int32, device=noise.device) * GOLDEN)
    return (mixed(key ^ counter) & (2**BITS - 1)).to(torch.float32) / 2**BITS


def normal(noise: Tensor, n: int) -> Tensor:
    """Return n numbers from N(0, 1), from numbers (K,) uniform in [0, 1): (n,) float64 between -5.5 and 5.5."""
    centred = uniform(noise, n).double() + 2.0 ** -(BITS + 1)  # in the middle of its 2^-24, so never 0 or 1
    return torch.special.ndtri(centred)
