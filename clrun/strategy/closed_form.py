"""The base class of methods whose head follows from sums over samples, without gradients (ncm, slda, fecam, ranpac).

A feature f(x) is a vector of d numbers. What a method keeps are sums over all samples so far, such as

    n_c = sum 1[y = c]      s_c = sum 1[y = c] f(x)      S = sum f(x) f(x)^T

and its head is a function of these sums. A sum does not depend on the order of its terms. So the head after all tasks
is that of joint training on all samples, whatever the tasks were: nothing is forgotten. A setting that is chosen on
samples held out of each task, as RanPAC's ridge is unless it is typed, may differ with the tasks. Sums and heads have
float64, since what is left over of a difference of large sums must be accurate. Answers are compared in the type of
theta: of two outputs whose scores agree to the 7 digits of float32, the first answers.

`trunk` says what f(x) is:

    none         the sample itself: pixels, or the features that a data set consists of
    initial      the last hidden layer of the network as it starts, random or with the weights of `model.weights`
    first_task   the last hidden layer of the network after it was trained on the first task; it then stays as it is
"""

from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from clrun.data.batches import Pool
from clrun.models import Linear, Network
from clrun.strategy.base import HealthRows, Knobs, Strategy, Tree

# Samples whose features are computed at once.
CHUNK_SAMPLES = 1024

# Share: a variance below this part of the mean square is what rounding has left of a difference of sums.
ROUNDING = 1e-12


class LinearHead(NamedTuple):
    """A head whose scores are weight f + bias."""

    weight: Tensor  # (C, d)
    bias: Tensor  # (C,)

    def scores(self, features: Tensor) -> Tensor:
        """Return the scores (B, C) of features (B, d)."""
        return features @ self.weight.mT + self.bias


class ClassSums(NamedTuple):
    """Number and sum of the features of each output."""

    number: Tensor  # (C,)
    total: Tensor  # (C, d)

    @classmethod
    def empty(cls, outputs: int, features: int, like: Tensor) -> "ClassSums":
        """Return the sums over no sample, on the device of `like`."""
        zeros = like.new_zeros(outputs, features, dtype=torch.float64)
        return cls(zeros.sum(1), zeros)

    def add(self, features: Tensor, targets: Tensor) -> "ClassSums":
        """Return the sums with samples added: features (B, d), targets (B, C) one-hot, rows of zeros for no sample."""
        return ClassSums(self.number + targets.sum(0), self.total + targets.mT @ features)

    @property
    def mean(self) -> Tensor:
        """The mean (C, d) of each output; 0 where there is no sample."""
        return self.total / self.number.clamp(min=1)[:, None]


def nearest_mean(means: Tensor) -> LinearHead:
    """Return the head of the nearest of means (C, d): its scores are those of -|f - mean|^2 / 2, up to a constant."""
    return LinearHead(means, -means.square().sum(-1) / 2)


def lowered(scores: Tensor, known: Tensor) -> Tensor:
    """Return scores (B, C) in which outputs that are not `known` (C,) come last; 0 for all where none is known."""
    worst = torch.where(known, scores, torch.inf).min(-1, keepdim=True).values - 1
    return torch.where(known, scores, torch.where(known.any(), worst, 0))


@dataclass(frozen=True)
class ClosedForm(Strategy):
    """A base class for methods whose head is computed from sums over the samples' features.

    A subclass has a state with fields `sums` (a ClassSums, or a tuple with a field `number`) and `head`, and overrides
    `init`, `absorb`, `solve` and, unless the head is linear, `head_scores`. `logits` and `loss` remain those of the
    network, which is trained on the first task with trunk=first_task and else never.
    """

    fits_weights: ClassVar[bool] = True

    trunk: str = "none"

    # ---------------------------------------------------------------- for subclasses

    def absorb(self, state: Tree, features: Tensor, targets: Tensor, place: Tensor, labels: Tensor) -> Tree:
        """Return the state with the samples of a chunk in its sums.

        features (B, d) and targets (B, C) have float64. The targets are one-hot, and 0 where there is no sample. place
        (B,) is the place of the sample in its task, from 0, which is random. Only targets of the outputs `labels` (k,)
        can be 1: those that stand for a class of the task, or of the task of a run beside this one.
        """
        raise NotImplementedError

    def solve(self, state: Tree, hp: Any) -> Tree:
        """Return the state with the head that belongs to its sums."""
        raise NotImplementedError

    def head_scores(self, state: Tree, hp: Any, features: Tensor) -> Tensor:
        """Return the scores (B, C) of features (B, d); by default those of a LinearHead."""
        return state.head.scores(features)

    def raw_features(self, theta: Tensor, x: Tensor) -> Tensor:
        """Return f(x) (B, d) in float64."""
        return (x.flatten(1) if self.trunk == "none" else self.net.features(theta, x)).double()

    @property
    def feature_count(self) -> int:
        """The number d of features."""
        return prod(self.data.images.shape[1:]) if self.trunk == "none" else self.net.feature_count

    # ---------------------------------------------------------------- hooks

    @classmethod
    def incompatibility(cls, network: Network, optimizer: str, knobs: Knobs) -> str | None:
        if knobs["trunk"] != "none" and isinstance(network, Linear):
            return "a linear network has no hidden layer that could be its trunk; type trunk=none or model=mlp."
        return None

    def takes_steps(self, stage: int) -> bool:
        return self.trunk == "first_task" and stage == 0

    def scores(self, theta: Tensor, state: Tree, hp: Any, x: Tensor, t: Tensor) -> Tensor:
        """Return the scores (B, outputs) of the head; with trunk=first_task and no head yet, the network's logits."""
        known = state.sums.number > 0
        scores = lowered(self.head_scores(state, hp, self.raw_features(theta, x)), known).to(theta.dtype)
        return torch.where(known.any(), scores, self.net(theta, x)) if self.trunk == "first_task" else scores

    def after_phase(self, phase: str, theta: Tensor, state: Tree, hp: Any, pool: Pool) -> tuple[Tensor, Tree]:
        """Return theta, and the state with all samples of the task in its sums and a new head."""
        first = 0
        for batch in self.data.chunks(pool, self.data.share(CHUNK_SAMPLES)):
            outputs = torch.arange(self.data.outputs, device=batch.y.device)
            targets = (batch.y[:, None] == outputs).double() * batch.weight[:, None].double()
            place = torch.arange(first, first + len(batch.y), device=batch.y.device)
            state = self.absorb(state, self.raw_features(theta, batch.x), targets, place, pool.labels)
            first += len(batch.y)
        return theta, self.solve(state, hp)

    def health(self, state: Tree, hp: Any) -> dict[str, Tensor]:
        return {"summed_samples": state.sums.number.sum(), "summed_outputs": (state.sums.number > 0).sum()}

    @classmethod
    def warnings(cls, health: HealthRows, knobs: Knobs) -> list[str]:
        if health and health[-1]["summed_samples"] == 0:
            return [f"no sample reached {cls.__name__}'s sums, so it has no head and learnt nothing"]
        if len(health) > 1 and health[0]["summed_samples"] == health[-1]["summed_samples"]:
            return [f"no sample reached {cls.__name__}'s sums after the first task, so it learnt no other"]
        return []


def solved(matrix: Tensor, right: Tensor) -> Tensor:
    """Return matrix^-1 right for symmetric positive definite matrices (..., d, d) and right (..., d, k).

    Where a matrix is not, such as one that is not finite, the result is no number, and no error is raised: in a stack,
    the other runs must not notice.
    """
    factor, failed = torch.linalg.cholesky_ex(matrix)
    # Two triangular systems: torch.cholesky_solve of several matrices cannot be captured as a CUDA graph.
    forward = torch.linalg.solve_triangular(factor, right, upper=False)
    solution = torch.linalg.solve_triangular(factor.mT, forward, upper=True)
    return torch.where((failed == 0)[..., None, None], solution, torch.nan)
