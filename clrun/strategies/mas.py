"""Memory aware synapses (Aljundi et al. 2018, eqs. 2 to 4 and section 4.1).

    Omega_i += 1/N sum_n | d ||f(x_n; theta)||_2^2 / d theta_i |          at the end of a task, over its own inputs
    L(theta) = L_t(theta) + lambda * sum_i Omega_i (theta_i - theta*_i)^2    no 1/2

where theta* are the parameters at the end of the last task. The absolute value is taken of each sample's gradient, as
in the paper, and not of a batch's sum as in most code, so Omega does not depend on any batch size. Labels are not used.
f are the outputs that may answer: in task-incremental streams the task's own, in class-incremental ones those of the
classes seen so far (or of all, as `active` says), in domain-incremental ones all.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from clrun.strategy import Batch, PerSampleMeasure, Pool, Quadratic, QuadraticPenalty, sum_over_samples


def squared_norm(logits: Tensor, active: Tensor) -> Tensor:
    """Return ||f||^2 (B, 1) over the outputs that may answer, for logits (B, C) and active (B, C) bool."""
    return (logits * active).square().sum(-1, keepdim=True)


def value_itself(values: Tensor, batch: Batch) -> Iterator[Tensor]:
    """Yield one cotangent (B, 1), which selects the value of each sample and is 0 where there is no sample."""
    yield batch.weight[:, None].to(values)


SENSITIVITY = PerSampleMeasure(squared_norm, value_itself, torch.abs)


@dataclass(frozen=True)
class MAS(QuadraticPenalty):
    """Memory aware synapses.

    Its state is two vectors (P,), so 8 P bytes in float32, however many tasks there are. `samples` is the number N of
    samples of a task, None for all.
    """

    samples: int | None = None

    class Hyper(NamedTuple):
        lambda_: Tensor  # () strength of the penalty

    class State(NamedTuple):
        anchor: Tensor  # (P,) theta*
        importance: Tensor  # (P,) Omega

    def init(self, theta: Tensor) -> State:
        return self.State(theta, torch.zeros_like(theta))

    def quadratic(self, state: State, hp: Hyper) -> Quadratic:
        """Return lambda sum_i Omega_i (theta_i - theta*_i)^2, the penalty of eq. 4."""
        return Quadratic(2 * hp.lambda_, state.anchor, state.importance)

    def after_phase(self, phase: str, theta: Tensor, state: State, hp: Hyper, pool: Pool) -> tuple[Tensor, State]:
        """Return theta, and the state with the mean sensitivity of the task added to Omega (eq. 3)."""
        pool = pool.first(self.samples)
        sensitivity = sum_over_samples(self, theta, state, hp, pool, SENSITIVITY) / pool.weight.sum().clamp(min=1)
        return theta, self.State(theta, state.importance + sensitivity)

    def importance(self, state: State) -> Tensor:
        return state.importance
