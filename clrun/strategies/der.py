"""Dark experience replay (Buzzega et al. 2020): old samples keep the logits z that they had when they were stored.

    DER   (eq. 4):  L(theta) = CE(B; theta) + alpha * mean_{(x, z) in R} || z - h(x; theta) ||^2 / C
    DER++ (eq. 6):  the same + beta * CE(R'; theta)

R and R' are drawn from the memory independently, each as large as the batch B. The memory is a reservoir (Vitter 1985),
read before the batch is offered to it. As in the authors' code the square is a mean over all C outputs too, so the
strength of alpha depends on C; and z comes from before the step that the sample was trained in.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from clrun.strategy import Memory, Replay, buffer_stats, cross_entropy, write_slots


@dataclass(frozen=True)
class DER(Replay):
    """State: the memory's row numbers and their logits. A pass through the network for each batch."""

    class Hyper(NamedTuple):
        alpha: Tensor  # ()

    class State(NamedTuple):
        memory: Memory
        z: Tensor  # (M, C)

    def init(self, theta):
        return self.State(self.empty(theta), theta.new_zeros(self.slots, self.data.outputs))

    def loss(self, theta, state, hp, batch):
        z = self.logits(theta, state, hp, batch.x, batch.t)
        replay = (state.memory.offered > 0) * self.replayed(theta, state, hp, batch)
        return cross_entropy(z, batch) + replay, {"z": z, "replay_loss": replay}

    def replayed(self, theta, state, hp, batch) -> Tensor:
        """(): what the memory adds to the loss."""
        old, slots = self.recall(state.memory, batch, batch.noise[1])
        gap = self.logits(theta, state, hp, old.x, old.t) - state.z[slots]
        return hp.alpha * old.mean(gap.square().mean(-1))

    def after_step(self, state, hp, batch, aux):
        slot_updates = state.memory.slot_updates(batch.weight, batch.noise[0])
        memory = state.memory.after(slot_updates, batch.rows, batch.weight)
        return self.State(memory, write_slots(state.z, aux["z"], slot_updates))

    def health(self, state, hp):
        return buffer_stats(self.data, state.memory)

    @classmethod
    def warnings(cls, health: Sequence[Mapping[str, float]], knobs: Mapping[str, Any]) -> list[str]:
        asked = any(knobs.get(strength, 0) > 0 for strength in ("alpha", "beta"))
        return super().warnings(health, knobs) if asked else []


class DERpp(DER):
    """DER, and the labels of a second draw."""

    class Hyper(NamedTuple):
        alpha: Tensor  # ()
        beta: Tensor  # ()

    def replayed(self, theta, state, hp, batch) -> Tensor:
        old, _ = self.recall(state.memory, batch, batch.noise[2])
        labels = cross_entropy(self.logits(theta, state, hp, old.x, old.t), old)
        return super().replayed(theta, state, hp, batch) + hp.beta * labels
