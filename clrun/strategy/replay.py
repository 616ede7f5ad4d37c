"""The base class of methods that replay samples from a memory, and the statistics of what the memory holds."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from clrun.data.batches import Batch, Data, Pool
from clrun.models import Network
from clrun.strategy.base import NEGLIGIBLE, HealthRows, Knobs, Strategy
from clrun.strategy.reservoir import Memory, named


def ranks(values: Tensor) -> Tensor:
    """Return, for each of the values (n,) int64, how many equal ones stand before it: (n,) int64."""
    ordered, order = values.sort(stable=True)
    rank = torch.arange(len(values), device=values.device) - torch.searchsorted(ordered, ordered)
    return torch.zeros_like(rank).scatter(0, order, rank)


def class_subset(data: Data, pool: Pool, n: int) -> Tensor:
    """Return weights (len(pool.rows),) that keep n samples of each class, or all of a class that has fewer.

    The first n are kept, which are random ones since the pool is shuffled.
    """
    class_of_task = torch.where(pool.weight > 0, data.class_ids(pool.rows), -1)
    return pool.weight * (ranks(class_of_task) < n)


def buffer_stats(data: Data, memory: Memory) -> dict[str, Tensor]:
    """Return the columns of health.csv on a memory, each ().

    `memory_fill` is the share of slots in use, `memory_classes` the number of classes (of each task) that are stored,
    `memory_balance` the number of samples of the smallest class over that of the largest.
    """
    rank = ranks(torch.where(memory.used, data.class_ids(memory.rows), -1))
    classes_above = torch.zeros_like(rank).scatter_add(0, rank, memory.used.long())  # [r]: of more than r samples
    classes = classes_above[0]
    smallest, largest = (classes_above == classes).sum(), (classes_above > 0).sum()
    return {
        "memory_fill": memory.held / len(memory.rows),
        "memory_classes": classes,
        "memory_balance": torch.where(classes > 0, smallest / largest.clamp(min=1), 0),
    }


@dataclass(frozen=True)
class Replay(Strategy):
    """A base class for methods with a memory of past samples.

    The memory has `memory_size` slots and is a reservoir (`clrun.strategy.reservoir`). If `memory_per_class` is given,
    it has that many slots for each class of each task instead, which are filled at random at the end of the task (van
    de Ven et al. 2022).
    """

    memory_size: int = 200
    memory_per_class: int | None = None

    @property
    def slots(self) -> int:
        """The number M of slots."""
        return self.memory_size if self.memory_per_class is None else self.memory_per_class * self.data.class_count

    def empty(self, theta: Tensor) -> Memory:
        """Return an empty memory of M slots on the device of theta."""
        rows = torch.zeros(self.slots, dtype=torch.long, device=theta.device)
        return Memory(rows, torch.zeros((), dtype=torch.long, device=theta.device))

    def recall(self, memory: Memory, batch: Batch, noise: Tensor) -> tuple[Batch, Tensor]:
        """Return a batch drawn from the memory, as large as `batch`, and the slots (B,) that it comes from.

        Noise (B,) is uniform in [0, 1). While the memory is empty, the samples of `batch` itself are returned.
        """
        slots = memory.draw(noise)
        rows = torch.where(memory.offered > 0, memory.rows.index_select(0, slots), batch.rows)
        return self.data.recall(rows, batch), slots

    def recalling(self, memory: Memory, recalled: Batch, joined_to: Batch | None = None) -> Self:
        """Return the strategy for passing a batch from `recall` through the network, alone or after another batch.

        While the memory is empty, the recalled samples stand for none, so they must not count for batch norm and its
        running statistics. Without batch norm it is the strategy itself.
        """
        if not self.net.network.has_batch_norm:
            return self
        weight = torch.where(memory.offered > 0, recalled.weight, 0)
        return self.weighing(weight if joined_to is None else torch.cat([joined_to.weight, weight]))

    def offer(self, memory: Memory, samples: Batch | Pool) -> Memory:
        """Return the memory after these samples were offered to it, those left out that are not `new`."""
        weight = self.new(samples, memory.positions(samples.rows, samples.weight))
        return memory.updated(memory.slot_updates(weight, samples.noise[0]), samples.rows, weight)

    def new(self, samples: Batch | Pool, positions: Tensor) -> Tensor:
        """Return the weights (B,) of the samples that the memory has not been offered before; 0 for all others.

        Those are the samples of a batch of a task's first epoch, and of a pool, that no slot holds; positions (M,) are
        those of `Memory.positions`.
        """
        weight = samples.weight * ~named(positions, len(samples.weight))
        return weight * (samples.epoch == 0) if isinstance(samples, Batch) else weight

    def offer_task(self, memory: Memory, pool: Pool) -> Memory:
        """Return the memory after a task: each of its samples is offered once, or `memory_per_class` of each class."""
        if self.memory_per_class is None:
            return self.offer(memory, pool)
        return self.offer(memory, pool._replace(weight=class_subset(self.data, pool, self.memory_per_class)))

    @classmethod
    def incompatibility(cls, network: Network, optimizer: str, knobs: Knobs) -> str | None:
        if knobs.get("memory_per_class") is not None and knobs["memory_size"] != Replay.memory_size:
            return "memory_size and memory_per_class are two ways to say how much is kept; type one of them."
        return None

    @classmethod
    def warnings(cls, health: HealthRows, knobs: Knobs) -> list[str]:
        if len(health) < 2:
            return []
        if all(row["memory_fill"] == 0 for row in health):
            return ["the memory stayed empty, so nothing was replayed: this is finetuning"]
        if all(row["replay_loss"] <= NEGLIGIBLE * row["loss"] for row in health[1:]):
            return ["what was replayed never had a loss above 1e-12 of the whole: this is finetuning"]
        if health[-1]["memory_classes"] == 1 and knobs["memory_size"] > 1:
            return ["after all tasks the memory held samples of one class alone, so the others were not replayed"]
        return []
