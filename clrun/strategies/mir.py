"""Maximally interfered retrieval (Aljundi et al. 2019, eq. 1): bring back what the next step would hurt most.

    v      = theta - virtual_lr * grad CE(B; theta)                  a virtual step on the batch
    s(x)   = CE(x; v) - CE(x; theta)                                 how much it hurts a sample
    R      = the samples with the largest s among `candidates` that are drawn from the memory without replacement
    L(theta) = w CE(B; theta) + (1 - w) CE(R; theta)                 as in experience replay

With as few candidates as are replayed, nothing is chosen: this is er with replay_draw=without. The paper's virtual step
has the learning rate of its plain SGD; here it has one of its own, whatever the optimizer is.

In the authors' code, candidates are of earlier tasks alone and the first task is trained without replay; here they come
from the whole memory, which holds samples of the present task too. Their step follows the gradient of CE(B) + CE(R),
not of a mean. Left out is their second criterion, which compares CE(x; v) with the lowest loss that x has had so far.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from clrun.strategies.er import ER
from clrun.strategy import (
    Aux,
    Batch,
    HealthRows,
    Knobs,
    Network,
    cross_entropy,
    gradient_of,
    later_tasks,
    losses,
)


@dataclass(frozen=True)
class MIR(ER):
    """Maximally interfered retrieval.

    Its state is that of ER. The batch passes through the network first and what is replayed second, each by itself,
    also for batch norm, whose running statistics take no notice of the candidates.
    """

    apart: ClassVar[bool] = True

    candidates: int = 50

    class Hyper(NamedTuple):
        virtual_lr: Tensor  # () length of the virtual step, as a multiple of the gradient

    @property
    def recalls_one(self) -> tuple[str, int] | None:
        return ("candidates", 2) if self.candidates == 1 and self.replay_batch != 1 else super().recalls_one

    @classmethod
    def incompatibility(cls, network: Network, optimizer: str, knobs: Knobs) -> str | None:
        if knobs["replay_batch"] is not None and knobs["candidates"] < knobs["replay_batch"]:
            return (
                f"candidates={knobs['candidates']} are fewer than replay_batch={knobs['replay_batch']}, which are "
                "chosen among them; type a larger number of candidates."
            )
        return super().incompatibility(network, optimizer, knobs)

    def gradient(self, theta: Tensor, state: ER.State, hp: Hyper, batch: Batch) -> tuple[Tensor, Tensor, Aux]:
        """Return the gradient of w CE(B; theta) + (1 - w) CE(R; theta)."""
        g, fit, _ = gradient_of(self.mean_loss, theta, state, hp, batch)
        old, chosen = self.most_interfered(theta, theta - hp.virtual_lr * g, state, hp, batch)
        recalled = self.recalling(state.memory, old)
        g_old, replay, _ = gradient_of(recalled.mean_loss, theta, state, hp, old)
        w = self.weight(state.memory, batch, old, fit)
        signals = {"replay_loss": (state.memory.offered > 0) * replay, "chosen_interference": chosen}
        return w * g + (1 - w) * g_old, w * fit + (1 - w) * replay, signals

    def mean_loss(self, theta: Tensor, state: ER.State, hp: Hyper, batch: Batch) -> tuple[Tensor, Aux]:
        """Return the cross entropy () of a batch."""
        return cross_entropy(self.logits(theta, state, hp, batch.x, batch.t), batch), {}

    def most_interfered(
        self, theta: Tensor, virtual: Tensor, state: ER.State, hp: Hyper, batch: Batch
    ) -> tuple[Batch, Tensor]:
        """Return the samples R that are hurt most by the step from theta to virtual (P,), and by how much more than the
        candidates on the average ()."""
        drawing = replace(self, replay_batch=self.candidates, replay_draw="without")
        drawn, _ = drawing.recall(state.memory, batch, batch.noise[1])
        judging = replace(drawing, net=self.net.unrecorded()).recalling(state.memory, drawn)
        hurt = judging.each_loss(virtual, state, hp, drawn) - judging.each_loss(theta, state, hp, drawn)
        m = min(self.candidates, len(batch.rows) if self.replay_batch is None else self.replay_batch)
        order = torch.where(drawn.weight > 0, hurt, -torch.inf).argsort(descending=True, stable=True)[:m]
        weight = drawn.weight.index_select(0, order)
        if self.replay_batch is None:  # as many as there are in the batch
            weight = weight * (torch.arange(m, device=order.device) < batch.weight.sum())
        rows = drawn.rows.index_select(0, order)
        noise = drawing.augmentation(batch, batch.noise[1], m)
        old = self.data.recall(rows, batch, weight, noise)
        margin = old.mean(hurt.index_select(0, order)) - drawn.mean(hurt)
        # Where all candidates are replayed, the two means differ by rounding alone.
        return old, margin * (drawn.weight.sum() > weight.sum())

    def each_loss(self, theta: Tensor, state: ER.State, hp: Hyper, batch: Batch) -> Tensor:
        """Return the cross entropy (B,) of each sample, without a gradient."""
        with torch.no_grad():
            return losses(self.logits(theta, state, hp, batch.x, batch.t), batch.y, batch.active, batch.smoothing)

    @classmethod
    def warnings(cls, health: HealthRows, knobs: Knobs) -> list[str]:
        of_memory = super().warnings(health, knobs)
        later = later_tasks(health)
        if not of_memory and later and all(row["chosen_interference"] == 0 for row in later):
            return [
                "what was replayed was never hurt more than the other candidates, so MIR chose nothing: this is er; "
                "type more candidates than are replayed in a step, a memory that holds them, and a virtual_lr above 0"
            ]
        return of_memory
