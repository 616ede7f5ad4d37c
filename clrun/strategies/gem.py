"""Gradient episodic memory (Lopez-Paz & Ranzato 2017, eqs. 8 to 11): no step against the gradient of any past task.

    g~ = argmin_x 1/2 ||x - g||^2   where x.r_k >= 0 for each past task k
       = g + G^T v,    v = argmin_v 1/2 v^T (G G^T + 1e-3 I) v + (G g)^T v   where v >= margin

g is the gradient of the batch, and the rows of G are the gradients r_k of all that is kept of each past task. v is
solved for in the dual, in as many unknowns as there are tasks. Where no r_k opposes g, g~ = g. The 1e-3 and the margin
are those of the authors' code, where the margin is called the memory strength: with margin > 0 the step favours past
tasks more than it must.

Each task has memory_size / T slots, at least one, for samples that are drawn when it ends. (The paper keeps its last
ones, which are as random.) A step costs a pass through the samples of each task. What is projected is the gradient: an
optimizer with momentum or Adam's scaling may still take a step against r_k.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from clrun.strategy import (
    NEGLIGIBLE,
    Aux,
    Batch,
    HealthRows,
    Knobs,
    Memory,
    Pool,
    Strategy,
    bounded_minimum,
    buffer_stats,
    gradient_of,
    later_tasks,
    uniform,
)

RIDGE = 1e-3  # added to the diagonal of G G^T


@dataclass(frozen=True)
class GEM(Strategy):
    """Gradient episodic memory.

    Its state is the memory of M row numbers (8 M bytes and the images), the number of samples of each task (8 T bytes)
    and a counter of projections. The batch passes through the network first and the tasks' samples after it, each
    task's by itself, also for batch norm.
    """

    goes_on: ClassVar[bool] = False

    memory_size: int = 200

    class Hyper(NamedTuple):
        margin: Tensor  # () the smallest v of a past task

    class State(NamedTuple):
        rows: Tensor  # (T, M / T) int64: image + N * task
        held: Tensor  # (T,) int64: samples of each task
        projections: Tensor  # () int64: how often g was projected

    @property
    def slots_of_a_task(self) -> int:
        """The number M / T of samples that are kept of each task."""
        return max(1, self.memory_size // self.data.tasks)

    @property
    def recalls_one(self) -> tuple[str, int] | None:
        return ("memory_size", 2 * self.data.tasks) if self.slots_of_a_task == 1 else None

    def init(self, theta: Tensor) -> State:
        nothing = torch.zeros(self.data.tasks, self.slots_of_a_task, dtype=torch.long, device=theta.device)
        return self.State(nothing, nothing[:, 0], nothing[0, 0])

    def gradient(self, theta: Tensor, state: State, hp: Hyper, batch: Batch) -> tuple[Tensor, Tensor, Aux]:
        """Return the projected gradient g~ (eq. 11)."""
        g, loss, aux = super().gradient(theta, state, hp, batch)
        past = state.held > 0
        passes = [self.past_gradient(theta, state, hp, batch, k) for k in range(self.data.tasks)]
        G, losses = (torch.stack(values) for values in zip(*passes, strict=True))
        along = G @ g
        projected = (past & (along < 0)).any()
        A = G @ G.mT + RIDGE * torch.eye(len(G), dtype=G.dtype, device=G.device)
        v = bounded_minimum(A, along, hp.margin, past).to(g)
        replay = (losses * past).sum() / past.sum().clamp(min=1)
        return (
            torch.where(projected, g + v @ G, g),
            loss,
            aux
            | {
                "projected_share": projected.to(loss),
                "replay_loss": replay,
            },
        )

    def past_gradient(self, theta: Tensor, state: State, hp: Hyper, batch: Batch, task: int) -> tuple[Tensor, Tensor]:
        """Return r_k (P,) and the loss () on the samples of a task; 0 where there are none."""
        rows = state.rows[task]
        weight = (torch.arange(len(rows), device=rows.device) < state.held[task]).to(batch.weight)
        old = self.data.recall(rows, batch, weight, self.noise(batch, task, len(rows)))
        network = self.net.network
        weighed = self.weighing(weight) if network.has_batch_norm or network.has_dropout else self
        r, loss, _ = gradient_of(weighed.loss, theta, state, hp, old)
        return r, loss

    def noise(self, batch: Batch, task: int, m: int) -> Tensor:
        """Return random numbers (6, m) for the augmentation of m samples of a past task; those of the batch's first
        sample where nothing is augmented."""
        if self.data.augment is None:
            return batch.noise[:, :1].expand(-1, m)
        seeds = torch.cat([batch.noise[:, 0], batch.noise.new_full((1,), task / self.data.tasks)])
        return uniform(seeds, len(batch.noise) * m).view(-1, m)

    def after_step(self, state: State, hp: Hyper, batch: Batch, aux: Aux) -> State:
        return state._replace(projections=state.projections + aux["projected_share"].long())

    def after_phase(self, phase: str, theta: Tensor, state: State, hp: Hyper, pool: Pool) -> tuple[Tensor, State]:
        """Return theta, and the state with the first samples of the pool, which is in random order."""
        drawn = pool.first(state.rows.shape[1])
        rows = torch.cat([drawn.rows, drawn.rows.new_zeros(state.rows.shape[1] - len(drawn.rows))])
        task = torch.arange(len(state.rows), device=rows.device) == pool.stage
        return theta, state._replace(
            rows=torch.where(task[:, None], rows, state.rows),
            held=torch.where(task, (drawn.weight > 0).sum(), state.held),
        )

    def stored_samples(self, state: State) -> int:
        return int(state.held.sum())

    def unused_bytes(self, state: State) -> int:
        return (state.rows.numel() - int(state.held.sum())) * state.rows.element_size()

    def health(self, state: State, hp: Hyper) -> dict[str, Tensor]:
        used = (torch.arange(state.rows.shape[1], device=state.rows.device) < state.held[:, None]).flatten()
        first = (~used).long().argsort(stable=True)
        memory = Memory(state.rows.flatten().index_select(0, first), used.sum())
        return {"projections": state.projections} | buffer_stats(self.data, memory)

    @classmethod
    def warnings(cls, health: HealthRows, knobs: Knobs) -> list[str]:
        later = later_tasks(health)
        if not later:
            return []
        if all(row["memory_fill"] == 0 for row in health):
            return ["the memory stayed empty, so no past task constrained a step: this is finetuning"]
        if all(row["replay_loss"] <= NEGLIGIBLE * row["loss"] for row in later):
            return ["past samples never had a loss above 1e-12 of the whole: this is finetuning"]
        if health[-1]["projections"] == 0:
            return ["no gradient ever had to be projected, so GEM did nothing: this is finetuning"]
        if knobs["memory_size"] < len(health):
            return [f"memory_size={knobs['memory_size']} is less than a sample a task, but each task keeps one"]
        return []
