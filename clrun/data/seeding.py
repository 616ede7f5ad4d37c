"""Random numbers by purpose: what a run draws for one purpose follows from its seed alone, whatever else is drawn."""

import hashlib
from enum import IntEnum

import torch

# Uniform numbers for each sample of a step: those for the strategy, then three for the augmentation.
STRATEGY_DRAWS = 3
DRAWS = STRATEGY_DRAWS + 3


class Purpose(IntEnum):
    """What numbers are for that are hashed from those of the augmentation: others for each purpose. Those of dropout,
    which are hashed from all numbers of a sample, are positive."""

    COMPANION = -1  # the augmentation of samples that are gathered beside those of a batch
    GREYSCALE = -2
    ERASE = -3
    COLOUR = -4
    HUE = -5
    ROTATE = -6
    RESIZED_CROP = -7
    VERTICAL_FLIP = -8


def generator(seed: int, purpose: str) -> torch.Generator:
    """Return the generator of one purpose of one run, such as "class order".

    Each purpose has a generator of its own, so drawing more numbers for one purpose changes no number of another.
    """
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))
