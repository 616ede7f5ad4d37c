"""ER with asymmetric cross entropy (Caccia et al. 2022, eq. 4): a new class does not push the old ones' outputs down.

    L(theta) = CE(B; theta, C_B) + CE(R; theta, C)

The softmax of the batch B is over C_B alone: the outputs of the classes in B, and those that no sample has had so far.
That of the samples R from the memory is over all outputs C that may answer. So the old outputs move by replay alone. In
the first task, where there are no old outputs, C_B = C, as in the first version of the authors' code; a later one masks
from the first step on. The sum has no weights. The method needs no boundaries: where it is not told of them, C_B is as
above from the first step on.

Left out: the authors' cosine head is not part of the method here; type model.head=cosine for it.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from clrun.strategy import (
    AnyMemory,
    Aux,
    Batch,
    HealthRows,
    Knobs,
    Pool,
    Replay,
    Walk,
    buffer_stats,
    later_tasks,
    losses,
)

# The warnings of scenario=task and scenario=domain in conf/strategy/er_ace.yaml have these words, too, so that a run
# there does not say them again.
BARRED_NOTHING = "no softmax leaves out an output that may answer, so this is er whose two losses are added"


@dataclass(frozen=True)
class ERACE(Replay):
    """ER with asymmetric cross entropy.

    Its state is the memory of M row numbers (8 M bytes and the images; 16 M with a policy), the walk where there is one
    (8 M bytes), and C bytes. Both batches pass through the network as one, also for batch norm.
    """

    needs_boundaries: ClassVar[bool] = False

    class State(NamedTuple):
        memory: AnyMemory
        seen: Tensor  # (C,) bool: outputs of which there was a sample
        walk: Walk | tuple[()] = ()

    def init(self, theta: Tensor) -> State:
        seen = torch.zeros(self.data.outputs, dtype=torch.bool, device=theta.device)
        return self.State(self.empty(theta), seen, self.unwalked(theta))

    def loss(self, theta: Tensor, state: State, hp: Any, batch: Batch) -> tuple[Tensor, Aux]:
        """Return CE(B; theta, C_B) + CE(R; theta, C)."""
        old, _ = self.recall(state.memory, batch, batch.noise[1], state.walk)
        both = self.recalling(state.memory, old, joined_to=batch)
        z = both.logits(theta, state, hp, torch.cat([batch.x, old.x]), torch.cat([batch.t, old.t]))
        own = batch.active & self.answering(state, batch)
        each = losses(z, torch.cat([batch.y, old.y]), torch.cat([own, old.active]), batch.smoothing)
        sizes = [len(batch.y), len(old.y)]
        fit, replay = (part.mean(values) for part, values in zip((batch, old), each.split(sizes), strict=True))
        replay = (state.memory.offered > 0) * replay
        barred = batch.mean((batch.active & ~own).any(-1).to(fit))
        return fit + replay, {"replay_loss": replay, "barred_share": barred}

    def answering(self, state: State, batch: Batch) -> Tensor:
        """Return the outputs C_B (C,) bool."""
        fresh = present(batch, self.data.outputs) | ~state.seen
        return fresh | (batch.stage == 0) if self.data.told else fresh

    def after_step(self, state: State, hp: Any, batch: Batch, aux: Aux) -> State:
        walk = self.walked(state.walk, state.memory, batch, batch.noise[1])
        memory = state.memory if self.filled_at_ends else self.offer(state.memory, batch)
        return self.State(memory, state.seen | present(batch, self.data.outputs), walk)

    def after_phase(self, phase: str, theta: Tensor, state: State, hp: Any, pool: Pool) -> tuple[Tensor, State]:
        memory = self.offer_task(state.memory, pool, theta) if self.filled_at_ends else state.memory
        return theta, state._replace(memory=memory, walk=self.begun_anew(state.walk))

    def health(self, state: State, hp: Any) -> dict[str, Tensor]:
        return buffer_stats(self.data, state.memory)

    @classmethod
    def warnings(cls, health: HealthRows, knobs: Knobs) -> list[str]:
        of_memory = super().warnings(health, knobs)
        later = later_tasks(health)
        if not of_memory and later and all(row["barred_share"] == 0 for row in later):
            return [BARRED_NOTHING]
        return of_memory


def present(batch: Batch, outputs: int) -> Tensor:
    """Return the outputs (C,) bool of which the batch has a sample."""
    at = torch.where(batch.weight > 0, batch.y, outputs)  # the last entry collects those that are not there
    mask = torch.zeros(outputs + 1, dtype=torch.bool, device=batch.y.device)
    return mask.scatter(0, at, True)[:outputs]
