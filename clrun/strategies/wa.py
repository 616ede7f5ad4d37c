"""Weight aligning (Zhao et al. 2020): after each task, the new classes' weights are made as long as the old ones'.

    train on (x, y) of the task and of the memory together (eqs. 1 to 4):
        L(theta) = (1 - w) CE(x, y; theta) + w KL( p_old(x; theta*) || p_old(x; theta) ),    w = n_old / (n_old + n_new)
    then (eqs. 7 and 8):    W_new <- gamma W_new,    gamma = mean_{o old} ||W_o|| / mean_{o new} ||W_o||

p_old is the softmax of logits / temperature over the old outputs, theta* the network before this task, W_o the weights
of output o, and n the number of outputs. The paper writes a cross entropy in place of the KL divergence, which has the
same gradient.

Left out: the paper's clipping of the weights to positive values. As there, biases are not aligned.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from clrun.strategy import (
    Aux,
    Batch,
    Exemplars,
    HealthRows,
    Knobs,
    Network,
    Past,
    Pool,
    cross_entropy,
    distillation,
    later_tasks,
)


@dataclass(frozen=True)
class WA(Exemplars):
    """Weight aligning.

    Its state is the memory of M row numbers with their keys (16 M bytes and the images), the network before the task
    (4 P bytes in float32), and gamma.
    """

    class Hyper(NamedTuple):
        temperature: Tensor  # ()

    class State(NamedTuple):
        past: Past
        gamma: Tensor  # () of the last task; 1 in the first

    @classmethod
    def incompatibility(cls, network: Network, optimizer: str, knobs: Knobs) -> str | None:
        if network.has_cosine_head:
            return "of a cosine head, the lengths of weights do not count, which WA aligns; type model.head=linear."
        return super().incompatibility(network, optimizer, knobs)

    def init(self, theta: Tensor) -> State:
        return self.State(self.no_past(theta), theta.new_ones(()))

    def loss(self, theta: Tensor, state: State, hp: Hyper, batch: Batch) -> tuple[Tensor, Aux]:
        """Return (1 - w) CE + w KL."""
        z = self.logits(theta, state, hp, batch.x, batch.t)
        old, new = state.past.old, state.past.new
        w = old.sum().to(z) / (old | new).sum().clamp(min=1)
        kl = batch.mean(distillation(self.teacher_logits(state.past, batch.x), z, old, hp.temperature))
        signals = {"distillation": kl, "exemplar_share": self.exemplar_share(batch)}
        return (1 - w) * cross_entropy(z, batch) + w * kl, signals

    def after_phase(self, phase: str, theta: Tensor, state: State, hp: Hyper, pool: Pool) -> tuple[Tensor, State]:
        """Return theta with aligned weights, and the state with the exemplars of the task."""
        if phase == "meet":
            return theta, state._replace(past=self.met(state.past, pool))
        aligned, gamma = self.aligned(theta, state.past)
        return aligned, self.State(self.passed(state.past, aligned, pool), gamma)

    def aligned(self, theta: Tensor, past: Past) -> tuple[Tensor, Tensor]:
        """Return theta (P,) with the weights of new outputs multiplied by gamma (), and gamma."""
        pieces = self.net.layout.view(theta)
        weight = pieces["head.weight"].flatten(1)
        norm = weight.norm(dim=1)
        of_old, of_new = (mean_over(norm, outputs) for outputs in (past.old, past.new))
        gamma = torch.where(past.old.any() & (of_new > 0), of_old / of_new.clamp(min=1e-30), 1)
        factor = torch.where(past.new, gamma, 1)
        scaled = (weight * factor[:, None]).view(pieces["head.weight"].shape)
        return self.net.layout.flat(pieces | {"head.weight": scaled}), gamma

    def health(self, state: State, hp: Hyper) -> dict[str, Tensor]:
        return {"gamma": state.gamma} | self.past_stats(state.past)

    @classmethod
    def warnings(cls, health: HealthRows, knobs: Knobs) -> list[str]:
        of_memory = super().warnings(health, knobs)
        later = later_tasks(health)
        if not of_memory and later and all(row["gamma"] == 1 for row in later):
            return ["no weight was ever aligned, so WA was distillation on exemplars"]
        return of_memory


def mean_over(values: Tensor, chosen: Tensor) -> Tensor:
    """Return the mean () of values (n,) over the chosen ones (n,) bool; 0 if there are none."""
    return torch.where(chosen, values, 0).sum() / chosen.sum().clamp(min=1)
