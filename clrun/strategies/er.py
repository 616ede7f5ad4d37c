"""Experience replay (Chaudhry et al. 2019): each batch B is joined by as many samples R drawn from a memory.

    L(theta) = w CE(B; theta) + (1 - w) CE(R; theta)

w = 1/2 is the mean over the two batches together, as in the paper. With weighting=share, w = 1/t in the t-th task, as
in van de Ven et al. 2022: with a memory_per_class, which holds the past alone, each past task of as many classes weighs
as much as the present one. While the memory is empty, w = 1.

The memory is read before the batch is offered to it. R is drawn uniformly from the memory in every scenario (van de Ven
et al. split it evenly over past tasks in task-incremental runs). A reservoir is offered a sample as it is trained on
for the first time, so it holds no sample twice.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clrun.strategy import Aux, Batch, Memory, Pool, Replay, buffer_stats, losses


@dataclass(frozen=True)
class ER(Replay):
    """Experience replay.

    Its state is the memory of M row numbers (8 M bytes and the images). Both batches pass through the network as one,
    also for batch norm. `weighting` is "equal" or "share".
    """

    weighting: str = "equal"

    class State(NamedTuple):
        memory: Memory

    def init(self, theta: Tensor) -> State:
        return self.State(self.empty(theta))

    def loss(self, theta: Tensor, state: State, hp: Any, batch: Batch) -> tuple[Tensor, Aux]:
        """Return w CE(B; theta) + (1 - w) CE(R; theta)."""
        old, _ = self.recall(state.memory, batch, batch.noise[1])
        both = self.recalling(state.memory, old, joined_to=batch)
        z = both.logits(theta, state, hp, torch.cat([batch.x, old.x]), torch.cat([batch.t, old.t]))
        each = losses(z, torch.cat([batch.y, old.y]), torch.cat([batch.active, old.active]))
        fit, replay = (part.mean(values) for part, values in zip((batch, old), each.chunk(2), strict=True))
        w = self.weight(state.memory, batch, fit)
        return w * fit + (1 - w) * replay, {"replay_loss": (state.memory.offered > 0) * replay}

    def weight(self, memory: Memory, batch: Batch, like: Tensor) -> Tensor:
        """Return w (), of the type and on the device of `like`."""
        parts = batch.stage + 1 if self.weighting == "share" else 2
        return torch.where(memory.offered > 0, torch.ones_like(like) / parts, 1)

    def after_step(self, state: State, hp: Any, batch: Batch, aux: Aux) -> State:
        return state if self.memory_per_class is not None else self.State(self.offer(state.memory, batch))

    def after_phase(self, phase: str, theta: Tensor, state: State, hp: Any, pool: Pool) -> tuple[Tensor, State]:
        return theta, state if self.memory_per_class is None else self.State(self.offer_task(state.memory, pool))

    def health(self, state: State, hp: Any) -> dict[str, Tensor]:
        return buffer_stats(self.data, state.memory)
