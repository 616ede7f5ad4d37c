"""Incremental moment matching (Lee et al. 2017): train one task after another, evaluate the merged parameters.

    mean   theta* = sum_k theta_k / t                  the mean of the tasks' posteriors, k = 1 ... t
    mode   theta* = sum_k F_k theta_k / sum_k F_k      the mode of their mixture; F_k + 1e-8, as the authors' code

with equal weights alpha_k. Both are running sums, so no theta_k is stored. Three transfers make the merged parameters
lie in a valley of the loss:

    weight-transfer  theta_k starts from theta_{k-1} (never from the merged parameters); always
    L2-transfer      + lambda * ||theta_k - theta_{k-1}||^2, no 1/2
    drop-transfer    a hidden unit's incoming weights are theta_{k-1} with probability `drop`, a sample at a time,
                     otherwise (theta_k - drop * theta_{k-1}) / (1 - drop): dropout of what was learnt since

theta_0 are the initial parameters, for all three. (In the authors' code it is 0 for the last two: weight decay and
plain dropout in the first task. That decay erases outputs that belong to later tasks, and merging suffers: measured.)
Their dropout of the inputs, at half the rate, is left out. An output is merged over those tasks in which it could
answer; one that never could is as it is trained. Within a task, what is evaluated is the merge of the tasks before.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from clrun.strategy import (
    Aux,
    Batch,
    BatchNormMode,
    Gaussian,
    HealthRows,
    Knobs,
    Network,
    Pool,
    Strategy,
    Weights,
    cross_entropy,
    diagonal_fisher,
    later_tasks,
)

# A prime below 2^24, so that a float32 holds every integer below it exactly.
PRIME = 2**24 - 3


def uniform(noise: Tensor, first: int, width: int) -> Tensor:
    """Return random numbers (B, width) uniform in [0, 1), those of units first + 1 ... first + width.

    They are a + b i + c i^2 modulo a prime for unit i (Wegman & Carter 1981), where a, b and c of a sample come from
    noise (3, B) or more rows, uniform in [0, 1): any three units of a sample are independent.
    """
    a, b, c = (noise[:3] * 2**24).long()[..., None]  # (B, 1) each
    i = torch.arange(first + 1, first + width + 1, device=noise.device)
    return (a + b * i + c * (i * i % PRIME)) % PRIME / PRIME


class DropTransferWeights(Weights):
    """Weights of hidden layers in which some units are those of the previous task's weights.

    `previous` are the weights theta_{k-1}, and `scales` is {hidden layer: (B, units)}: 0 for a unit with the previous
    weights, 1 / (1 - drop) for others.
    """

    def __init__(
        self,
        pieces: Mapping[str, Tensor],
        mode: BatchNormMode,
        previous: Weights,
        scales: Mapping[str, Tensor],
    ):
        super().__init__(pieces, mode)
        self.previous, self.scales = previous, scales

    def linear(self, name: str, x: Tensor) -> Tensor:
        return self.mixed(name, super().linear(name, x), self.previous.linear(name, x))

    def conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        return self.mixed(name, super().conv(name, x, stride), self.previous.conv(name, x, stride))

    def mixed(self, name: str, new: Tensor, old: Tensor) -> Tensor:
        """Return old + scale * (new - old), for the outputs (B, units, ...) of new and previous weights."""
        if name == "head":
            return new
        scale = self.scales[name]
        return old + scale.view(scale.shape + (1,) * (new.dim() - 2)) * (new - old)


@dataclass(frozen=True)
class IMM(Strategy):
    """Incremental moment matching.

    Its state is three vectors (P,), 12 P bytes in float32, however many tasks there are. `merge` is "mode" or "mean",
    `fisher_samples` limits the samples of the Fisher information. `drop` is the probability of drop-transfer, a fixed
    choice because at 0 no second forward pass is needed.
    """

    fits_weights: ClassVar[bool] = True  # what is merged are the weights that a task ends with

    merge: str = "mode"
    drop: float = 0.0
    fisher_samples: int | None = None

    class Hyper(NamedTuple):
        lambda_: Tensor  # () strength of L2-transfer

    class State(NamedTuple):
        last: Tensor  # (P,) theta_{k-1}
        merged: Gaussian  # mean: the merged parameters; precision: sum of F_k, or the number of tasks

    @classmethod
    def incompatibility(cls, network: Network, optimizer: str, knobs: Knobs) -> str | None:
        if network.statistics():
            return (
                "batch norm's running statistics are those of the weights last trained, not of the merged ones; "
                f"{network.no_statistics}."
            )
        if knobs["fisher_samples"] is not None and knobs["merge"] != "mode":
            return "fisher_samples is read by merge=mode alone; type merge=mode with it, or leave fisher_samples out."
        return None

    def init(self, theta: Tensor) -> State:
        return self.State(theta, Gaussian(theta, torch.zeros_like(theta)))

    def loss(self, theta: Tensor, state: State, hp: Hyper, batch: Batch) -> tuple[Tensor, Aux]:
        """Return L_k(theta) + lambda * ||theta - theta_{k-1}||^2, with drop-transfer in L_k if drop > 0."""
        penalty = hp.lambda_ * (theta - state.last).square().sum()
        if self.drop == 0:
            fit, _ = super().loss(theta, state, hp, batch)
        else:
            fit = self.drop_transfer_loss(theta, state, batch)
        return fit + penalty, {"penalty": penalty}

    def drop_transfer_loss(self, theta: Tensor, state: State, batch: Batch) -> Tensor:
        """Return the cross entropy () with units dropped to the previous weights by the noise of this step."""
        previous = Weights(self.net.layout.view(state.last), self.net.mode)
        reader = partial(DropTransferWeights, previous=previous, scales=self.scales(batch.noise, theta))
        return cross_entropy(self.net.read_by(reader, theta, batch.x), batch)

    def scales(self, noise: Tensor, like: Tensor) -> dict[str, Tensor]:
        """Return {hidden layer: (B, units)}: 0 with probability `drop`, else 1 / (1 - drop)."""
        scales, first = {}, 0
        for name, shape in self.net.layout.shapes.items():
            if len(shape) > 1 and name != "head.weight":
                kept = (uniform(noise, first, shape[0]) >= self.drop).to(like)
                scales[name.removesuffix(".weight")] = kept / (1 - self.drop)
                first += shape[0]
        return scales

    def after_phase(self, phase: str, theta: Tensor, state: State, hp: Hyper, pool: Pool) -> tuple[Tensor, State]:
        """Return theta, and the state with theta_k added to the merge."""
        precision = self.precision(theta, state, hp, pool) * self.could_answer(theta, pool)
        return theta, self.State(theta, state.merged.absorb(theta, precision))

    def precision(self, theta: Tensor, state: State, hp: Hyper, pool: Pool) -> Tensor:
        """Return the precision (P,) of the posterior of the task just learnt: 1 for mean, F_k + 1e-8 for mode."""
        if self.merge == "mean":
            return torch.ones_like(theta)
        return diagonal_fisher(self, theta, state, hp, pool, samples=self.fisher_samples) + 1e-8

    def could_answer(self, theta: Tensor, pool: Pool) -> Tensor:
        """Return 0 for the parameters of outputs that could not answer in the task just learnt, else 1: (P,)."""
        stage = pool.stage[None]
        active = pool.tables.active[stage, stage][0].to(theta)  # (C,)
        pieces = {name: torch.ones_like(theta[:1]) for name in self.net.layout.shapes}
        return self.net.layout.flat(pieces | {"head.weight": active[:, None], "head.bias": active})

    def deploy(self, theta: Tensor, state: State, hp: Hyper) -> Tensor:
        """Return the merged parameters theta*; theta where nothing has been merged yet."""
        return torch.where(state.merged.precision > 0, state.merged.mean, theta)

    def health(self, state: State, hp: Hyper) -> dict[str, Tensor]:
        moved = torch.where(state.merged.precision > 0, state.merged.mean - state.last, 0)
        return {"merge_distance": moved.norm() / state.last.norm(), "precision_sum": state.merged.precision.sum()}

    @classmethod
    def warnings(cls, health: HealthRows, knobs: Knobs) -> list[str]:
        later = later_tasks(health)
        if not later or any(row["merge_distance"] > 1e-12 for row in later):
            return []
        return ["IMM's merged weights never differed from the last task's, so it did nothing: this is finetuning"]
