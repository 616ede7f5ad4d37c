"""A memory of past samples, as row numbers: the data never leave the device, so 200 samples cost 1.6 kB here. In a
run's `state_mb` their pictures count, since elsewhere they would have to be kept.

Reservoir sampling (Vitter 1985, algorithm R): the n-th sample offered (n = 1, 2, ...) takes slot n if n <= M; else a
slot j is drawn from 1 ... n, and the sample takes it if j <= M. So of N samples offered each is kept with probability
M / N, whatever the order. Within a batch this is what one sample after the other would do: on a slot claimed twice the
later claim wins.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clrun.data.stream import Batch, Data, Pool
from clrun.strategy.base import Strategy


class Memory(NamedTuple):
    """M slots, of which the first `held` are in use."""

    rows: Tensor  # (M,) int64: image + N * task
    offered: Tensor  # () int64: samples offered so far

    @property
    def held(self) -> Tensor:
        return self.offered.clamp(max=len(self.rows))

    @property
    def used(self) -> Tensor:
        """(M,) bool."""
        return torch.arange(len(self.rows), device=self.rows.device) < self.held

    def slot_updates(self, weight: Tensor, noise: Tensor) -> Tensor:
        """weight, noise (B,) -> (M,): the place in the batch of each slot's new tenant, -1 where the old one stays."""
        M, here = len(self.rows), weight > 0
        before = self.offered + here.cumsum(0) - 1
        drawn = (noise.double() * (before + 1)).long()  # in float32 the product would be rounded
        slot = torch.where(before < M, before, drawn)
        slot = torch.where(here & (slot < M), slot, M)
        place = torch.arange(len(weight), device=weight.device)
        nobody = torch.full((M + 1,), -1, device=weight.device)
        return nobody.scatter_reduce(0, slot, place, "amax")[:M]

    def after(self, slot_updates: Tensor, rows: Tensor, weight: Tensor) -> "Memory":
        """The memory once rows (B,) have been offered."""
        return Memory(write_slots(self.rows, rows, slot_updates), self.offered + (weight > 0).sum())

    def draw(self, noise: Tensor) -> Tensor:
        """noise (B,) -> (B,) slots in use, uniformly and with replacement; slot 0 while there is none."""
        return (noise.double() * self.held.clamp(min=1)).long()


def write_slots(old: Tensor, new: Tensor, slot_updates: Tensor) -> Tensor:
    """old (M, ...), new (B, ...) -> (M, ...): the new ones in the slots they have taken."""
    stay = (slot_updates < 0).view(-1, *[1] * (old.dim() - 1))
    return torch.where(stay, old, new.index_select(0, slot_updates.clamp(min=0)))


def ranks(kind: Tensor) -> Tensor:
    """(n,) int64 -> (n,): how many equal numbers stand before each."""
    ordered, order = kind.sort(stable=True)
    rank = torch.arange(len(kind), device=kind.device) - torch.searchsorted(ordered, ordered)
    return torch.zeros_like(rank).scatter(0, order, rank)


def of_each_class(data: Data, pool: Pool, n: int) -> Tensor:
    """(len(pool.rows),) weights: n samples of each class, at random since the pool is shuffled; all if it has fewer."""
    kind = torch.where(pool.weight > 0, data.class_ids(pool.rows), -1)
    return pool.weight * (ranks(kind) < n)


def buffer_stats(data: Data, memory: Memory) -> dict[str, Tensor]:
    """How full the memory is, how many classes (of each task) it holds, and how evenly."""
    rank = ranks(torch.where(memory.used, data.class_ids(memory.rows), -1))
    taller = torch.zeros_like(rank).scatter_add(0, rank, memory.used.long())  # [r]: classes of more than r samples
    classes = taller[0]
    smallest, largest = (taller == classes).sum(), (taller > 0).sum()
    return {
        "memory_fill": memory.held / len(memory.rows),
        "memory_classes": classes,
        "memory_balance": torch.where(classes > 0, smallest / largest.clamp(min=1), 0),  # smallest over largest class
    }


@dataclass(frozen=True)
class Replay(Strategy):
    """What the methods with a memory share. `memory_size` slots filled as a reservoir or, if `memory_per_class` is
    given, so many slots for each class of each task, filled at the task's end at random (van de Ven et al. 2022)."""

    memory_size: int = 200
    memory_per_class: int | None = None

    @property
    def slots(self) -> int:
        return self.memory_size if self.memory_per_class is None else self.memory_per_class * self.data.class_count

    def empty(self, theta: Tensor) -> Memory:
        rows = torch.zeros(self.slots, dtype=torch.long, device=theta.device)
        return Memory(rows, torch.zeros((), dtype=torch.long, device=theta.device))

    def recall(self, memory: Memory, batch: Batch, noise: Tensor) -> tuple[Batch, Tensor]:
        """A batch as large as this one from the memory, and its slots (B,); this one again while there is none."""
        slots = memory.draw(noise)
        rows = torch.where(memory.offered > 0, memory.rows.index_select(0, slots), batch.rows)
        return self.data.recall(rows, batch), slots

    def offer(self, memory: Memory, seen: Batch | Pool) -> Memory:
        """The reservoir after these samples."""
        return memory.after(memory.slot_updates(seen.weight, seen.noise[0]), seen.rows, seen.weight)

    def offer_task(self, memory: Memory, pool: Pool) -> Memory:
        """The memory after a whole task, each of its samples offered once, or `memory_per_class` of each class."""
        if self.memory_per_class is None:
            return self.offer(memory, pool)
        return self.offer(memory, pool._replace(weight=of_each_class(self.data, pool, self.memory_per_class)))

    @classmethod
    def incompatibility(cls, network, optimizer: str, knobs: Mapping[str, Any]) -> str | None:
        if knobs.get("memory_per_class") is not None and knobs["memory_size"] != Replay.memory_size:
            return "memory_size and memory_per_class are two ways to say how much is kept; type one of them."
        return None

    @classmethod
    def warnings(cls, health: Sequence[Mapping[str, float]], knobs: Mapping[str, Any]) -> list[str]:
        if len(health) < 2:
            return []
        if all(row["memory_fill"] == 0 for row in health):
            return ["the memory stayed empty, so nothing was replayed: this is finetuning"]
        if all(row["replay_loss"] <= 1e-12 * row["loss"] for row in health[1:]):
            return ["what was replayed never had a loss above 1e-12 of the whole: this is finetuning"]
        if health[-1]["memory_classes"] == 1 and knobs["memory_size"] > 1:
            return ["after all tasks the memory held samples of one class alone, so the others were not replayed"]
        return []
