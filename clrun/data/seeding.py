"""Random numbers by purpose: what a run draws for one purpose follows from its seed alone, whatever else is drawn."""

import hashlib

import torch

# Uniform numbers for each sample of a step: those for the strategy, then three for the augmentation.
STRATEGY_DRAWS = 3
DRAWS = STRATEGY_DRAWS + 3


def generator(seed: int, purpose: str) -> torch.Generator:
    """Return the generator of one purpose of one run, such as "class order".

    Each purpose has a generator of its own, so drawing more numbers for one purpose changes no number of another.
    """
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))
