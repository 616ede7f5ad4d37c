"""The diagonal of the Fisher information, F_i = mean_x E_y [ (d log p(y|x) / d theta_i)^2 ] (Kirkpatrick et al. 2017).

The square is taken a sample at a time, so F does not depend on any batch size. Estimators differ in y:

    exact      every y, weighted by p(y|x)            (Kunstner et al. 2019; van de Ven 2025)
    empirical  the true label
    sampled    one y drawn from p(y|x)
    batched    the true labels, but the square of a batch's MEAN gradient: what many libraries compute, orders of
               magnitude smaller, and a function of the batch size
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from clrun.data.stream import Batch, Pool
from clrun.strategy.base import Strategy, Tree
from clrun.strategy.gradients import gradient_of, lifted
from clrun.strategy.loss import cross_entropy, log_softmax
from clrun.strategy.per_sample import Score, of_network, summed


def fisher(
    strategy: Strategy, theta: Tensor, state: Tree, hp: Any, pool: Pool, *,
    estimator: str = "exact", samples: int | None = None, batch_size: int = 128,
) -> Tensor:  # fmt: skip
    """(P,): the mean over (at most `samples` of) the pool; 0 for what a strategy added to theta. `batch_size` matters
    to `batched` alone."""
    pool = pool.first(samples)
    if estimator == "batched":
        return batched(strategy, theta, state, hp, pool, batch_size)
    return summed(strategy, theta, state, hp, pool, score(estimator)) / pool.weight.sum().clamp(min=1)


def score(estimator: str) -> Score:
    """The squared gradients of log p(y|x)."""
    return Score(log_softmax, partial(cotangents, estimator=estimator), torch.square)


def cotangents(log_p: Tensor, batch: Batch, estimator: str) -> Iterator[Tensor]:
    """(B, C) each, such that the squares of the gradients of (log_p * cotangent).sum(-1) add up to what is asked."""
    if estimator == "exact":
        yield from every_label(log_p.exp(), batch.weight, answering(batch.active))
        return
    y = batch.y if estimator == "empirical" else draw(log_p, batch.noise[0])
    yield torch.zeros_like(log_p).scatter(-1, y[:, None], batch.weight[:, None])


def every_label(p: Tensor, weight: Tensor, outputs: Sequence[int]) -> Iterator[Tensor]:
    """p (B, C), which is 0 beyond `outputs` -> cotangents (B, C), one fewer than there are outputs.

    sum_y p_y (grad log p_y)^2 is the diagonal of J^T (diag(p) - p p^T) J, J the gradients of the logits. That
    covariance of y is the sum of what each question "is it k, if it is none before k?" contributes: with r_k the
    probability of k and all after it, and q_k the distribution of those after it,
    p_k r_(k+1) / r_k (e_k - q_k) (e_k - q_k)^T.
    """
    there = torch.tensor(outputs, device=p.device)
    nothing, p = torch.zeros_like(p), p.index_select(-1, there)
    r = p.flip(-1).cumsum(-1).flip(-1).clamp(min=torch.finfo(p.dtype).tiny)
    after = torch.arange(len(outputs), device=p.device)
    for k in range(len(outputs) - 1):
        root = weight * (p[:, k] / r[:, k] / r[:, k + 1]).sqrt()
        direction = torch.where(after == k, r[:, k + 1, None], -p * (after > k))
        yield nothing.index_copy(-1, there, root[:, None] * direction)


def answering(active: Tensor) -> list[int]:
    """The outputs that answer for any sample; in a stack, where runs differ, all (the others have p = 0)."""
    return list(range(active.shape[-1])) if lifted() else active.any(0).nonzero()[:, 0].tolist()


def draw(log_p: Tensor, noise: Tensor) -> Tensor:
    """y ~ p(y|x) by inverting the distribution function at noise (B,) in [0, 1)."""
    cumulated = log_p.exp().cumsum(-1)
    return (cumulated <= noise[:, None] * cumulated[:, -1:]).sum(-1).clamp(max=log_p.shape[-1] - 1)


def batched(strategy: Strategy, theta: Tensor, state: Tree, hp: Any, pool: Pool, batch_size: int) -> Tensor:
    """(P,): the mean over batches of the squared mean gradient: not the Fisher, but what many compute."""

    def loss(theta: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return cross_entropy(strategy.logits(theta, state, hp, batch.x, batch.t), batch), {}

    total, count = torch.zeros_like(theta), theta.new_zeros(())
    for batch in strategy.data.chunks(pool, batch_size):
        total = total + gradient_of(loss, theta, batch)[0].square()
        count = count + (batch.weight.sum() > 0)
    return torch.where(of_network(strategy, theta), total, 0) / count.clamp(min=1)
