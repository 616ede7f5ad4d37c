"""The order in which a run sees its samples: epochs that are functions of the seed and their number alone."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from clrun.data.seeding import DRAWS, generator


class Budget(NamedTuple):
    """What a task may cost. One of epochs and iterations is None."""

    epochs: int | None
    iterations: int | None
    batch_size: int
    drop_last: bool


@dataclass
class EpochSampler:
    """One run's samples through one pass over its task, epoch after epoch. An epoch is a function of the seed and its
    number alone, so a run can start in the middle.

    pools: rows (n,) of each visible task. even: a batch draws the same number from each of them.
    """

    pools: list[Tensor]
    budget: Budget
    even: bool
    seed: int
    purpose: str
    kept: tuple[int, tuple[Tensor, Tensor, Tensor]] | None = None  # the epoch drawn last

    @property
    def share(self) -> int:
        """Samples a batch draws from each pile."""
        return -(-self.budget.batch_size // len(self.piles))

    @property
    def piles(self) -> list[Tensor]:
        return self.pools if self.even else [torch.cat(self.pools)]

    @property
    def width(self) -> int:
        """B."""
        return self.share * len(self.piles)

    @property
    def smallest(self) -> int:
        """Samples of the smallest batch."""
        n = sum(len(pool) for pool in self.pools)
        last = self.width if self.even or self.budget.drop_last else n % self.width or self.width
        return min(last, n)

    @property
    def epoch_steps(self) -> int:
        n = sum(len(pool) for pool in self.pools)
        return max(1, n // self.width) if self.budget.drop_last else -(-n // self.width)

    @property
    def steps(self) -> int:
        """A budget in iterations is one for each visible task, as one in epochs is."""
        if self.budget.epochs is not None:
            return self.budget.epochs * self.epoch_steps
        return self.budget.iterations * len(self.pools)

    def epoch(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """rows (S, B), weight (S, B), noise (S, 6, B)."""
        if self.kept is not None and self.kept[0] == number:
            return self.kept[1]
        draw = generator(self.seed, f"{self.purpose} epoch {number}")
        S = self.epoch_steps
        dealt = [self.shuffled(pile, S * self.share, draw) for pile in self.piles]
        rows, weight = (torch.cat([d[i].view(S, self.share) for d in dealt], 1) for i in (0, 1))
        self.kept = number, (rows, weight, torch.rand(S, DRAWS, self.width, generator=draw))
        return self.kept[1]

    def shuffled(self, pile: Tensor, n: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """(n,) rows and weights: the pile in random order, again and again if drawn evenly, else once, then nothing."""
        times = -(-n // len(pile)) if self.even else 1
        order = torch.cat([pile[torch.randperm(len(pile), generator=draw)] for _ in range(times)])[:n]
        missing = n - len(order)
        weight = torch.cat([torch.ones(len(order)), torch.zeros(missing)])
        return torch.cat([order, order.new_zeros(missing)]), weight

    def take(self, start: int, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """n steps from `start`: rows (n, B), weight (n, B), progress (n,), noise (n, 6, B); empty past the end."""
        parts = []
        for number in range(start // self.epoch_steps, -(-min(start + n, self.steps) // self.epoch_steps)):
            first = number * self.epoch_steps
            span = slice(max(start - first, 0), min(start + n, self.steps) - first)
            rows, weight, noise = self.epoch(number)
            progress = torch.arange(self.epoch_steps)[span] / self.epoch_steps
            parts.append((rows[span], weight[span], progress, noise[span]))
        blank = max(0, start + n - max(self.steps, start))
        shapes = (torch.zeros(blank, self.width, dtype=torch.long), torch.zeros(blank, self.width))
        parts.append((*shapes, torch.zeros(blank), torch.zeros(blank, DRAWS, self.width)))
        return tuple(torch.cat(pieces) for pieces in zip(*parts, strict=True))
