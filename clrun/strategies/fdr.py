"""Function distance regularization (Benjamin et al. 2019): on past samples, the network stays the function that it was.

    L(theta) = CE(B; theta) + alpha * mean_{x in R} || p(x; theta) - p(x; theta_k) ||_2

p is the softmax over the outputs that may answer, and theta_k are the parameters at the end of the sample's task k,
when p(x; theta_k) is stored. The memory is shared evenly among past tasks, and R is drawn from it. The paper writes one
norm over all samples; the mean of the samples' norms is that of Buzzega et al. 2020, who compare with it.

Left out: in their code the distance has the weight 1, in an optimizer step of its own after that of the batch.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

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
    cross_entropy,
    log_softmax,
    write_slots,
)

# Samples that pass through the network at once when a task has ended.
CHUNK = 512

# A squared distance below it is no distance, and has no gradient.
TINY = 1e-24


@dataclass(frozen=True)
class FDR(Replay):
    """Function distance regularization.

    Its state is the memory of M row numbers with their keys (16 M bytes and the images), the probabilities of its
    samples (4 M C bytes in float32), and the walk where there is one (8 M bytes). The batch and what is recalled pass
    through the network each by itself, also for batch norm.
    """

    apart: ClassVar[bool] = True

    memory_policy: str = "past"

    class Hyper(NamedTuple):
        alpha: Tensor  # () strength of the distance

    class State(NamedTuple):
        memory: AnyMemory
        p: Tensor  # (M, C) probabilities at the end of the sample's task
        walk: Walk | tuple[()] = ()

    def init(self, theta: Tensor) -> State:
        p = theta.new_zeros(self.slots, self.data.outputs)
        return self.State(self.empty(theta), p, self.unwalked(theta))

    def loss(self, theta: Tensor, state: State, hp: Hyper, batch: Batch) -> tuple[Tensor, Aux]:
        """Return CE(B; theta) + alpha * the mean distance of what is recalled."""
        fit = cross_entropy(self.logits(theta, state, hp, batch.x, batch.t), batch)
        replay = (state.memory.offered > 0) * self.replay_loss(theta, state, hp, batch)
        return fit + replay, {"replay_loss": replay}

    def replay_loss(self, theta: Tensor, state: State, hp: Hyper, batch: Batch) -> Tensor:
        """Return alpha * the mean distance (), to be multiplied by 0 while the memory is empty."""
        old, slots = self.recall(state.memory, batch, batch.noise[1], state.walk)
        recalled = self.recalling(state.memory, old)
        gap = recalled.probabilities(theta, state, hp, old) - state.p.index_select(0, slots)
        square = gap.square().sum(-1)
        return hp.alpha * old.mean(torch.where(square > TINY, square.clamp(min=TINY).sqrt(), 0))

    def probabilities(self, theta: Tensor, state: State, hp: Hyper, batch: Batch) -> Tensor:
        """Return p(x; theta) (B, C)."""
        return log_softmax(self.logits(theta, state, hp, batch.x, batch.t), batch.active).exp()

    def after_step(self, state: State, hp: Hyper, batch: Batch, aux: Aux) -> State:
        return state._replace(walk=self.walked(state.walk, state.memory, batch, batch.noise[1]))

    def after_phase(self, phase: str, theta: Tensor, state: State, hp: Hyper, pool: Pool) -> tuple[Tensor, State]:
        """Return theta, and the state with samples of the task in the memory and what theta answers to them."""
        answers = [
            self.probabilities(theta, state, hp, batch) for batch in self.data.chunks(pool, self.data.share(CHUNK))
        ]
        weight = self.new(pool, state.memory.positions(pool.rows, pool.weight))
        slot_updates = self.slot_updates(state.memory, pool, weight)
        memory = self.stored(state.memory, slot_updates, pool, weight)
        p = write_slots(state.p, torch.cat(answers), slot_updates)
        return theta, self.State(memory, p, self.begun_anew(state.walk))

    def unused_bytes(self, state: State) -> int:
        empty = len(state.memory.rows) - int(state.memory.held)
        return super().unused_bytes(state) + empty * state.p.shape[-1] * state.p.element_size()

    def health(self, state: State, hp: Hyper) -> dict[str, Tensor]:
        return buffer_stats(self.data, state.memory)

    @classmethod
    def warnings(cls, health: HealthRows, knobs: Knobs) -> list[str]:
        return super().warnings(health, knobs) if knobs["alpha"] > 0 else []
