"""The learning rate from step to step: a schedule over each task or over the whole stream, and a warm-up."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import pi

import torch
from torch import Tensor


@dataclass(frozen=True)
class RateSchedule:
    """What part of the key `lr` is the learning rate of a step.

    With p in [0, 1) the part of the steps that lies behind:

        constant    1
        cosine      (1 + cos(pi p)) / 2          (Loshchilov & Hutter 2017, eq. 5, without restarts)
        linear      1 - p
        multistep   decay ** (number of milestones that are at most p)

    and with n steps done of w steps of warm-up, it is multiplied with min(1, (n + 1) / w) (Goyal et al. 2017).
    """

    kind: str = "constant"
    over_stream: bool = False  # whether p is the part of the stream, a task like any other; else of a pass
    milestones: Sequence[float] = ()
    decay: float = 0.1
    left_out: int = 0  # tasks at the end of the stream that are not trained (`first_tasks`)
    warmup: float = 0.0  # the part of the steps, of a pass or of the stream, in which the rate rises

    @property
    def is_constant(self) -> bool:
        """Whether the rate is the same at every step."""
        return self.kind == "constant" and not self.warmup

    def factors(self, start: int, size: int, total: int, stages_done: int, stages: int) -> Tensor:
        """Return the parts (size,) float64 for the steps of a pass from number `start` on.

        total: the steps of the pass, over all its epochs; stages_done, stages: how many of the stream lie behind, and
        how many there are.
        """
        n = torch.arange(start, start + size, dtype=torch.float64)
        if self.over_stream:
            n, total = stages_done * total + n, stages * total
        p = n / max(total, 1)
        rising = ((n + 1) / (self.warmup * total)).clamp(max=1) if self.warmup else torch.ones_like(n)
        return rising * self.shape(p)

    def shape(self, p: Tensor) -> Tensor:
        """Return the parts (n,) of the rate at p (n,), without the warm-up."""
        if self.kind == "cosine":
            return (1 + torch.cos(pi * p)) / 2
        if self.kind == "linear":
            return 1 - p
        if self.kind == "multistep":
            milestones = torch.tensor(self.milestones, dtype=p.dtype)
            return self.decay ** (p[:, None] >= milestones).sum(1).to(p.dtype)
        return torch.ones_like(p)
