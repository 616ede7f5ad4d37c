"""Averaged gradient episodic memory (Chaudhry et al. 2019, eq. 11): a step must not oppose the memory's gradient.

    g~ = g - (g.r / r.r) r   where g.r < 0, else g

g is the gradient of the batch, r that of samples drawn from the memory: `replay_batch`, or as many as the batch has. As
in the paper the memory holds past tasks only: the samples of a task are offered once, at its end. What is projected is
the gradient; an optimizer with momentum or Adam's scaling may still take a step against r.
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
    dot,
    gradient_of,
    later_tasks,
)


@dataclass(frozen=True)
class AGEM(Replay):
    """Averaged gradient episodic memory.

    Its state is the memory of M row numbers (8 M bytes and the images), and a counter of projections. The batch passes
    through the network first and what is recalled second, each by itself, also for batch norm.
    """

    apart: ClassVar[bool] = True

    class State(NamedTuple):
        memory: AnyMemory
        projections: Tensor  # () int64: how often g was projected
        walk: Walk | tuple[()] = ()

    def init(self, theta: Tensor) -> State:
        return self.State(
            self.empty(theta), torch.zeros((), dtype=torch.long, device=theta.device), self.unwalked(theta)
        )

    def gradient(self, theta: Tensor, state: State, hp: Any, batch: Batch) -> tuple[Tensor, Tensor, Aux]:
        """Return the projected gradient g~ (eq. 11)."""
        g, loss, aux = super().gradient(theta, state, hp, batch)
        old, _ = self.recall(state.memory, batch, batch.noise[1], state.walk)
        recalled = self.recalling(state.memory, old)
        r, replay, _ = gradient_of(recalled.loss, theta, state, hp, old)
        past = state.memory.offered > 0
        along = dot(g, r)
        projected = past & (along < 0)
        overlap = torch.where(projected, along / dot(r, r), 0)
        signals = {"projected_share": projected.to(loss), "replay_loss": past * replay}
        return g - overlap * r, loss, aux | signals

    def after_step(self, state: State, hp: Any, batch: Batch, aux: Aux) -> State:
        walk = self.walked(state.walk, state.memory, batch, batch.noise[1])
        return state._replace(projections=state.projections + aux["projected_share"].long(), walk=walk)

    def after_phase(self, phase: str, theta: Tensor, state: State, hp: Any, pool: Pool) -> tuple[Tensor, State]:
        """Return theta, and the state with the samples of the task offered to the memory."""
        memory = self.offer_task(state.memory, pool, theta)
        return theta, state._replace(memory=memory, walk=self.begun_anew(state.walk))

    def health(self, state: State, hp: Any) -> dict[str, Tensor]:
        return {"projections": state.projections} | buffer_stats(self.data, state.memory)

    @classmethod
    def warnings(cls, health: HealthRows, knobs: Knobs) -> list[str]:
        of_memory = super().warnings(health, knobs)
        if not of_memory and later_tasks(health) and health[-1]["projections"] == 0:
            return ["no gradient ever had to be projected, so A-GEM did nothing: this is finetuning"]
        return of_memory
