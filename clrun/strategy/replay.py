"""The base class of methods that replay samples from a memory, and the statistics of what the memory holds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from clrun.data.batches import Batch, Data, Pool
from clrun.models import Network
from clrun.strategy.base import NEGLIGIBLE, HealthRows, Knobs, Strategy, Tree, later_tasks, memories
from clrun.strategy.herding import herding_keys
from clrun.strategy.ranked import AnyMemory, RankedMemory, ranks
from clrun.strategy.reservoir import Memory, named
from clrun.strategy.uniform import uniform
from clrun.strategy.walk import Walk, new_walk
from clrun.system.arithmetic import ceil_div

# Policies that choose among all samples of a task, when it ends; the others take samples while they are trained on.
AT_TASK_ENDS = ("herding", "past")

# Samples that pass through the network at once, where the features of a whole task are wanted.
CHUNK = 512


def class_subset(data: Data, pool: Pool, n: int) -> Tensor:
    """Return weights (len(pool.rows),) that keep n samples of each class, or all of a class that has fewer.

    The first n are kept, which are random ones since the pool is shuffled.
    """
    class_of_task = torch.where(pool.weight > 0, data.class_ids(pool.rows), -1)
    return pool.weight * (ranks(class_of_task) < n)


def buffer_stats(data: Data, memory: AnyMemory) -> dict[str, Tensor]:
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

    What is kept: the memory has `memory_size` slots. `memory_policy` says which samples they hold, None being
    "reservoir":

        reservoir   a uniform draw from all samples, taken as they are trained on (`clrun.strategy.reservoir`)
        balanced    the same share for each class, drawn uniformly (`clrun.strategy.ranked`, as the next three)
        ring        the same share for each class, its newest samples
        herding     the same share for each class, chosen by herding when its task ends (`clrun.strategy.herding`)
        past        the same share for each past task, drawn uniformly when the task ends

    If `memory_per_class` is given, there are that many slots for each class of each task instead, which are filled when
    the task ends, at random (van de Ven et al. 2022) or by herding.

    What is replayed: `replay_batch` samples a step, None for as many as the batch has. `replay_draw` is "with"
    replacement (None), "without", or "epochs": see `clrun.strategy.walk`.
    """

    # Whether what is recalled passes through the network by itself; else joined to the batch.
    apart: ClassVar[bool] = False

    memory_size: int = 200
    memory_per_class: int | None = None
    memory_policy: str | None = None
    replay_batch: int | None = None
    replay_draw: str | None = None

    @property
    def slots(self) -> int:
        """The number M of slots."""
        return self.memory_size if self.memory_per_class is None else self.memory_per_class * self.data.class_count

    @property
    def policy(self) -> str:
        """Which samples are held."""
        return self.memory_policy or "reservoir"

    @property
    def filled_at_ends(self) -> bool:
        """Whether samples are offered when their task ends, and not as they are trained on."""
        return self.memory_per_class is not None or self.policy in AT_TASK_ENDS

    @property
    def uses_boundaries(self) -> bool:
        return self.needs_boundaries or self.filled_at_ends

    @property
    def recalls_one(self) -> tuple[str, int] | None:
        if not self.apart:
            return None
        if self.replay_batch == 1:
            return "replay_batch", 2
        return ("memory_size", 2) if self.memory_per_class is None and self.slots == 1 else None

    def empty(self, theta: Tensor) -> AnyMemory:
        """Return an empty memory of M slots on the device of theta."""
        rows = torch.zeros(self.slots, dtype=torch.long, device=theta.device)
        nothing = torch.zeros((), dtype=torch.long, device=theta.device)
        if self.policy == "reservoir":
            return Memory(rows, nothing)
        return RankedMemory(rows, torch.zeros_like(rows, dtype=torch.float64), nothing, nothing)

    def held_of(self, classes: Sequence[Sequence[int]]) -> int:
        """Return how many samples are held after so many of each class were offered, by stage."""
        numbers = [number for stage in classes for number in stage]
        if self.memory_per_class is not None:
            return sum(min(number, self.memory_per_class) for number in numbers)
        return min(sum(numbers), self.slots)

    def unused_bytes(self, state: Tree) -> int:
        """Return the bytes of the empty slots, and of the entries that the walk has for them."""
        empty = sum(len(memory.rows) - int(memory.held) for memory in memories(state))
        nodes = tree_leaves(state, is_leaf=lambda node: isinstance(node, Walk))
        of_a_slot = sum(node.order.element_size() for node in nodes if isinstance(node, Walk))
        return super().unused_bytes(state) + empty * of_a_slot

    # ---------------------------------------------------------------- what is replayed

    def unwalked(self, theta: Tensor) -> Walk | tuple[()]:
        """Return the walk through the empty memory, on the device of theta; () where samples are drawn."""
        return new_walk(self.slots, theta) if self.replay_draw == "epochs" else ()

    def recall(
        self, memory: AnyMemory, batch: Batch, noise: Tensor, walk: Walk | tuple[()] = ()
    ) -> tuple[Batch, Tensor]:
        """Return a batch of m samples of the memory and the slots (m,) that it comes from; m is `replay_batch`, or as
        many as `batch` has.

        Noise (B,) is uniform in [0, 1), `walk` the state of the walk where there is one. While the memory is empty, the
        samples of `batch` itself are returned; they count only if m is not given. What is augmented is so by numbers of
        its own.
        """
        slots, there = self.drawn(memory, batch, noise, walk)
        own = batch.rows if self.replay_batch is None else batch.rows[:1]
        rows = torch.where(memory.offered > 0, memory.rows.index_select(0, slots), own)
        if there is None and self.data.augment is None:
            return self.data.recall(rows, batch), slots
        weight = None if there is None else there.to(batch.weight)
        return self.data.recall(rows, batch, weight, self.augmentation(batch, noise, len(rows))), slots

    def augmentation(self, batch: Batch, noise: Tensor, m: int) -> Tensor:
        """Return random numbers (6, m) for the augmentation of m samples that are recalled with this noise (B,); those
        of the batch's first sample where nothing is augmented. Those of a sample do not depend on m, which is smaller
        where a short batch is cut to its size."""
        if self.data.augment is None:
            return batch.noise[:, :1].expand(-1, m)
        return uniform(self.seeds(batch, noise), len(batch.noise) * m).view(m, -1).mT

    def drawn(
        self, memory: AnyMemory, batch: Batch, noise: Tensor, walk: Walk | tuple[()]
    ) -> tuple[Tensor, Tensor | None]:
        """Return m slots (m,), and whether each stands for a sample (m,); None where that is as in the batch."""
        if self.replay_batch is None and self.replay_draw in (None, "with"):
            return memory.draw(noise), None
        m = len(batch.rows) if self.replay_batch is None else self.replay_batch
        wanted = batch.weight > 0 if self.replay_batch is None else torch.ones_like(batch.weight[:1]).expand(m) > 0
        there = wanted & (memory.offered > 0)
        if isinstance(walk, Walk):
            return walk.next(memory, m, wanted.sum(), self.order_noise(batch, noise))[0], there
        if self.replay_draw == "without":
            order = torch.where(memory.used, self.order_noise(batch, noise), 2).argsort(stable=True)
            i = torch.arange(m, device=order.device)
            return order.index_select(0, i.clamp(max=len(order) - 1)), there & (i < memory.held)
        return memory.draw(uniform(self.seeds(batch, noise), m)), there

    def walked(self, walk: Walk | tuple[()], memory: AnyMemory, batch: Batch, noise: Tensor) -> Walk | tuple[()]:
        """Return the walk after the samples that `recall` returns for the same arguments."""
        if not isinstance(walk, Walk):
            return walk
        m = batch.weight.sum().long() if self.replay_batch is None else torch.full_like(walk.length, self.replay_batch)
        return walk.next(memory, 1, m, self.order_noise(batch, noise))[1]

    def begun_anew(self, walk: Walk | tuple[()]) -> Walk | tuple[()]:
        """Return the walk for the next task, of which nothing is left."""
        return walk.begun_anew() if isinstance(walk, Walk) else walk

    def seeds(self, batch: Batch, noise: Tensor) -> Tensor:
        """Return numbers (7,) from which all that is drawn with this noise (B,) follows: those of the first sample."""
        return torch.cat([noise[:1], batch.noise[:, 0]])

    def order_noise(self, batch: Batch, noise: Tensor) -> Tensor:
        """Return a random number (M,) for each slot, whose order is that in which the slots are taken."""
        return uniform(1 - self.seeds(batch, noise), self.slots)

    def recalling(self, memory: AnyMemory, recalled: Batch, joined_to: Batch | None = None) -> Self:
        """Return the strategy for passing a batch from `recall` through the network, alone or after another batch.

        While the memory is empty, the recalled samples stand for none, so they must not count for batch norm and its
        running statistics. Without batch norm and dropout it is the strategy itself.
        """
        if not (self.net.network.has_batch_norm or self.net.network.has_dropout):
            return self
        weight = torch.where(memory.offered > 0, recalled.weight, 0)
        return self.weighing(weight if joined_to is None else torch.cat([joined_to.weight, weight]))

    # ---------------------------------------------------------------- what is kept

    def offer(self, memory: AnyMemory, samples: Batch | Pool, keys: Tensor | None = None) -> AnyMemory:
        """Return the memory after these samples were offered to it, those left out that are not `new`.

        keys (B,): as `slot_updates` takes them.
        """
        weight = self.new(samples, memory.positions(samples.rows, samples.weight))
        return self.stored(memory, self.slot_updates(memory, samples, weight, keys), samples, weight, keys)

    def new(self, samples: Batch | Pool, positions: Tensor) -> Tensor:
        """Return the weights (B,) of the samples that the memory has not been offered before; 0 for all others.

        Those are the samples of a batch of a task's first epoch, and of a pool, that no slot holds; positions (M,) are
        those of `Memory.positions`.
        """
        weight = samples.weight * ~named(positions, len(samples.weight))
        return weight * (samples.epoch == 0) if isinstance(samples, Batch) else weight

    def slot_updates(
        self, memory: AnyMemory, samples: Batch | Pool, weight: Tensor, keys: Tensor | None = None
    ) -> Tensor:
        """Return, for each slot, the position of the sample that takes it: (M,) int64, -1 for none.

        Samples are there where weight (B,) is positive; keys (B,) are theirs, None for those of the policy.
        """
        if isinstance(memory, Memory):
            return memory.slot_updates(weight, samples.noise[0])
        groups, new_groups = self.groups(memory.rows), self.groups(samples.rows)
        keys = self.keys(memory, samples, weight) if keys is None else keys
        return memory.slot_updates(groups, new_groups, keys, weight, self.memory_per_class)

    def stored(
        self,
        memory: AnyMemory,
        slot_updates: Tensor,
        samples: Batch | Pool,
        weight: Tensor,
        keys: Tensor | None = None,
    ) -> AnyMemory:
        """Return the memory after its slot_updates (M,), by samples with this weight (B,) and these keys (B,)."""
        if isinstance(memory, Memory):
            return memory.updated(slot_updates, samples.rows, weight)
        keys = self.keys(memory, samples, weight) if keys is None else keys
        return memory.updated(slot_updates, samples.rows, keys, weight)

    def groups(self, rows: Tensor) -> Tensor:
        """Return the number (n,) of the group of each of the rows (n,), of which each gets the same share."""
        return rows // len(self.data.images) if self.policy == "past" else self.data.class_ids(rows)

    def keys(self, memory: RankedMemory, samples: Batch | Pool, weight: Tensor) -> Tensor:
        """Return the key (B,) of each sample: of a group, those with the smallest are held."""
        if self.policy == "ring":
            return -(memory.offered + (weight > 0).cumsum(0)).double()
        return samples.noise[0].double()

    def offer_task(self, memory: AnyMemory, pool: Pool, theta: Tensor) -> AnyMemory:
        """Return the memory after a task: each of its samples is offered once, or `memory_per_class` of each class."""
        if self.policy == "herding":
            return self.offer(memory, pool, self.herded(pool, theta))
        if self.memory_per_class is None:
            return self.offer(memory, pool)
        return self.offer(memory, pool._replace(weight=class_subset(self.data, pool, self.memory_per_class)))

    def herded(self, pool: Pool, theta: Tensor) -> Tensor:
        """Return the key (n,) of each sample of a task by herding, with the features at theta (P,).

        Of a class, as many are chosen by herding as there is room for where tasks have equally many classes. Where the
        first tasks have fewer, there is more room for a while, and the nearest to the mean take what is left of it.
        """
        batches = list(self.data.chunks(pool, self.data.share(CHUNK)))
        features = torch.cat([self.net.features(theta, batch.x) for batch in batches])
        y = torch.cat([batch.y for batch in batches])
        share = self.memory_per_class or ceil_div(self.slots * self.data.tasks, self.data.class_count)
        return herding_keys(features, y, pool.weight, self.data.outputs, min(share, len(y)))

    @classmethod
    def incompatibility(cls, network: Network, optimizer: str, knobs: Knobs) -> str | None:
        if knobs.get("memory_per_class") is not None and knobs["memory_size"] != Replay.memory_size:
            return "memory_size and memory_per_class are two ways to say how much is kept; type one of them."
        if knobs.get("memory_per_class") is not None and knobs.get("memory_policy") in ("balanced", "ring", "past"):
            return (
                f"memory_per_class leaves memory_policy={knobs['memory_policy']} nothing to choose; type memory_size "
                "with the policy, or leave the policy out, or type herding, which says which samples of a class."
            )
        return None

    @classmethod
    def warnings(cls, health: HealthRows, knobs: Knobs) -> list[str]:
        later = later_tasks(health)
        if not later:
            return []
        if all(row["memory_fill"] == 0 for row in health):
            return ["the memory stayed empty, so nothing was replayed: this is finetuning"]
        if all(row["replay_loss"] <= NEGLIGIBLE * row["loss"] for row in later):
            return ["what was replayed never had a loss above 1e-12 of the whole: this is finetuning"]
        asked, slots = knobs.get("replay_batch"), knobs["memory_size"]
        distinct = knobs.get("replay_draw") == "without" and knobs.get("memory_per_class") is None
        if asked is not None and distinct and asked > slots:
            return [
                f"replay_batch={asked} with replay_draw=without: a memory of memory_size={slots} has no more than "
                f"{slots} different samples to replay in a step; type no more for replay_batch"
            ]
        return []
