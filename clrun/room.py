"""What fits into memory: a size that cannot is refused before any of it is taken, as the system would kill the run."""

import os
from functools import cache

from clrun.errors import UsageError


@cache
def memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def refuse_without_room(needed: int, what: str, instead: str) -> None:
    """UsageError where this many bytes do not fit. what: "dataset.pad=9 (images of 26 x 26 pixels)"."""
    if needed > memory():
        raise UsageError(
            f"{what} takes about {needed / 1e9:.3g} GB of memory, and this machine has {memory() / 1e9:.3g}; "
            f"type {instead}."
        )
