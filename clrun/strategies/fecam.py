"""FeCAM (Goswami et al. 2023, "Exploiting the heterogeneity of class distributions"): a covariance for every class.

    g(x) = sign(f) |f|^tukey, entry by entry      mu_c: g of the mean feature of class c      Sigma_c: covariance of g
    Sigma_c <- Sigma_c + gamma1 V1 I + gamma2 V2 (1 - I)      V1, V2: mean entry on and off the diagonal of Sigma_c
    Sigma_c <- Sigma_c / (sigma sigma^T)      sigma_i^2 = Sigma_c,ii, so that the diagonal is 1
    logit_c = -1/2 (g/|g| - mu_c/|mu_c|)^T Sigma_c^-1 (g/|g| - mu_c/|mu_c|)

covariance=shared has the covariance within classes in place of Sigma_c. The paper raises features that are not negative
to a power; the sign is our extension to others. The authors answer the first task by plain distances; here all tasks
are answered alike. The authors' code shrinks every Sigma_c twice and divides by n - 1; here it is shrunk once, and
divided by n. Their V2 is the mean of the entries that are not 0. Their shared covariance is that of all features of a
task around one mean, averaged over the tasks by their numbers of classes, and is not scaled to a diagonal of 1; ours is
within classes, over all samples, and is scaled.

gamma1 > gamma2 keeps the matrices positive definite. With gamma1 = gamma2 they have no inverse where the features of a
class have a constant sum, as shares do, or are all equal. The authors then take the pseudo-inverse; here 1e-6 is added
to the diagonal, and a smaller gamma2 is the better choice.

rule=qda is quadratic discriminant analysis, with the pooled covariance Sigma of all classes and mu_c the mean of g:

    Sigma_c <- Sigma_c + gamma1 tr(Sigma)/d I
    logit_c = -1/2 (g - mu_c)^T Sigma_c^-1 (g - mu_c) - 1/2 log det Sigma_c

The features f, and why nothing is forgotten: clrun/strategy/closed_form.py.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clrun.strategy import ROUNDING, ClassSums, ClosedForm, Knobs, Network

# The part of its mean variance that is added to a matrix which has no inverse but for rounding.
JITTER = 1e-6

# A pivot of a Cholesky factor below this part of the diagonal is what rounding leaves of 0.
LEAST_PIVOT = 1e-12


class QuadraticHead(NamedTuple):
    """A head whose scores are -1/2 (g - mean)^T precision (g - mean) + bias."""

    mean: Tensor  # (C, d)
    precision: Tensor  # (C, d, d); (1, d, d) where all outputs share it
    bias: Tensor  # (C,)

    def scores(self, g: Tensor) -> Tensor:
        """Return the scores (B, C) of transformed features g (B, d)."""
        away = [g - mean for mean in self.mean]  # one output at a time: (C, B, d) may be large
        precision = self.precision.expand(len(away), -1, -1)
        distances = [((v @ matrix) * v).sum(-1) for v, matrix in zip(away, precision, strict=True)]
        return torch.stack(distances, -1) / -2 + self.bias


@dataclass(frozen=True)
class FeCAM(ClosedForm):
    """FeCAM, and quadratic discriminant analysis.

    Its state is 8 (2 K d^2 + 3 C d + 3 C) bytes for C outputs and d features, with K = C, or K = 1 for
    covariance=shared, however many tasks.
    """

    rule: str = "fecam"
    covariance: str = "class"
    tukey: float = 0.5

    class Hyper(NamedTuple):
        gamma1: Tensor  # () shrinkage of the diagonal
        gamma2: Tensor  # () shrinkage of the other entries

    class State(NamedTuple):
        raw: ClassSums  # of f
        sums: ClassSums  # of g
        second: Tensor  # (K, d, d) sum of g g^T
        head: QuadraticHead

    @classmethod
    def incompatibility(cls, network: Network, optimizer: str, knobs: Knobs) -> str | None:
        if knobs["rule"] == "qda" and knobs["gamma2"] != 1:
            return "gamma2 is read by rule=fecam alone; leave it out."
        if knobs["rule"] == "qda" and knobs["covariance"] != "class":
            return "rule=qda has a covariance for every class; leave covariance out, or type strategy=slda."
        if knobs["rule"] == "fecam" and knobs["gamma2"] > knobs["gamma1"]:
            return "gamma2 above gamma1 can make a covariance that has no inverse; type a gamma2 of at most gamma1."
        return super().incompatibility(network, optimizer, knobs)

    def init(self, theta: Tensor) -> State:
        C, d = self.data.outputs, self.feature_count
        sums = ClassSums.empty(C, d, theta)
        matrices = 1 if self.covariance == "shared" else C
        zeros = theta.new_zeros(matrices, d, d, dtype=torch.float64)
        return self.State(sums, sums, zeros, QuadraticHead(sums.mean, zeros, sums.number))

    def transform(self, features: Tensor) -> Tensor:
        """Return sign(f) |f|^tukey."""
        return features if self.tukey == 1 else features.sign() * features.abs() ** self.tukey

    def absorb(self, state: State, features: Tensor, targets: Tensor, place: Tensor, labels: Tensor) -> State:
        g = self.transform(features)
        return state._replace(
            raw=state.raw.add(features, targets),
            sums=state.sums.add(g, targets),
            second=state.second + self.second_moments(g, targets, labels),
        )

    def second_moments(self, g: Tensor, targets: Tensor, labels: Tensor) -> Tensor:
        """Return the sums of g g^T (K, d, d) over samples g (B, d), of each output or of all."""
        if self.covariance == "shared":
            return (g * targets.sum(1, keepdim=True)).mT[None] @ g
        moments = [(g * own[:, None]).mT @ g for own in targets.index_select(1, labels).unbind(1)]
        zeros = g.new_zeros(targets.shape[1], g.shape[1], g.shape[1])
        return zeros.index_add(0, labels, torch.stack(moments))

    def covariances(self, state: State) -> Tensor:
        """Return the covariances of g (K, d, d), of each output or within all."""
        between = state.sums.total[:, :, None] * state.sums.mean[:, None]
        if self.covariance == "shared":
            return (state.second - between.sum(0)) / state.sums.number.sum().clamp(min=1)
        return (state.second - between) / state.sums.number.clamp(min=1)[:, None, None]

    def solve(self, state: State, hp: Hyper) -> State:
        covariances = self.covariances(state)
        identity = torch.eye(covariances.shape[-1], dtype=covariances.dtype, device=covariances.device)
        if self.rule == "qda":
            weights = state.sums.number / state.sums.number.sum().clamp(min=1)
            pooled = (weights @ covariances.diagonal(dim1=1, dim2=2)).mean()
            matrices = covariances + hp.gamma1 * pooled * identity
            matrices = torch.where(self.differ(pooled, state), matrices, identity)
            factor = definite_factor(matrices)
            bias = -factor.diagonal(dim1=1, dim2=2).log().sum(-1)
            return state._replace(head=QuadraticHead(state.sums.mean, inverse(factor), bias))
        varies = self.differ(covariances.diagonal(dim1=1, dim2=2).mean(-1), state)[:, None, None]
        matrices = torch.where(varies, self.correlations(covariances, hp), identity)
        precision = inverse(definite_factor(matrices))
        mean = F.normalize(self.transform(state.raw.mean), dim=-1)
        return state._replace(head=QuadraticHead(mean, precision, torch.zeros_like(state.sums.number)))

    @staticmethod
    def correlations(covariances: Tensor, hp: Hyper) -> Tensor:
        """Return the shrunk covariances (K, d, d), scaled to a diagonal of 1."""
        d = covariances.shape[-1]
        identity = torch.eye(d, dtype=covariances.dtype, device=covariances.device)
        on = covariances.diagonal(dim1=1, dim2=2).mean(-1)
        off = (covariances.sum((1, 2)) - d * on) / max(1, d * (d - 1))
        on_weight, off_weight = (hp.gamma1 * on)[:, None, None], (hp.gamma2 * off)[:, None, None]
        shrunk = covariances + on_weight * identity + off_weight * (1 - identity)
        scale = shrunk.diagonal(dim1=1, dim2=2).clamp(min=torch.finfo(shrunk.dtype).tiny).rsqrt()
        return shrunk * scale[:, :, None] * scale[:, None]

    def differ(self, variance: Tensor, state: State) -> Tensor:
        """Return whether a mean variance of the features g is more than rounding."""
        mean_square = state.second.diagonal(dim1=1, dim2=2).sum(0).mean() / state.sums.number.sum()
        return variance > ROUNDING * mean_square

    def head_scores(self, state: State, hp: Hyper, features: Tensor) -> Tensor:
        g = self.transform(features)
        return state.head.scores(g if self.rule == "qda" else F.normalize(g, dim=-1))

    def health(self, state: State, hp: Hyper) -> dict[str, Tensor]:
        least = torch.where(state.sums.number > 0, state.sums.number, torch.inf).min()
        return super().health(state, hp) | {"samples_per_feature": least / self.feature_count}


def definite_factor(matrices: Tensor) -> Tensor:
    """Return the Cholesky factors (K, d, d) of matrices, of which those that are singular or, by rounding, indefinite
    get a little more on their diagonal."""
    factor, failed = torch.linalg.cholesky_ex(matrices)
    diagonal = matrices.diagonal(dim1=1, dim2=2)
    singular = (factor.diagonal(dim1=1, dim2=2).square() < LEAST_PIVOT * diagonal).any(-1) | (failed > 0)
    added = torch.where(singular, JITTER, 0.0) * diagonal.mean(-1)
    return torch.linalg.cholesky_ex(matrices + torch.diag_embed(added[:, None].expand(-1, matrices.shape[-1])))[0]


def inverse(factor: Tensor) -> Tensor:
    """Return the inverses (K, d, d) of matrices with Cholesky factors (K, d, d)."""
    return torch.cholesky_inverse(factor)
