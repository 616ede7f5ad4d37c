"""Masks of dropout as a pure function of the noise of a step.

Random numbers are data in clrun: they are drawn outside the step, from the run's seed, a few for each sample. A mask
needs one for each unit. So the numbers of a sample are hashed together with the number of the layer's call and the
number of the unit (`clrun.system.hashing`). Equal noise gives an equal mask: alone, in a stack, in a CUDA graph, and in
a run that was interrupted.

Shapes: B samples.
"""

from math import prod

from torch import Tensor

from clrun.system.hashing import BITS, bits_of, sample_keys


def keep_mask(noise: Tensor, call: int, shape: tuple[int, ...], p: float) -> Tensor:
    """Return a mask of this shape (B, ...) bool, each entry True with probability 1 - p, independently of the others.

    noise (K, B) are uniform numbers in [0, 1), new at every step. `call` is the number of the layer's call in a pass.
    """
    numbers = bits_of(sample_keys(noise, call + 1), prod(shape[1:]))
    return (numbers >= round(p * 2**BITS)).view(shape)
