"""The order in which a run sees its samples: epoch by epoch, or each of them once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from clrun.data.seeding import DRAWS, generator
from clrun.system.arithmetic import ceil_div


class Budget(NamedTuple):
    """A task's training: how long it lasts, in epochs or in iterations (the other is None), and in what batches."""

    epochs: int | None
    iterations: int | None
    batch_size: int
    drop_last: bool
    passes: int | None = None  # steps on each batch, where each sample is seen once; None: rounds over the samples


class SampledSteps(NamedTuple):
    """The samples of K successive steps, B a step; samples that are missing have row 0 and weight 0."""

    rows: Tensor  # (K, B) int64: image + N * task
    weight: Tensor  # (K, B) 1, or 0 where there is no sample
    progress: Tensor  # (K,) in [0, 1): the part of the epoch that lies behind
    epoch: Tensor  # (K,) int64: the epochs that lie behind
    noise: Tensor  # (K, 6, B) uniform in [0, 1)


@dataclass
class EpochSampler:
    """A sampler of one run's training samples, for one phase of one stage.

    An epoch is a function of the seed, the purpose and the epoch's number alone, so a resumed run can start in the
    middle. `pools` holds the rows (n,) of each task that is trained on. With `balanced`, a batch has the same number
    of samples from every pool, and small pools are repeated; without it, all pools are shuffled together.
    """

    pools: list[Tensor]
    budget: Budget
    balanced: bool
    seed: int
    purpose: str
    cached: tuple[int, SampledSteps] | None = None  # the epoch drawn last, and its number

    @property
    def sources(self) -> list[Tensor]:
        """The tensors of rows that are shuffled each by itself."""
        return self.pools if self.balanced else [torch.cat(self.pools)]

    @property
    def samples_per_source(self) -> int:
        """The samples that a batch draws from each source."""
        return ceil_div(self.budget.batch_size, len(self.sources))

    @property
    def batch_size(self) -> int:
        """B: the batch size of the budget, rounded up to a multiple of the number of sources."""
        return self.samples_per_source * len(self.sources)

    @property
    def smallest_batch(self) -> int:
        """The number of samples in the smallest batch of an epoch."""
        n = sum(len(pool) for pool in self.pools)
        drops_none = not self.balanced and not self.budget.drop_last
        last = (n % self.batch_size or self.batch_size) if drops_none else self.batch_size
        return min(last, n)

    @property
    def leaves_one(self) -> bool:
        """Whether one of the batches that are taken has one sample."""
        return self.smallest_batch == 1 and (self.batch_size == 1 or self.steps >= self.epoch_steps)

    @property
    def epoch_steps(self) -> int:
        """The number of steps in an epoch."""
        n = sum(len(pool) for pool in self.pools)
        return max(1, n // self.batch_size) if self.budget.drop_last else ceil_div(n, self.batch_size)

    @property
    def steps(self) -> int:
        """The number of steps in all epochs, 0 without samples. A budget in iterations counts once for each pool."""
        if not any(len(pool) for pool in self.pools):
            return 0
        if self.budget.epochs is not None:
            return self.budget.epochs * self.epoch_steps
        assert self.budget.iterations is not None  # checked with the settings: one of the two is given
        return self.budget.iterations * len(self.pools)

    def epoch(self, number: int) -> SampledSteps:
        """Return all steps of an epoch."""
        if self.cached is not None and self.cached[0] == number:
            return self.cached[1]
        random = generator(self.seed, f"{self.purpose} epoch {number}")
        steps, width = self.epoch_steps, self.samples_per_source
        shuffled = [self.shuffled(source, steps * width, random) for source in self.sources]
        rows = torch.cat([rows.view(steps, width) for rows, _ in shuffled], 1)
        weight = torch.cat([weight.view(steps, width) for _, weight in shuffled], 1)
        noise = torch.rand(steps, DRAWS, self.batch_size, generator=random)
        progress, numbers = torch.arange(steps) / steps, torch.full((steps,), number)
        self.cached = number, SampledSteps(rows, weight, progress, numbers, noise)
        return self.cached[1]

    def shuffled(self, source: Tensor, n: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return n rows and their weights: the source in random order, repeated if balanced, else filled up."""
        times = ceil_div(n, len(source)) if self.balanced else 1
        order = torch.cat([source[torch.randperm(len(source), generator=random)] for _ in range(times)])[:n]
        missing = n - len(order)
        weight = torch.cat([torch.ones(len(order)), torch.zeros(missing)])
        return torch.cat([order, order.new_zeros(missing)]), weight

    def sample(self, start: int, count: int) -> SampledSteps:
        """Return `count` steps from step `start` on; those past the last epoch have no samples."""
        if self.steps == 0:  # another run of the stack has samples in this pass
            return self.empty_steps(count)
        parts = []
        end = min(start + count, self.steps)
        for number in range(start // self.epoch_steps, ceil_div(end, self.epoch_steps)):
            first = number * self.epoch_steps
            span = slice(max(start - first, 0), end - first)
            parts.append(SampledSteps(*(part[span] for part in self.epoch(number))))
        parts.append(self.empty_steps(max(0, start + count - max(self.steps, start))))
        return SampledSteps(*(torch.cat(pieces) for pieces in zip(*parts, strict=True)))

    def empty_steps(self, count: int) -> SampledSteps:
        """Return steps without samples."""
        rows = torch.zeros(count, self.batch_size, dtype=torch.long)
        weight = torch.zeros(count, self.batch_size)
        noise = torch.zeros(count, DRAWS, self.batch_size)
        return SampledSteps(rows, weight, torch.zeros(count), torch.zeros(count, dtype=torch.long), noise)


@dataclass
class OnlineSampler(EpochSampler):
    """A sampler that shows each sample once: `budget.passes` steps on a batch, and then the next batch.

    The order of the samples in `own`, those that come in the stage, follows from the seed and the purpose alone, or is
    the order that they are given in, if `in_order`. Where `pools` holds others too, those of a memory, they are mixed
    in between, at random. `fresh` (n,) are the rows that come for the first time.
    """

    own: Sequence[Tensor] = ()
    in_order: bool = False
    fresh: Tensor | None = None

    @property
    def passes(self) -> int:
        """The number of steps on each batch."""
        return self.budget.passes or 1

    @property
    def epoch_steps(self) -> int:
        """The number of steps in all."""
        return super().epoch_steps * self.passes

    def epoch(self, number: int) -> SampledSteps:
        """Return all steps; there is one epoch, and what steps are told as their epoch is the pass over the batch."""
        if self.cached is None:
            random = generator(self.seed, f"{self.purpose} once")
            steps, batches = self.epoch_steps, self.epoch_steps // self.passes
            order = self.order()[: batches * self.batch_size]
            missing = batches * self.batch_size - len(order)
            rows = torch.cat([order, order.new_zeros(missing)]).view(batches, -1)
            weight = torch.cat([torch.ones(len(order)), torch.zeros(missing)]).view(batches, -1)
            self.cached = (
                0,
                SampledSteps(
                    rows.repeat_interleave(self.passes, 0),
                    weight.repeat_interleave(self.passes, 0),
                    torch.arange(steps) / steps,
                    torch.arange(self.passes).repeat(batches),
                    torch.rand(steps, DRAWS, self.batch_size, generator=random),
                ),
            )
        return self.cached[1]

    def new(self, start: int, count: int) -> Tensor:
        """Return which of the samples of `count` steps from step `start` on are new: (count, B) bool. They are those of
        `fresh`, at the first step on their batch."""
        sampled = self.sample(start, count)
        first = (sampled.weight > 0) & (sampled.epoch == 0)[:, None]
        return first if self.fresh is None else first & torch.isin(sampled.rows, self.fresh)

    def order(self) -> Tensor:
        """Return all rows (n,) of the pools in the order in which they are seen: by a random key that each has."""
        rows, own = torch.cat(self.pools), torch.cat(list(self.own))
        keys = torch.empty(len(rows), dtype=torch.float64)
        known, place = own.sort()
        at = torch.searchsorted(known, rows).clamp(max=max(0, len(known) - 1))
        is_own = known[at] == rows if len(known) else torch.zeros_like(rows, dtype=torch.bool)
        drawn = random_keys(len(own), self.seed, f"{self.purpose} stream")
        keys[is_own] = (drawn.sort().values if self.in_order else drawn)[place[at[is_own]]]
        keys[~is_own] = random_keys(int((~is_own).sum()), self.seed, f"{self.purpose} memory")
        return rows[keys.argsort()]


def random_keys(n: int, seed: int, purpose: str) -> Tensor:
    """Return n different numbers (n,) float64 in [0, 1), by which things are put into a random order."""
    return torch.rand(n, dtype=torch.float64, generator=generator(seed, purpose))
