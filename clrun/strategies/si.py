"""Synaptic intelligence (Zenke et al. 2017, eqs. 3 to 5).

    omega_i  = - sum over the task's steps of g_i * (change of theta_i),  g the gradient of L_t alone       (eq. 3)
    Omega_i <- relu(Omega_i + omega_i / ((theta_i - theta*_i)^2 + xi))    at the end of a task              (eq. 5)
    L(theta) = L_t(theta) + c * sum_i Omega_i (theta_i - theta*_i)^2      no 1/2                            (eq. 4)

where theta* are the parameters at the end of the last task. The path integral uses the gradient without the penalty
(eq. 3), not that of the whole loss as some libraries do. The relu is not in the paper but in its authors' code: a path
that ends at a higher loss would push parameters away from theta*.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from clrun.strategy import Aux, Batch, Pool, Quadratic, QuadraticPenalty


@dataclass(frozen=True)
class SI(QuadraticPenalty):
    """Synaptic intelligence.

    Its state is three vectors (P,), so 12 P bytes in float32, however many tasks there are. It needs no pass over the
    data at the end of a task.
    """

    strength: ClassVar[str] = "c"

    class Hyper(NamedTuple):
        c: Tensor  # () strength of the penalty
        xi: Tensor  # () damping, which bounds omega / (theta - theta*)^2

    class State(NamedTuple):
        anchor: Tensor  # (P,) theta*
        path: Tensor  # (P,) omega
        importance: Tensor  # (P,) Omega

    def init(self, theta: Tensor) -> State:
        return self.State(theta, torch.zeros_like(theta), torch.zeros_like(theta))

    def quadratic(self, state: State, hp: Hyper) -> Quadratic:
        """Return c sum_i Omega_i (theta_i - theta*_i)^2, the penalty of eq. 4."""
        return Quadratic(2 * hp.c, state.anchor, state.importance)

    def gradient(self, theta: Tensor, state: State, hp: Hyper, batch: Batch) -> tuple[Tensor, Tensor, Aux]:
        """Return the gradient of L_t alone; aux hands it on to the path integral."""
        g, fit, aux = super().gradient(theta, state, hp, batch)
        return g, fit, aux | {"fit_gradient": g}

    def after_move(self, state: State, before: Tensor, after: Tensor, aux: Aux) -> State:
        """Return the state with -g_i * (change of theta_i) added to omega_i (eq. 3)."""
        return state._replace(path=torch.addcmul(state.path, aux["fit_gradient"], after - before, value=-1))

    def after_phase(self, phase: str, theta: Tensor, state: State, hp: Hyper, pool: Pool) -> tuple[Tensor, State]:
        """Return theta, and the state with omega turned into Omega (eq. 5) and a new anchor."""
        gained = state.path / ((theta - state.anchor).square() + hp.xi)
        return theta, self.State(theta, torch.zeros_like(theta), (state.importance + gained).relu())

    def importance(self, state: State) -> Tensor:
        return state.importance
