"""Elastic weight consolidation (Kirkpatrick et al. 2017, eq. 3).

    L(theta) = L_t(theta) + lambda/2 * sum_{k<t} sum_i F_ki (theta_i - theta*_ki)^2

where theta*_k are the parameters after task k and F_k is the diagonal of their Fisher information. The penalties of all
past tasks are quadratics, so their sum is one quadratic and no copy of theta is stored per task.

Online EWC (Schwarz et al. 2018, eq. 9 and below) has F~_t = gamma F~_{t-1} + F_t, the newest theta* alone, and the
penalty lambda/2 * gamma F~_{t-1} (theta - theta*_{t-1})^2.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from clrun.strategy import Gaussian, Knobs, Network, Pool, Quadratic, QuadraticPenalty, diagonal_fisher, format_value


@dataclass(frozen=True)
class EWC(QuadraticPenalty):
    """Elastic weight consolidation.

    Its state is a Gaussian: mean (P,) and precision (P,), so 8 P bytes in float32, however many tasks there are.
    `fisher` is the estimator of the Fisher information, described in clrun/strategy/fisher_information.py;
    `fisher_samples` limits its samples, and `fisher_batch` is the batch size of the estimator `batched`.
    """

    importance_name: ClassVar[str] = "fisher"

    online: bool = False
    fisher: str = "exact"
    fisher_samples: int | None = None
    fisher_batch: int = 128

    class Hyper(NamedTuple):
        lambda_: Tensor  # () strength of the penalty
        gamma: Tensor  # () decay of the past Fisher information in online EWC

    def init(self, theta: Tensor) -> Gaussian:
        return Gaussian(theta, torch.zeros_like(theta))

    def quadratic(self, state: Gaussian, hp: Hyper) -> Quadratic:
        """Return lambda/2 sum_i precision_i (theta_i - mean_i)^2, the penalty of eq. 3."""
        return Quadratic(hp.lambda_, state.mean, state.precision)

    def after_phase(self, phase: str, theta: Tensor, state: Gaussian, hp: Hyper, pool: Pool) -> tuple[Tensor, Gaussian]:
        """Return theta, and the state with the Fisher information of the task just learnt added."""
        F = diagonal_fisher(
            self, theta, state, hp, pool,
            estimator=self.fisher, samples=self.fisher_samples, batch_size=self.fisher_batch,
        )  # fmt: skip
        return theta, self.decayed(state, theta, F, hp.gamma) if self.online else state.absorb(theta, F)

    @staticmethod
    def decayed(state: Gaussian, theta: Tensor, F: Tensor, gamma: Tensor) -> Gaussian:
        """Return the state of online EWC after a task: theta and gamma F~_t = gamma (gamma F~_{t-1} + F_t), each (P,).

        The precision in the state is gamma F~, since that is what the penalty uses.
        """
        return Gaussian(theta, gamma * (state.precision + F))

    def importance(self, state: Gaussian) -> Tensor:
        return state.precision

    @classmethod
    def incompatibility(cls, network: Network, optimizer: str, knobs: Knobs) -> str | None:
        if knobs["gamma"] != 1 and not knobs["online"]:
            gamma = format_value(knobs["gamma"])
            return f"gamma={gamma} is read by online EWC alone; type online=true as well, or no gamma."
        if knobs["fisher_batch"] != cls.fisher_batch and knobs["fisher"] != "batched":
            return "fisher_batch is read by fisher=batched alone; type fisher=batched as well, or no fisher_batch."
        return None
