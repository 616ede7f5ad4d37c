"""Averaged gradient episodic memory (Chaudhry et al. 2019, eq. 11): do not undo what the memory asks for.

    g~ = g - (g.r / r.r) r   where g.r < 0, else g

g is the gradient of the batch, r that of as many samples drawn from the memory. As in the paper the memory holds past
tasks only: a task's samples are offered once, at its end. What is projected is the gradient; an optimiser with momentum
or Adam's scaling may still take a step against r.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clrun.strategy import Memory, Replay, census


@dataclass(frozen=True)
class AGEM(Replay):
    """State: the memory's row numbers, and how often g was projected."""

    class Own(NamedTuple):
        memory: Memory
        projections: Tensor  # () int64

    def init(self, theta):
        return self.Own(self.empty(theta), torch.zeros((), dtype=torch.long, device=theta.device))

    def gradient(self, theta, own, hp, batch):
        g, loss, aux = super().gradient(theta, own, hp, batch)
        old, _ = self.recall(own.memory, batch, batch.noise[1])
        r, replay, _ = super().gradient(theta, own, hp, old)
        past = own.memory.offered > 0
        projected = past & (g @ r < 0)
        overlap = torch.where(projected, (g @ r) / (r @ r), 0)
        signals = {"projected_share": projected.to(loss), "replay_loss": past * replay}
        return g - overlap * r, loss, aux | signals

    def after_step(self, own, hp, batch, aux):
        return own._replace(projections=own.projections + aux["projected_share"].long())

    def after_phase(self, phase, theta, own, hp, pool):
        return theta, own._replace(memory=self.offer_task(own.memory, pool))

    def health(self, own, hp):
        return {"projections": own.projections} | census(self.data, own.memory)

    @classmethod
    def complaints(cls, health: Sequence[Mapping[str, float]], knobs: Mapping[str, Any]) -> list[str]:
        said = super().complaints(health, knobs)
        if not said and len(health) > 1 and health[-1]["projections"] == 0:
            return ["no gradient ever had to be projected, so A-GEM did nothing: this is finetuning"]
        return said
