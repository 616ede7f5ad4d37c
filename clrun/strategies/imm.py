"""Incremental moment matching (Lee et al. 2017): train task after task, evaluate the merged weights.

    mean   theta* = sum_k theta_k / t                  the mean of the tasks' posteriors, k = 1 ... t
    mode   theta* = sum_k F_k theta_k / sum_k F_k      the mode of their mixture; F_k + 1e-8, as the authors' code

with equal alpha_k. Both are running sums, so no theta_k is kept. Three transfers make the merge land in a valley:

    weight-transfer  theta_k starts from theta_{k-1} (never from the merged weights); always
    L2-transfer      + lambda * ||theta_k - theta_{k-1}||^2, no 1/2
    drop-transfer    a hidden unit's incoming weights are theta_{k-1} with probability `drop`, a sample at a time,
                     otherwise (theta_k - drop * theta_{k-1}) / (1 - drop): dropout of what was learnt since

theta_0 is the network at birth, for all three. (In the authors' code it is 0 for the last two: weight decay and plain
dropout in the first task. Outputs that wait for later tasks are erased by that decay, and merging suffers: measured.)
Their dropout of the inputs, at half the rate, is left out. An output is merged over those tasks in which it could
answer; one that never could is as it is trained. Within a task, what is evaluated is the merge of the tasks before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clrun.data.stream import Batch, Pool
from clrun.models import Statistics, Weights
from clrun.strategy import Gaussian, Strategy, cross_entropy, fisher

PRIME = 2**24 - 3  # below it any whole number is a float32


def uniform(noise: Tensor, first: int, width: int) -> Tensor:
    """noise (3, B) -> (B, width) uniform in [0, 1), the draws of units first + 1 ... first + width.

    u_i = a + b i + c i^2 modulo a prime (Wegman & Carter 1981): any three units of a sample are independent.
    """
    a, b, c = (noise[:3] * 2**24).long()[..., None]  # (B, 1) each
    i = torch.arange(first + 1, first + width + 1, device=noise.device)
    return (a + b * i + c * (i * i % PRIME)) % PRIME / PRIME


class Dropped(Weights):
    """Hidden layers of which some units are those of the previous weights."""

    def __init__(
        self, pieces: Mapping[str, Tensor], statistics: Statistics | None, previous: Weights, scales: dict[str, Tensor]
    ):
        super().__init__(pieces, statistics)
        self.previous, self.scales = previous, scales

    def linear(self, name: str, x: Tensor) -> Tensor:
        return self.mixed(name, super().linear(name, x), self.previous.linear(name, x))

    def conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        return self.mixed(name, super().conv(name, x, stride), self.previous.conv(name, x, stride))

    def mixed(self, name: str, new: Tensor, old: Tensor) -> Tensor:
        """(B, units, ...): old + scale * (new - old)."""
        if name == "head":
            return new
        scale = self.scales[name]
        return old + scale.view(scale.shape + (1,) * (new.dim() - 2)) * (new - old)


@dataclass(frozen=True)
class IMM(Strategy):
    """State: 3 P floats, however many tasks. `drop` is a fixed choice, as without it no second pass is needed."""

    merge: str = "mode"
    drop: float = 0.0
    fisher_samples: int | None = None

    class Hyper(NamedTuple):
        lambda_: Tensor  # ()

    class State(NamedTuple):
        last: Tensor  # (P,) theta_{k-1}
        merged: Gaussian

    @classmethod
    def incompatibility(cls, network, optimizer, knobs):
        if network.statistics():
            return (
                "batch norm's running statistics are those of the weights last trained, not of the merged ones; "
                "type model.norm=group."
            )
        if knobs["fisher_samples"] is not None and knobs["merge"] != "mode":
            return "fisher_samples is read by merge=mode alone; type merge=mode with it, or leave fisher_samples out."
        return None

    def init(self, theta):
        return self.State(theta, Gaussian(theta, torch.zeros_like(theta)))

    def loss(self, theta, state, hp, batch):
        penalty = hp.lambda_ * (theta - state.last).square().sum()
        fit = super().loss(theta, state, hp, batch)[0] if self.drop == 0 else self.dropped(theta, state, batch)
        return fit + penalty, {"penalty": penalty}

    def dropped(self, theta: Tensor, state: "IMM.Own", batch: Batch) -> Tensor:
        """Cross entropy with the draws of this step."""
        previous = Weights(self.net.layout.view(state.last), None)
        reader = partial(Dropped, previous=previous, scales=self.scales(batch.noise, theta))
        return cross_entropy(replace(self.net, reader=reader)(theta, batch.x), batch)

    def scales(self, noise: Tensor, like: Tensor) -> dict[str, Tensor]:
        """{hidden layer: (B, units)}: 0 with probability `drop`, else 1 / (1 - drop)."""
        scales, first = {}, 0
        for name, shape in self.net.layout.shapes.items():
            if len(shape) > 1 and name != "head.weight":
                kept = (uniform(noise, first, shape[0]) >= self.drop).to(like)
                scales[name.removesuffix(".weight")] = kept / (1 - self.drop)
                first += shape[0]
        return scales

    def after_phase(self, phase, theta, state, hp, pool):
        precision = self.precision(theta, state, hp, pool) * self.could_answer(theta, pool)
        return theta, self.State(theta, state.merged.absorb(theta, precision))

    def precision(self, theta: Tensor, state: "IMM.Own", hp: Any, pool: Pool) -> Tensor:
        """(P,): of the task's posterior."""
        if self.merge == "mean":
            return torch.ones_like(theta)
        return fisher(self, theta, state, hp, pool, samples=self.fisher_samples) + 1e-8

    def could_answer(self, theta: Tensor, pool: Pool) -> Tensor:
        """(P,): 0 for the weights of outputs that could not answer in the task just learnt, else 1."""
        stage = pool.stage[None]
        answering = pool.tables.active[stage, stage][0].to(theta)  # (C,)
        pieces = {name: torch.ones_like(theta[:1]) for name in self.net.layout.shapes}
        return self.net.layout.flat(pieces | {"head.weight": answering[:, None], "head.bias": answering})

    def deploy(self, theta, state, hp):
        return torch.where(state.merged.precision > 0, state.merged.mean, theta)

    def health(self, state, hp):
        moved = torch.where(state.merged.precision > 0, state.merged.mean - state.last, 0)
        return {"merge_distance": moved.norm() / state.last.norm(), "precision_sum": state.merged.precision.sum()}

    @classmethod
    def warnings(cls, health: Sequence[Mapping[str, float]], knobs: Mapping[str, Any]) -> list[str]:
        if len(health) < 2 or any(row["merge_distance"] > 1e-12 for row in health[1:]):
            return []
        return ["IMM's merged weights never differed from the last task's, so it did nothing: this is finetuning"]
