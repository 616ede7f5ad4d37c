"""Dark experience replay (Buzzega et al. 2020): old samples keep the logits z that they had when they were stored.

    DER   (eq. 4):  L(theta) = CE(B; theta) + alpha * mean_{(x, z) in R} || z - h(x; theta) ||^2 / C
    DER++ (eq. 6):  the same + beta * CE(R'; theta)

R and R' are drawn from the memory independently, each as large as the batch B or of `replay_batch` samples. The memory
is a reservoir (Vitter 1985) unless `memory_policy` says otherwise. It is read before the batch is offered to it. As in
the authors' code the square is a mean over all C outputs too, so the effect of alpha depends on C; and z is computed
before the step that the sample was trained in.

The memory is offered a sample in the first epoch of its task alone, so it holds no sample twice. If the sample is
held, its z is replaced in the e-th epoch with probability 1/e, so that z is of an epoch drawn uniformly, as in the
authors' code, where each epoch offers the sample again. Since z comes from the step that a sample was trained in, the
policies that fill the memory when a task ends (herding, past) are not there. Neither is replay_draw=epochs: its walk
through the memory would be one more thing in the state, and DER++ draws from the memory twice a step.
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
    Replay,
    TaskTables,
    buffer_stats,
    cross_entropy,
    write_slots,
)


@dataclass(frozen=True)
class DER(Replay):
    """Dark experience replay.

    Its state is the memory of M row numbers (8 M bytes and the images) and the logits of its samples (4 M C bytes in
    float32). The batch and what is recalled pass through the network each by itself, also for batch norm: first B, then
    (in DER++) R', then R.
    """

    apart: ClassVar[bool] = True

    class Hyper(NamedTuple):
        alpha: Tensor  # () strength of the logits

    class State(NamedTuple):
        memory: AnyMemory
        z: Tensor  # (M, C) logits when stored

    def init(self, theta: Tensor) -> State:
        return self.State(self.empty(theta), theta.new_zeros(self.slots, self.data.outputs))

    def loss(self, theta: Tensor, state: State, hp: Any, batch: Batch) -> tuple[Tensor, Aux]:
        """Return CE(B; theta) and what the memory adds (eqs. 4 and 6); aux has the logits to be stored."""
        z = self.logits(theta, state, hp, batch.x, batch.t)
        replay = (state.memory.offered > 0) * self.replay_loss(theta, state, hp, batch)
        return cross_entropy(z, batch) + replay, {"z": z, "replay_loss": replay}

    def replay_loss(self, theta: Tensor, state: State, hp: Any, batch: Batch) -> Tensor:
        """Return what replay adds to the loss: (), to be multiplied by 0 while the memory is empty."""
        old, slots = self.recall(state.memory, batch, batch.noise[1])
        recalled = self.recalling(state.memory, old)
        gap = recalled.logits(theta, state, hp, old.x, old.t) - state.z[slots]
        return hp.alpha * old.mean(gap.square().mean(-1))

    def after_step(self, state: State, hp: Any, batch: Batch, aux: Aux) -> State:
        held = state.memory.positions(batch.rows, batch.weight)
        weight = self.new(batch, held)
        slot_updates = self.slot_updates(state.memory, batch, weight)
        memory = self.stored(state.memory, slot_updates, batch, weight)
        renewed = (batch.noise[0] * (batch.epoch + 1) < 1).index_select(0, held.clamp(min=0))
        z_updates = torch.where((slot_updates < 0) & renewed, held, slot_updates)
        return self.State(memory, write_slots(state.z, aux["z"], z_updates))

    def adopt(self, theta: Tensor, state: Any, hp: Any, added: Tensor, learnt: Tensor, tables: TaskTables) -> Any:
        """Return the state with the present logits of new outputs for the samples in the memory, which have none."""
        new = self.net.layout.view(added)["head.weight"].flatten(1).any(1)  # (C,)
        index = self.data.index(tables, state.memory.rows, torch.ones_like(state.memory.rows))
        x = self.data.inputs(tables, index.image, index.t)
        z = self.logits(theta, state, hp, x, index.t)
        return state._replace(z=torch.where(new & state.memory.used[:, None], z, state.z))

    def unused_bytes(self, state: Any) -> int:
        empty = state.memory.rows.shape[-1] - int(state.memory.held)
        return super().unused_bytes(state) + empty * state.z.shape[-1] * state.z.element_size()

    def health(self, state: State, hp: Any) -> dict[str, Tensor]:
        return buffer_stats(self.data, state.memory)

    @classmethod
    def warnings(cls, health: HealthRows, knobs: Knobs) -> list[str]:
        replays = any(knobs.get(strength, 0) > 0 for strength in ("alpha", "beta"))
        return super().warnings(health, knobs) if replays else []


class DERpp(DER):
    """DER++: dark experience replay, and the labels of a second batch from the memory. Its state is that of DER."""

    class Hyper(NamedTuple):
        alpha: Tensor  # () strength of the logits
        beta: Tensor  # () strength of the labels

    def replay_loss(self, theta: Tensor, state: DER.State, hp: Any, batch: Batch) -> Tensor:
        """Return what DER adds to the loss, plus beta * CE(R'; theta) (eq. 6)."""
        old, _ = self.recall(state.memory, batch, batch.noise[2])
        recalled = self.recalling(state.memory, old)
        labels = cross_entropy(recalled.logits(theta, state, hp, old.x, old.t), old)
        return super().replay_loss(theta, state, hp, batch) + hp.beta * labels
