"""RanPAC (McDonnell et al. 2023): random features, and ridge regression on them.

    h(x) = relu(f(x) W)      W of size d x units with entries from N(0, 1), drawn once and never trained
    G = sum h h^T      Q = sum h y^T, y one-hot      logits = h^T (G + ridge I)^-1 Q

By default `ridge` is the one of 10^-8, 10^-7, ..., 10^8 whose squared error is least on a fifth of the training samples
of every task, when it is fitted to the other four fifths; the head is then fitted to all of them. No test sample is
read. The authors choose by the newest task alone; here all tasks so far count, since both squared errors and fits
follow from sums over the two parts (our reading). Which samples are held out follows from the tasks, so another split
of the same samples may choose another ridge; with a typed one the head does not depend on the split. With units=0 the
features are f themselves: plain ridge regression.

Left out: in the first session the paper adapts its pretrained network to the data, through a few added parameters, and
then freezes it. trunk=first_task comes nearest: it trains the whole network on the first task.
The features f, and why nothing is forgotten: clrun/strategy/closed_form.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clrun.strategy import ClosedForm, LinearHead, solved

# One sample of this many is held out to choose the strength.
HELD_OUT = 5

# The strengths that are tried.
RIDGES = tuple(10.0**k for k in range(-8, 9))


class Moments(NamedTuple):
    """Sums over samples with features h (M,) and one-hot targets y (C,)."""

    number: Tensor  # (C,)
    gram: Tensor  # (M, M) sum of h h^T
    cross: Tensor  # (M, C) sum of h y^T

    @classmethod
    def empty(cls, outputs: int, features: int, like: Tensor) -> "Moments":
        """Return the sums over no sample, on the device of `like`."""
        zeros = like.new_zeros(features, outputs, dtype=torch.float64)
        return cls(like.new_zeros(outputs, dtype=torch.float64), zeros.new_zeros(features, features), zeros)

    def add(self, h: Tensor, targets: Tensor) -> "Moments":
        """Return the sums with samples h (B, M) and targets (B, C) added; a target of zeros stands for no sample."""
        present = h * targets.sum(1, keepdim=True)
        return Moments(self.number + targets.sum(0), self.gram + present.mT @ h, self.cross + h.mT @ targets)

    def without(self, part: "Moments") -> "Moments":
        """Return the sums without the samples of a part of them."""
        return Moments(self.number - part.number, self.gram - part.gram, self.cross - part.cross)

    def ridge_weights(self, ridge: Tensor) -> Tensor:
        """Return (G + ridge I)^-1 Q (M, C); not a number where the matrix is not positive definite."""
        identity = torch.eye(len(self.gram), dtype=self.gram.dtype, device=self.gram.device)
        return solved(self.gram + ridge * identity, self.cross)

    def squared_error(self, weights: Tensor) -> Tensor:
        """Return the sum () of |y - weights^T h|^2 over the samples."""
        return self.number.sum() - 2 * (weights * self.cross).sum() + (weights * (self.gram @ weights)).sum()


@dataclass(frozen=True)
class RanPAC(ClosedForm):
    """RanPAC.

    Its state is the random weights and 8 (2 M^2 + 3 M C + 3 C + 1) bytes for C outputs and M features, however many
    tasks; with `ridge` typed, 8 (M^2 + 2 M C + 2 C + 1). `units` is M; with 0, M is the number of features f.
    """

    units: int = 1000
    ridge: float | None = None

    class State(NamedTuple):
        projection: Tensor  # (d, units) W; (0, 0) for units=0
        sums: Moments  # of all samples
        held_out: Moments  # of those that the strength is chosen by; of size 0 where it is typed
        ridge: Tensor  # () the strength of the head
        head: LinearHead

    @property
    def hidden_count(self) -> int:
        """The number M of features of the ridge regression."""
        return self.units or self.feature_count

    def draws(self) -> dict[str, Tensor]:
        """Return the random weights W (d, units)."""
        return {"projection": torch.randn(self.feature_count, self.units)}

    def init_drawn(self, theta: Tensor, drawn: Mapping[str, Tensor]) -> State:
        C, M = self.data.outputs, self.hidden_count
        zeros = torch.zeros((), dtype=torch.float64, device=theta.device)
        head = LinearHead(zeros.repeat(C, M), zeros.repeat(C))
        held = Moments.empty(C, M if self.ridge is None else 0, theta)
        return self.State(drawn["projection"], Moments.empty(C, M, theta), held, zeros, head)

    def hidden(self, state: State, features: Tensor) -> Tensor:
        """Return h (B, M) for features f (B, d)."""
        return (features @ state.projection.to(features.dtype)).relu() if self.units else features

    def absorb(self, state: State, features: Tensor, targets: Tensor, place: Tensor, labels: Tensor) -> State:
        h = self.hidden(state, features)
        state = state._replace(sums=state.sums.add(h, targets))
        if self.ridge is not None:
            return state
        held_out = targets * (place % HELD_OUT == 0)[:, None]
        return state._replace(held_out=state.held_out.add(h, held_out))

    def solve(self, state: State, hp: Any) -> State:
        typed = None if self.ridge is None else torch.full_like(state.ridge, self.ridge)
        ridge = self.best_ridge(state) if typed is None else typed
        weights = state.sums.ridge_weights(ridge)
        return state._replace(ridge=ridge, head=LinearHead(weights.mT, torch.zeros_like(state.sums.number)))

    @staticmethod
    def best_ridge(state: State) -> Tensor:
        """Return the strength () whose squared error on the samples held out is least, when fitted to the others."""
        ridges = torch.tensor(RIDGES, dtype=state.ridge.dtype, device=state.ridge.device)
        fitted = state.sums.without(state.held_out)
        errors = [state.held_out.squared_error(fitted.ridge_weights(ridge)) for ridge in ridges]
        return ridges[torch.stack(errors).nan_to_num(torch.inf, torch.inf).argmin()[None]][0]

    def head_scores(self, state: State, hp: Any, features: Tensor) -> Tensor:
        return state.head.scores(self.hidden(state, features))

    def health(self, state: State, hp: Any) -> dict[str, Tensor]:
        return super().health(state, hp) | {"ridge_used": state.ridge}
