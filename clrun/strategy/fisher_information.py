"""The diagonal of the Fisher information, F_i = mean_x E_y [ (d log p(y|x) / d theta_i)^2 ] (Kirkpatrick et al. 2017).

The square is taken of each sample's own gradient, so F does not depend on any batch size. The estimators differ in y:

    exact      every y, weighted by p(y|x)            (Kunstner et al. 2019; van de Ven 2025)
    empirical  the true label
    sampled    one y drawn from p(y|x)
    batched    the true labels, but the square of a batch's MEAN gradient: what many libraries compute, orders of
               magnitude smaller, and a function of the batch size
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from clrun.data.batches import Batch, Pool
from clrun.strategy.base import Strategy, Tree
from clrun.strategy.gradients import gradient_of
from clrun.strategy.loss import cross_entropy, log_softmax
from clrun.strategy.per_sample import PerSampleMeasure, network_mask, sum_over_samples


def diagonal_fisher(
    strategy: Strategy, theta: Tensor, state: Tree, hp: Any, pool: Pool, *,
    estimator: str = "exact", samples: int | None = None, batch_size: int = 128, chunk_samples: int | None = None,
) -> Tensor:  # fmt: skip
    """Return the diagonal of the Fisher information (P,), as a mean over the samples of the pool.

    It is 0 for the parameters that the strategy added to theta. `estimator` is described at the top of this file,
    `samples` limits how many of the pool are used, and `batch_size` matters for `batched` alone. `chunk_samples` limits
    the memory, not the result: see `sum_over_samples`.
    """
    pool = pool.first(samples)
    if estimator == "batched":
        return mean_gradient_squares(strategy, theta, state, hp, pool, batch_size)
    total = sum_over_samples(strategy, theta, state, hp, pool, fisher_measure(estimator, pool.outputs), chunk_samples)
    return total / pool.weight.sum().clamp(min=1)


def fisher_measure(estimator: str, outputs: Tensor | None = None) -> PerSampleMeasure:
    """Return the measure whose sum over samples is that of the squared gradients of log p(y|x).

    outputs (k,): those that may answer for any of the samples; None: all.
    """
    return PerSampleMeasure(log_softmax, partial(cotangents, estimator=estimator, outputs=outputs), torch.square)


def cotangents(log_p: Tensor, batch: Batch, estimator: str, outputs: Tensor | None = None) -> Iterator[Tensor]:
    """Yield cotangents v (B, C) of log_p (B, C).

    The squared gradients of (log_p * v).sum(-1), summed over the cotangents, are the Fisher information of each sample.
    """
    if estimator == "exact":
        outputs = torch.arange(log_p.shape[-1], device=log_p.device) if outputs is None else outputs
        yield from every_label(log_p.exp(), batch.weight, outputs)
        return
    y = batch.y if estimator == "empirical" else draw_labels(log_p, batch.noise[0])
    yield torch.zeros_like(log_p).scatter(-1, y[:, None], batch.weight[:, None])


def every_label(p: Tensor, weight: Tensor, outputs: Tensor) -> Iterator[Tensor]:
    """Yield the cotangents (B, C) of the exact Fisher information: one fewer than there are outputs.

    p (B, C) are probabilities, 0 but for `outputs` (k,); weight (B,) is 0 where there is no sample.

    Derivation. With J the gradients of the logits, sum_y p_y (grad log p_y)^2 is the diagonal of J^T S J, where
    S = diag(p) - p p^T is the covariance of the one-hot vector e_y. A sum over all y would take C backward passes;
    S has rank C - 1, and a factorisation of it takes one backward pass less. Determine y by a sequence of questions:
    the k-th, asked if y is none of the outputs before k, is whether y is k. Let r_k = p_k + p_(k+1) + ... be the
    probability that question k is asked, and q_k the distribution of y over the outputs after k. By the law of total
    covariance, S is the sum of what each question contributes. The answer is e_k with probability p_k / r_k and
    otherwise, in expectation, q_k, so that the contribution is

        r_k * (p_k / r_k) (r_(k+1) / r_k) (e_k - q_k) (e_k - q_k)^T = p_k r_(k+1) / r_k (e_k - q_k) (e_k - q_k)^T.

    The k-th cotangent is the square root of that factor times (e_k - q_k).
    """
    zeros, p = torch.zeros_like(p), p.index_select(-1, outputs)
    r = p.flip(-1).cumsum(-1).flip(-1).clamp(min=torch.finfo(p.dtype).tiny)
    position = torch.arange(len(outputs), device=p.device)
    for k in range(len(outputs) - 1):
        root = weight * (p[:, k] / r[:, k] / r[:, k + 1]).sqrt()
        direction = torch.where(position == k, r[:, k + 1, None], -p * (position > k))  # r_(k+1) (e_k - q_k)
        yield zeros.index_copy(-1, outputs, root[:, None] * direction)


def draw_labels(log_p: Tensor, noise: Tensor) -> Tensor:
    """Return labels (B,) drawn from p(y|x): the inverse of the distribution function at noise (B,) in [0, 1)."""
    cumulated = log_p.exp().cumsum(-1)
    return (cumulated <= noise[:, None] * cumulated[:, -1:]).sum(-1).clamp(max=log_p.shape[-1] - 1)


def mean_gradient_squares(
    strategy: Strategy, theta: Tensor, state: Tree, hp: Any, pool: Pool, batch_size: int
) -> Tensor:
    """Return the mean over batches of the squared mean gradient (P,): not the Fisher information, but the estimator
    `batched` that many libraries call so."""

    def loss(theta: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return cross_entropy(strategy.logits(theta, state, hp, batch.x, batch.t), batch), {}

    total, count = torch.zeros_like(theta), theta.new_zeros(())
    for batch in strategy.data.chunks(pool, batch_size):
        total = total + gradient_of(loss, theta, batch)[0].square()
        count = count + (batch.weight.sum() > 0)
    return torch.where(network_mask(strategy, theta), total, 0) / count.clamp(min=1)
