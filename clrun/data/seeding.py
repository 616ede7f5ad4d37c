"""Chance, by purpose: a run's draws follow from its seed alone, whatever else is drawn."""

import hashlib

import torch


def generator(seed: int, purpose: str) -> torch.Generator:
    """The generator of one purpose of one run: no draw of one purpose ever moves another."""
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


DRAWS = 6  # uniform numbers a sample and step: three for strategies, three for augmentation
