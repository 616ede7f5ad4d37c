"""Streaming linear discriminant analysis (Hayes & Kanan 2020, "Lifelong machine learning with deep streaming LDA").

    mu_c = s_c / n_c      Sigma = (S - sum_c n_c mu_c mu_c^T) / n      the covariance within classes
    Lambda = ((1 - rho) Sigma + rho tau I)^-1
    logit_c = (Lambda mu_c)^T f(x) - mu_c^T Lambda mu_c / 2

By default rho is the oracle approximating shrinkage of Chen et al. 2010 (eq. 23) and tau = tr(Sigma) / d:

    rho = ((1 - 2/d) tr(Sigma^2) + tr(Sigma)^2) / ((n + 1 - 2/d) (tr(Sigma^2) - tr(Sigma)^2 / d)), at most 1

With `shrinkage` typed, rho is that number and tau = 1, as in the paper, which has 1e-4. The authors update Sigma sample
by sample with the weight n/(n+1) of all samples, so that it depends on their order; the covariance above is what that
approaches. The features f, and why nothing is forgotten: clrun/strategy/closed_form.py.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clrun.strategy import ROUNDING, ClassSums, ClosedForm, LinearHead, nearest_mean, solved


def within_covariance(second: Tensor, sums: ClassSums) -> Tensor:
    """Return the covariance within classes (d, d), for the sum of f f^T over all samples (d, d)."""
    between = sums.total.mT @ sums.mean
    return (second - between) / sums.number.sum().clamp(min=1)


def oracle_shrinkage(covariance: Tensor, n: Tensor) -> Tensor:
    """Return rho () of Chen et al. 2010, eq. 23, for a covariance (d, d) of n () samples; 1 where there is no more."""
    d = len(covariance)
    trace, square = covariance.trace(), covariance.square().sum()
    numerator = (1 - 2 / d) * square + trace.square()
    denominator = (n + 1 - 2 / d) * (square - trace.square() / d)
    return torch.where(denominator > 0, numerator / denominator, 1).clamp(max=1)


@dataclass(frozen=True)
class SLDA(ClosedForm):
    """Streaming linear discriminant analysis.

    Its state is 8 (d^2 + 2 C d + 2 C + 1) bytes for C outputs and d features, however many tasks. `shrinkage` is rho;
    None is that of Chen et al.
    """

    shrinkage: float | None = None

    class State(NamedTuple):
        sums: ClassSums
        second: Tensor  # (d, d) sum of f f^T
        shrinkage: Tensor  # () rho of the head
        head: LinearHead

    def init(self, theta: Tensor) -> State:
        d = self.feature_count
        sums = ClassSums.empty(self.data.outputs, d, theta)
        zeros = theta.new_zeros(d, d, dtype=torch.float64)
        return self.State(sums, zeros, zeros.sum(), nearest_mean(sums.mean))

    def absorb(self, state: State, features: Tensor, targets: Tensor, place: Tensor, labels: Tensor) -> State:
        present = features * targets.sum(1, keepdim=True)
        return state._replace(sums=state.sums.add(features, targets), second=state.second + present.mT @ features)

    def solve(self, state: State, hp: Any) -> State:
        covariance, n = within_covariance(state.second, state.sums), state.sums.number.sum()
        if self.shrinkage is None:
            rho, tau = oracle_shrinkage(covariance, n), covariance.diagonal().mean()
        else:
            rho, tau = torch.full_like(n, self.shrinkage), torch.ones_like(n)
        identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
        shrunk = (1 - rho) * covariance + rho * tau * identity
        differ = covariance.trace() > ROUNDING * state.second.trace() / n
        shrunk = torch.where(differ, shrunk, identity)  # samples that do not differ: the nearest mean
        mean = state.sums.mean
        weight = solved(shrunk, mean.mT).mT
        return state._replace(shrinkage=rho, head=LinearHead(weight, -(weight * mean).sum(-1) / 2))

    def health(self, state: State, hp: Any) -> dict[str, Tensor]:
        return super().health(state, hp) | {"shrinkage_used": state.shrinkage}
