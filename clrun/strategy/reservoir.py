"""A memory of past samples that is filled by reservoir sampling (Vitter 1985, algorithm R).

The memory has M slots. The n-th sample offered (n = 1, 2, ...) takes slot n if n <= M. Otherwise a slot j is drawn
uniformly from 1 ... n, and the sample replaces what is in slot j if j <= M, or else is not stored. After N >= M samples
each of them is in the memory with probability M / N, in whatever order they came.

Samples are offered a batch at a time, with the same result as one after the other: if two samples of a batch take the
same slot, the later one stays.

What counts is the sample, and not how often it is trained on. `Replay` therefore offers a sample in the first epoch of
its task alone, and none that is held already, so that N is the number of different samples and no sample is held twice.
In the literature a sample is offered again in every epoch (as in the code of Buzzega et al. 2020): a memory of M slots
then holds fewer than M different samples where M is not small beside N.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Memory(NamedTuple):
    """A reservoir of M row numbers, 8 bytes each.

    The images themselves stay where they are, in the data on the device; a row number names an image and a task. The
    column `state_mb` of a run counts the images that are held, since elsewhere they would have to be kept.
    """

    rows: Tensor  # (M,) int64: image + N * task, with N the number of images
    offered: Tensor  # () int64: the number of samples offered so far

    @property
    def slot_bytes(self) -> int:
        """The bytes of a slot."""
        return self.rows.element_size()

    @property
    def held(self) -> Tensor:
        """The number () of slots in use, which are the first ones."""
        return self.offered.clamp(max=len(self.rows))

    @property
    def used(self) -> Tensor:
        """A mask (M,) bool of the slots in use."""
        return torch.arange(len(self.rows), device=self.rows.device) < self.held

    def positions(self, rows: Tensor, weight: Tensor) -> Tensor:
        """Return, for each slot, the position in a batch of rows (B,) of the sample that it holds: (M,) int64, -1 for
        none. weight (B,) is 0 where the batch has no sample. A batch names a sample once."""
        return positions_of(self.rows, self.used, rows, weight)

    def slot_updates(self, weight: Tensor, noise: Tensor) -> Tensor:
        """Return, for each slot, the position in the batch of the sample that takes it: (M,) int64, -1 for none.

        weight (B,) is 0 where the batch has no sample, noise (B,) is uniform in [0, 1).
        """
        M, present = len(self.rows), weight > 0
        number = self.offered + present.cumsum(0) - 1  # n - 1 of each sample
        drawn = (noise.double() * (number + 1)).long()  # in float32 the product would be rounded
        slot = torch.where(number < M, number, drawn)
        slot = torch.where(present & (slot < M), slot, M)
        position = torch.arange(len(weight), device=weight.device)
        unchanged = torch.full((M + 1,), -1, device=weight.device)  # the last entry collects what is not stored
        return unchanged.scatter_reduce(0, slot, position, "amax")[:M]

    def updated(self, slot_updates: Tensor, rows: Tensor, weight: Tensor) -> "Memory":
        """Return the memory after a batch of rows (B,) was offered, with slot_updates (M,) of the same weight (B,)."""
        return Memory(write_slots(self.rows, rows, slot_updates), self.offered + (weight > 0).sum())

    def draw(self, noise: Tensor) -> Tensor:
        """Return slots (B,) in use, drawn uniformly and with replacement by noise (B,); slot 0 of an empty memory."""
        return (noise.double() * self.held.clamp(min=1)).long()


def positions_of(stored: Tensor, used: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
    """Return, for each of the stored rows (M,) that are `used` (M,) bool, its position in rows (B,): (M,) int64, -1 for
    none. weight (B,) is 0 where there is no row."""
    ordered, order = torch.where(weight > 0, rows, -1).sort()  # B log B + M log B comparisons, not M B
    at = torch.searchsorted(ordered, stored).clamp(max=len(rows) - 1)
    same = used & (ordered.index_select(0, at) == stored)
    return torch.where(same, order.index_select(0, at), -1)


def named(positions: Tensor, size: int) -> Tensor:
    """Return a mask (size,) bool of the positions in a batch that `positions` (M,) names; -1 names none."""
    mask = torch.zeros(size + 1, dtype=torch.bool, device=positions.device)  # the last entry collects those of -1
    return mask.scatter(0, torch.where(positions < 0, size, positions), True)[:size]


def write_slots(old: Tensor, new: Tensor, slot_updates: Tensor) -> Tensor:
    """Return the values of all slots (M, ...): old (M, ...), or those of a sample of the batch, new (B, ...).

    slot_updates (M,) is that of `Memory.slot_updates`. The function serves for whatever is stored beside the rows, such
    as logits.
    """
    unchanged = (slot_updates < 0).view(-1, *[1] * (old.dim() - 1))
    return torch.where(unchanged, old, new.index_select(0, slot_updates.clamp(min=0)))
