"""Memory aware synapses (Aljundi et al. 2018, eqs. 2 to 4 and section 4.1).

    Omega_i += 1/N sum_n | d ||f(x_n; theta)||_2^2 / d theta_i |          at the end of a task; over its own inputs
    L(theta) = L_t(theta) + lambda * sum_i Omega_i (theta_i - theta*_i)^2    no 1/2; theta* is where the last task ended

The absolute value is taken a sample at a time, as the paper has it, not of a batch's sum as most code does: Omega does
not depend on any batch size. No label is read. f are the outputs that may answer: in task-incremental streams a task's
own, in class-incremental ones those of the classes seen so far (or of all, as `active` says), in domain-incremental
ones all.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from clrun.data.stream import Batch
from clrun.strategy import Quadratic, QuadraticPenalty, Score, summed


def squared_norm(logits: Tensor, active: Tensor) -> Tensor:
    """||f||^2 over the outputs that may answer. logits, active (B, C) -> (B, 1)."""
    return (logits * active).square().sum(-1, keepdim=True)


def each_sample(values: Tensor, batch: Batch) -> Iterator[Tensor]:
    """One cotangent: the value itself, of the samples that are there."""
    yield batch.weight[:, None].to(values)


SENSITIVITY = Score(squared_norm, each_sample, torch.abs)


@dataclass(frozen=True)
class MAS(QuadraticPenalty):
    """State: 2 P floats, however many tasks. `samples`: how many of a task its Omega is a mean over (None: all)."""

    samples: int | None = None

    class Hyper(NamedTuple):
        lambda_: Tensor  # ()

    class State(NamedTuple):
        anchor: Tensor  # (P,) theta*
        importance: Tensor  # (P,) Omega

    def init(self, theta):
        return self.State(theta, torch.zeros_like(theta))

    def quadratic(self, state, hp):
        return Quadratic(2 * hp.lambda_, state.anchor, state.importance)

    def after_phase(self, phase, theta, state, hp, pool):
        pool = pool.first(self.samples)
        sensitivity = summed(self, theta, state, hp, pool, SENSITIVITY) / pool.weight.sum().clamp(min=1)
        return theta, self.State(theta, state.importance + sensitivity)

    def importance(self, state):
        return state.importance
