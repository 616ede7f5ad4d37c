"""Elastic weight consolidation (Kirkpatrick et al. 2017, eq. 3).

    L(theta) = L_t(theta) + lambda/2 * sum_{k<t} sum_i F_ki (theta_i - theta*_ki)^2

The penalties of all past tasks are quadratics, so they add up to one: no anchor a task is kept.
Online (Schwarz et al. 2018, eq. 9 and below): F~_t = gamma F~_{t-1} + F_t, one anchor, and the penalty
lambda/2 * gamma F~_{t-1} (theta - theta*_{t-1})^2.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from clrun.strategy import Gaussian, Quadratic, QuadraticPenalty, fisher


@dataclass(frozen=True)
class EWC(QuadraticPenalty):
    """State: a Gaussian, 2 P floats, however many tasks. `fisher` names the estimator (see clrun/fisher.py)."""

    importance_name: ClassVar[str] = "fisher"

    online: bool = False
    fisher: str = "exact"
    fisher_samples: int | None = None
    fisher_batch: int = 128

    class Hyper(NamedTuple):
        lambda_: Tensor  # ()
        gamma: Tensor  # ()

    def init(self, theta):
        return Gaussian(theta, torch.zeros_like(theta))

    def quadratic(self, state, hp):
        return Quadratic(hp.lambda_, state.mean, state.precision)

    def after_phase(self, phase, theta, state, hp, pool):
        F = fisher(
            self, theta, state, hp, pool,
            estimator=self.fisher, samples=self.fisher_samples, batch_size=self.fisher_batch,
        )  # fmt: skip
        return theta, self.faded(state, theta, F, hp.gamma) if self.online else state.absorb(theta, F)

    @staticmethod
    def faded(state: Gaussian, theta: Tensor, F: Tensor, gamma: Tensor) -> Gaussian:
        """The next F~, with the gamma that its penalty carries already inside: gamma (F~ + F)."""
        return Gaussian(theta, gamma * (state.precision + F))

    def importance(self, state):
        return state.precision

    @classmethod
    def incompatibility(cls, network, optimizer, knobs):
        if knobs["gamma"] != 1 and not knobs["online"]:
            return f"gamma={knobs['gamma']:g} is read by online EWC alone; type online=true as well, or no gamma."
        if knobs["fisher_batch"] != cls.fisher_batch and knobs["fisher"] != "batched":
            return "fisher_batch is read by fisher=batched alone; type fisher=batched as well, or no fisher_batch."
        return None
