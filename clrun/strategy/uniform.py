"""Random numbers of a step, as many as a strategy wants.

A step brings six numbers for each sample of its batch (`Batch.noise`). Where more are needed, such as one for each slot
of a memory, they are hashed from those of the batch's first sample, which is there in every batch, as for the masks of
dropout: see `clrun.system.hashing`. Equal noise gives equal numbers: alone, in a stack, and in a run that was
interrupted.
"""

import torch
from torch import Tensor

from clrun.system.hashing import BITS, sample_keys, uniforms


def uniform(noise: Tensor, n: int) -> Tensor:
    """Return n numbers, uniform in [0, 1) with 24 bits, from numbers (K,) uniform in [0, 1): (n,) float32.

    The first of them do not depend on n.
    """
    return uniforms(sample_keys(noise[:, None], 1)[0], n)


def normal(noise: Tensor, n: int) -> Tensor:
    """Return n numbers from N(0, 1), from numbers (K,) uniform in [0, 1): (n,) float64 between -5.5 and 5.5."""
    centred = uniform(noise, n).double() + 2.0 ** -(BITS + 1)  # in the middle of its 2^-24, so never 0 or 1
    return torch.special.ndtri(centred)
