"""A memory that is shared evenly among groups of samples, of each of which it holds those that come first by a key.

Groups are classes or tasks. Of a group, the samples with the smallest keys are held, and all groups have the same share
of the M slots, as far as they have samples: sample r of its group, r = 0, 1, ... by key, is held where fewer than M
samples have a smaller r (of equal r, a smaller key). What the keys are makes the policy:

    random numbers          a uniform draw from each group (bottom-k sampling, Cohen & Kaplan 2007), whatever came when
    minus the arrival       the newest samples of each group: a ring (Chaudhry et al. 2019)
    rank in herding         those whose mean is nearest to that of the group (Rebuffi et al. 2017)

As samples are only ever added, a group's share shrinks once the memory is full, and a sample that was dropped would
never be wanted again: what is held is what would be chosen from all that was offered.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from clrun.strategy.reservoir import Memory, positions_of, write_slots


def ranks(values: Tensor) -> Tensor:
    """Return, for each of the values (n,) int64, how many equal ones stand before it: (n,) int64."""
    ordered, order = values.sort(stable=True)
    rank = torch.arange(len(values), device=values.device) - torch.searchsorted(ordered, ordered)
    return torch.zeros_like(rank).scatter(0, order, rank)


class RankedMemory(NamedTuple):
    """M row numbers with their keys, 16 bytes each. As in `Memory`, the slots in use are the first ones."""

    rows: Tensor  # (M,) int64: image + N * task
    keys: Tensor  # (M,) float64
    offered: Tensor  # () int64: the number of samples offered so far
    held: Tensor  # () int64: the number of slots in use

    @property
    def slot_bytes(self) -> int:
        """The bytes of a slot."""
        return self.rows.element_size() + self.keys.element_size()

    @property
    def used(self) -> Tensor:
        """A mask (M,) bool of the slots in use."""
        return torch.arange(len(self.rows), device=self.rows.device) < self.held

    def positions(self, rows: Tensor, weight: Tensor) -> Tensor:
        """Return, for each slot, the position in a batch of its sample: as `Memory.positions`."""
        return positions_of(self.rows, self.used, rows, weight)

    def slot_updates(
        self, groups: Tensor, new_groups: Tensor, keys: Tensor, weight: Tensor, share: int | None = None
    ) -> Tensor:
        """Return, for each slot, the position in a batch of the sample that takes it: (M,) int64, -1 for none.

        groups (M,) and new_groups (B,) int64 are those of the samples that are held and of the batch, whose keys are
        keys (B,) and which are there where weight (B,) is positive. share: how many of a group are held at most; None:
        as many as an even share of the M slots has room for.
        """
        M = len(self.rows)
        present = torch.cat([self.used, weight > 0])
        by_key = torch.cat([self.keys, keys]).argsort(stable=True)
        group = torch.where(present, torch.cat([groups, new_groups]), -1)
        rank = torch.zeros_like(by_key).scatter(0, by_key, ranks(group.index_select(0, by_key)))
        if share is None:
            rank = torch.where(present, rank, len(rank))
            order = by_key.index_select(0, rank.index_select(0, by_key).argsort(stable=True))
            rank, share = torch.zeros_like(order).scatter(0, order, torch.arange(len(order), device=order.device)), M
        kept = present & (rank < share)
        return filled(~kept[:M], kept[M:])

    def updated(self, slot_updates: Tensor, rows: Tensor, keys: Tensor, weight: Tensor) -> "RankedMemory":
        """Return the memory after a batch of rows (B,) with keys (B,) was offered, with its slot_updates (M,)."""
        taken = self.used | (slot_updates >= 0)
        return RankedMemory(
            write_slots(self.rows, rows, slot_updates),
            write_slots(self.keys, keys, slot_updates),
            self.offered + (weight > 0).sum(),
            taken.sum(),
        )

    def draw(self, noise: Tensor) -> Tensor:
        """Return slots (B,) in use, drawn uniformly and with replacement by noise (B,): as `Memory.draw`."""
        return (noise.double() * self.held.clamp(min=1)).long()


def filled(free: Tensor, chosen: Tensor) -> Tensor:
    """Return, for each slot, the position of the sample that takes it (M,), -1 for none: the j-th of the `chosen` (B,)
    bool takes the j-th of the slots that are `free` (M,) bool, of which those in use come first."""
    number = free.cumsum(0) - 1
    order = (~chosen).long().argsort(stable=True)  # the positions of the chosen ones first
    sample = order.index_select(0, number.clamp(min=0, max=len(chosen) - 1))
    return torch.where(free & (number < chosen.sum()), sample, -1)


AnyMemory = Memory | RankedMemory
