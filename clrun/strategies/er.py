"""Experience replay (Chaudhry et al. 2019): each batch B is joined by samples R drawn from a memory.

    L(theta) = w CE(B; theta) + (1 - w) CE(R; theta)

w = 1/2 is the mean over the two batches together where they are of one size, as in the paper. With weighting=samples,
it is that mean for any `replay_batch`, w = |B| / (|B| + |R|). With weighting=share, w = 1/t in the t-th task, as in van
de Ven et al. 2022: with a memory_per_class, which holds the past alone, each past task of as many classes weighs as
much as the present one. While the memory is empty, w = 1.

The memory is read before the batch is offered to it. R is drawn uniformly from the memory in every scenario (van de Ven
et al. split it evenly over past tasks in task-incremental runs). A reservoir is offered a sample as it is trained on
for the first time, so it holds no sample twice.

The naive rehearsal of Hsu et al. 2018 is memory_policy=past replay_draw=epochs weighting=samples: the memory is shared
evenly among past tasks, and batches hold as much of it as of the present task. (There they are drawn from both
together, so that the number of either varies around the half.)
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from clrun.strategy import AnyMemory, Aux, Batch, Pool, Replay, Walk, buffer_stats, losses


@dataclass(frozen=True)
class ER(Replay):
    """Experience replay.

    Its state is the memory of M row numbers (8 M bytes and the images; 16 M with a policy) and, where the memory is
    walked through in epochs, the walk (8 M bytes). Both batches pass through the network as one, also for batch norm.
    `weighting` is "equal", "samples" or "share".
    """

    needs_boundaries: ClassVar[bool] = False
    weighting: str = "equal"

    class State(NamedTuple):
        memory: AnyMemory
        walk: Walk | tuple[()] = ()

    @property
    def uses_boundaries(self) -> bool:
        return super().uses_boundaries or self.weighting == "share"  # which counts the tasks

    def init(self, theta: Tensor) -> State:
        return self.State(self.empty(theta), self.unwalked(theta))

    def loss(self, theta: Tensor, state: State, hp: Any, batch: Batch) -> tuple[Tensor, Aux]:
        """Return w CE(B; theta) + (1 - w) CE(R; theta)."""
        old, _ = self.recall(state.memory, batch, batch.noise[1], state.walk)
        both = self.recalling(state.memory, old, joined_to=batch)
        z = both.logits(theta, state, hp, torch.cat([batch.x, old.x]), torch.cat([batch.t, old.t]))
        each = losses(z, torch.cat([batch.y, old.y]), torch.cat([batch.active, old.active]), batch.smoothing)
        sizes = [len(batch.y), len(old.y)]
        fit, replay = (part.mean(values) for part, values in zip((batch, old), each.split(sizes), strict=True))
        w = self.weight(state.memory, batch, old, fit)
        return w * fit + (1 - w) * replay, {"replay_loss": (state.memory.offered > 0) * replay}

    def weight(self, memory: AnyMemory, batch: Batch, old: Batch, like: Tensor) -> Tensor:
        """Return w (), of the type and on the device of `like`."""
        if self.weighting == "samples":
            w = batch.weight.sum() / (batch.weight.sum() + old.weight.sum())
        else:
            w = torch.ones_like(like) / (batch.stage + 1 if self.weighting == "share" else 2)
        return torch.where(memory.offered > 0, w, 1)

    def after_step(self, state: State, hp: Any, batch: Batch, aux: Aux) -> State:
        walk = self.walked(state.walk, state.memory, batch, batch.noise[1])
        return self.State(state.memory if self.filled_at_ends else self.offer(state.memory, batch), walk)

    def after_phase(self, phase: str, theta: Tensor, state: State, hp: Any, pool: Pool) -> tuple[Tensor, State]:
        memory = self.offer_task(state.memory, pool, theta) if self.filled_at_ends else state.memory
        return theta, self.State(memory, self.begun_anew(state.walk))

    def health(self, state: State, hp: Any) -> dict[str, Tensor]:
        return buffer_stats(self.data, state.memory)
