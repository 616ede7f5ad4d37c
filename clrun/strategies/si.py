"""Synaptic intelligence (Zenke et al. 2017, eqs. 3 to 5).

    omega_i  = - sum over the task's steps of g_i * (change of theta_i),  g the gradient of L_t alone
    Omega_i <- relu(Omega_i + omega_i / ((theta_i - theta*_i)^2 + xi))    at the end of a task
    L(theta) = L_t(theta) + c * sum_i Omega_i (theta_i - theta*_i)^2      no 1/2; theta* is where the last task ended

The path integral takes the gradient without the penalty (eq. 3), not that of the whole loss as some libraries do. The
relu is not in the paper but in its authors' code: a path that ends at a higher loss would push weights away.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from clrun.strategy import Quadratic, QuadraticPenalty


@dataclass(frozen=True)
class SI(QuadraticPenalty):
    """State: 3 P floats, however many tasks. No pass over the data at a task's end."""

    strength: ClassVar[str] = "c"

    class Hyper(NamedTuple):
        c: Tensor  # ()
        xi: Tensor  # ()

    class State(NamedTuple):
        anchor: Tensor  # (P,) theta*
        path: Tensor  # (P,) omega
        importance: Tensor  # (P,) Omega

    def init(self, theta):
        return self.State(theta, torch.zeros_like(theta), torch.zeros_like(theta))

    def quadratic(self, state, hp):
        return Quadratic(2 * hp.c, state.anchor, state.importance)

    def gradient(self, theta, state, hp, batch):
        g, fit, aux = super().gradient(theta, state, hp, batch)
        return g, fit, aux | {"fit_gradient": g}

    def after_move(self, state, before, after, aux):
        return state._replace(path=torch.addcmul(state.path, aux["fit_gradient"], after - before, value=-1))

    def after_phase(self, phase, theta, state, hp, pool):
        gained = state.path / ((theta - state.anchor).square() + hp.xi)
        return theta, self.State(theta, torch.zeros_like(theta), (state.importance + gained).relu())

    def importance(self, state):
        return state.importance
