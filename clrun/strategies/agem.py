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

from clrun.strategy import Memory, Replay, buffer_stats


@dataclass(frozen=True)
class AGEM(Replay):
    """State: the memory's row numbers, and how often g was projected."""

    class State(NamedTuple):
        memory: Memory
        projections: Tensor  # () int64

    def init(self, theta):
        return self.State(self.empty(theta), torch.zeros((), dtype=torch.long, device=theta.device))

    def gradient(self, theta, state, hp, batch):
        g, loss, aux = super().gradient(theta, state, hp, batch)
        old, _ = self.recall(state.memory, batch, batch.noise[1])
        r, replay, _ = super().gradient(theta, state, hp, old)
        past = state.memory.offered > 0
        projected = past & (g @ r < 0)
        overlap = torch.where(projected, (g @ r) / (r @ r), 0)
        signals = {"projected_share": projected.to(loss), "replay_loss": past * replay}
        return g - overlap * r, loss, aux | signals

    def after_step(self, state, hp, batch, aux):
        return state._replace(projections=state.projections + aux["projected_share"].long())

    def after_phase(self, phase, theta, state, hp, pool):
        return theta, state._replace(memory=self.offer_task(state.memory, pool))

    def health(self, state, hp):
        return {"projections": state.projections} | buffer_stats(self.data, state.memory)

    @classmethod
    def warnings(cls, health: Sequence[Mapping[str, float]], knobs: Mapping[str, Any]) -> list[str]:
        said = super().warnings(health, knobs)
        if not said and len(health) > 1 and health[-1]["projections"] == 0:
            return ["no gradient ever had to be projected, so A-GEM did nothing: this is finetuning"]
        return said
