"""A walk through a memory in random order, epoch by epoch: no sample comes again before all others have come.

A step takes the next m slots of the order. Where fewer are left, it goes on in a new order of all that the memory then
holds. What is stored while a walk is under way waits for the next one.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from clrun.strategy.ranked import AnyMemory


class Walk(NamedTuple):
    """How far the walk through a memory of M slots has come."""

    order: Tensor  # (M,) int64: slots, of which the first `length` are walked through
    length: Tensor  # () int64
    position: Tensor  # () int64: slots that are behind

    def begun_anew(self) -> "Walk":
        """Return a walk of which nothing is left, so that the next step begins another: after the memory has changed
        as a whole."""
        return Walk(self.order, torch.zeros_like(self.length), torch.zeros_like(self.position))

    def next(self, memory: AnyMemory, m: int, present: Tensor, noise: Tensor) -> tuple[Tensor, "Walk"]:
        """Return the next m slots (m,), and the walk after the first `present` () of them.

        noise (M,) is uniform in [0, 1): the order of the walk that begins where this one ends.
        """
        fresh = torch.where(memory.used, noise, 2).argsort(stable=True)
        left, held = self.length - self.position, memory.held.clamp(min=1)
        i = torch.arange(m, device=fresh.device)
        here = self.order.index_select(0, (self.position + i).clamp(max=len(fresh) - 1))
        beyond = fresh.index_select(0, (i - left).clamp(min=0) % held)
        ends = present > left
        onward = torch.where(ends, (present - left - 1) % held + 1, self.position + present)
        after = Walk(torch.where(ends, fresh, self.order), torch.where(ends, held, self.length), onward)
        return torch.where(i < left, here, beyond), after


def new_walk(slots: int, like: Tensor) -> Walk:
    """Return the walk through an empty memory of this many slots, on the device of `like`."""
    nothing = torch.zeros((), dtype=torch.long, device=like.device)
    return Walk(torch.zeros(slots, dtype=torch.long, device=like.device), nothing, nothing)
