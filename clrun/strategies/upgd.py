"""Utility-based perturbed gradient descent, UPGD (Elsayed & Mahmood 2024, algorithm 1: weights, first order, global).

    u_i <- beta u_i + (1 - beta) (-g_i theta_i)      utility: what the loss would gain if theta_i were 0, to first order
    U_i = sigmoid( (u_i / (1 - beta^n)) / max_j (u_j / (1 - beta^n)) )      at step n
    theta_i <- theta_i + (delta_i + sigma xi_i) (1 - U_i)      xi_i from N(0, 1)

delta is the step of the optimizer; with plain SGD the paper's -lr g. A useful weight moves less, so that it is kept;
a useless one moves fully and by chance, so that it finds a use again. The noise is in units of weights: the paper's
sigma times its learning rate. Where no utility is positive, U is 0 (the authors divide by the largest anyway). No task
boundary is read. A weight of utility 0 still moves by half: no setting is plain training.

The code in the authors' README differs from this in three ways: it divides u_i / (1 - beta^n) by the largest u_j
without that correction, it takes steps of 2 lr, and its weight decay is outside of (1 - U_i). Here weight decay is a
part of delta, so a useful weight decays less.

Two things outside of the paper: the noise keeps its size where a schedule changes the learning rate; and, with
clip_norm, U of a step is made with the clipped gradient, while the utility that is kept is made with the whole one. The
paper clips nothing.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from clrun.strategy import Aux, Batch, HealthRows, Knobs, Strategy, normal


class UPGD(Strategy):
    """UPGD. Its state is the utility of every parameter, 4 P bytes in float32."""

    class Hyper(NamedTuple):
        beta: Tensor  # () decay of the utility
        sigma: Tensor  # () standard deviation of the noise of a step

    class State(NamedTuple):
        utility: Tensor  # (P,) u

    def init(self, theta: Tensor) -> State:
        return self.State(torch.zeros_like(theta))

    def gradient(self, theta: Tensor, state: State, hp: Hyper, batch: Batch) -> tuple[Tensor, Tensor, Aux]:
        """Return the gradient; aux hands the new utility on to the state."""
        g, fit, aux = super().gradient(theta, state, hp, batch)
        return g, fit, aux | {"utility": self.next_utility(theta, g, state, hp)}

    @staticmethod
    def next_utility(theta: Tensor, g: Tensor, state: State, hp: Hyper) -> Tensor:
        """Return u (P,) after a step with the gradient g (P,) at theta (P,)."""
        return hp.beta * state.utility - (1 - hp.beta) * g * theta

    @staticmethod
    def scaled(utility: Tensor) -> Tensor:
        """Return U (P,) for u (P,); the correction 1 - beta^n cancels in the ratio."""
        largest = utility.max()
        return torch.where(largest > 0, (utility / largest.clamp(min=torch.finfo(utility.dtype).tiny)).sigmoid(), 0)

    def restrict(self, delta: Tensor, g: Tensor, theta: Tensor, state: State, hp: Hyper, batch: Batch) -> Tensor:
        """Return (delta + sigma xi) (1 - U)."""
        noise = hp.sigma * normal(batch.noise[:2, 0], len(delta)).to(delta.dtype)
        return (delta + noise) * (1 - self.scaled(self.next_utility(theta, g, state, hp)))

    def after_step(self, state: State, hp: Hyper, batch: Batch, aux: Aux) -> State:
        return self.State(aux["utility"])

    def health(self, state: State, hp: Any) -> dict[str, Tensor]:
        scaled = self.scaled(state.utility)
        return {"protection_mean": scaled.mean(), "protection_max": scaled.max()}

    @classmethod
    def warnings(cls, health: HealthRows, knobs: Knobs) -> list[str]:
        if any(row["protection_max"] > 0 for row in health):
            return []
        return ["no weight ever had a positive utility, so that none was protected: this is finetuning with noise"]
