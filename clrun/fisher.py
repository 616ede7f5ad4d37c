"""The diagonal of the Fisher information, F_i = mean_x E_y [ (d log p(y|x) / d theta_i)^2 ] (Kirkpatrick et al. 2017).

The square is taken a sample at a time, so F does not depend on any batch size. Estimators differ in y:

    exact      every y, weighted by p(y|x)            (Kunstner et al. 2019; van de Ven 2025)
    empirical  the true label
    sampled    one y drawn from p(y|x)
    batched    the true labels, but the square of a batch's MEAN gradient: what many libraries compute, orders of
               magnitude smaller, and a function of the batch size

For a linear layer with input a and d = d log p / d(pre-activation), a sample's gradient is d a^T, so the sum over
samples of its square is (d^2)^T (a^2): exact without a loop. As `a` does not depend on y, all y share one product.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from clrun.models import Statistics, Weights
from clrun.strategy import Strategy, Tree, cross_entropy, gradient_of, lifted, log_softmax
from clrun.stream import Batch, Pool

CHUNK = 512  # samples a pass in closed form
FLOATS = 2**24  # per-sample gradients held at once elsewhere


def fisher(
    strategy: Strategy, theta: Tensor, own: Tree, hp: Any, pool: Pool, *,
    estimator: str = "exact", samples: int | None = None, batch_size: int = 128,
) -> Tensor:  # fmt: skip
    """(P,): the mean over (at most `samples` of) the pool. `batch_size` matters to `batched` alone."""
    pool = pool.first(samples)
    if estimator == "batched":
        return batched(strategy, theta, own, hp, pool, batch_size)
    squares = closed_form if has_closed_form(strategy) else per_sample
    size = CHUNK if has_closed_form(strategy) else max(1, min(64, FLOATS // len(theta)))
    total = torch.zeros_like(theta)
    for batch in strategy.data.chunks(pool, size):
        total = total + squares(strategy, theta.detach(), own, hp, batch, estimator)
    return total / pool.weight.sum().clamp(min=1)


def has_closed_form(strategy: Strategy) -> bool:
    """All layers linear, and the logits those of the network itself."""
    plain = type(strategy).logits is Strategy.logits and strategy.net.autocast is None
    return plain and all(isinstance(layer, nn.Linear) for layer in strategy.net.network.layers.values())


def cotangents(log_p: Tensor, batch: Batch, estimator: str) -> Iterator[Tensor]:
    """(B, C) each, such that the squares of the gradients of (log_p * cotangent).sum(-1) add up to what is asked."""
    if estimator == "exact":
        eye = torch.eye(log_p.shape[-1], dtype=log_p.dtype, device=log_p.device)
        roots = (log_p / 2).exp() * batch.weight[:, None]
        for y in answering(batch.active):
            yield eye[y] * roots[:, y, None]
        return
    y = batch.y if estimator == "empirical" else draw(log_p, batch.noise[0])
    yield torch.zeros_like(log_p).scatter(-1, y[:, None], batch.weight[:, None])


def answering(active: Tensor) -> list[int]:
    """The outputs that answer for any sample; in a stack, where runs differ, all (the others have p = 0)."""
    return list(range(active.shape[-1])) if lifted() else active.any(0).nonzero()[:, 0].tolist()


def draw(log_p: Tensor, noise: Tensor) -> Tensor:
    """y ~ p(y|x) by inverting the distribution function at noise (B,) in [0, 1)."""
    cumulated = log_p.exp().cumsum(-1)
    return (cumulated <= noise[:, None] * cumulated[:, -1:]).sum(-1).clamp(max=log_p.shape[-1] - 1)


# ---------------------------------------------------------------- linear layers


class Tapped(Weights):
    """Linear layers whose inputs are kept, with a zero added to each pre-activation to take gradients at."""

    def __init__(self, pieces: Mapping[str, Tensor], taps: Mapping[str, Tensor], inputs: dict[str, Tensor]):
        super().__init__(pieces, {})
        self.taps, self.inputs = taps, inputs

    def linear(self, name: str, x: Tensor) -> Tensor:
        self.inputs[name] = x
        return super().linear(name, x) + self.taps[name]


def closed_form(strategy: Strategy, theta: Tensor, own: Tree, hp: Any, batch: Batch, estimator: str) -> Tensor:
    """(P,): the sum over the batch of the squared gradients; one product a layer, however many labels."""
    layers = strategy.net.network.layers

    def log_p(taps: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        inputs: dict[str, Tensor] = {}

        def reader(pieces: Mapping[str, Tensor], _: Statistics | None) -> Weights:
            return Tapped(pieces, taps, inputs)

        logits = replace(strategy.net, reader=reader)(theta, batch.x)
        return log_softmax(logits, batch.active), inputs

    zeros = {name: theta.new_zeros(len(batch.y), layer.out_features) for name, layer in layers.items()}
    value, inputs, pull = pullback(log_p, zeros)
    squares = zeros
    for cotangent in cotangents(value, batch, estimator):
        squares = {name: squares[name] + d.square() for name, d in pull(cotangent).items()}
    pieces = {f"{name}.weight": squares[name].mT @ inputs[name].square() for name in layers}
    pieces |= {f"{name}.bias": squares[name].sum(0) for name in layers}
    return strategy.net.layout.flat(beyond(strategy, theta) | pieces)


def beyond(strategy: Strategy, theta: Tensor) -> dict[str, Tensor]:
    """Zeros for every leaf of theta: those that the network does not read have no Fisher information."""
    return {name: theta.new_zeros(()) for name in strategy.net.layout.shapes}


def pullback(
    f: Callable[[dict[str, Tensor]], tuple[Tensor, dict[str, Tensor]]], at: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor], Callable[[Tensor], dict[str, Tensor]]]:
    """f(at) -> (value, aux): value, aux, and the map from a cotangent of value to gradients at `at`.

    `torch.func.vjp` lifts over runs but imports the compiler, so alone it is plain autograd.
    """
    if lifted():
        value, pull, aux = torch.func.vjp(f, at, has_aux=True)
        return value, aux, lambda cotangent: pull(cotangent, retain_graph=True)[0]
    leaves = {name: v.clone().requires_grad_() for name, v in at.items()}
    with torch.enable_grad():
        value, aux = f(leaves)

    def pull_alone(cotangent: Tensor) -> dict[str, Tensor]:
        grads = torch.autograd.grad(value, list(leaves.values()), cotangent, retain_graph=True)
        return dict(zip(leaves, grads, strict=True))

    return value.detach(), {name: v.detach() for name, v in aux.items()}, pull_alone


# ---------------------------------------------------------------- everything else


def per_sample(strategy: Strategy, theta: Tensor, own: Tree, hp: Any, batch: Batch, estimator: str) -> Tensor:
    """(P,): the sum over the batch of the squared gradients, taken a sample at a time by vmap."""

    def log_p(theta: Tensor, x: Tensor, t: Tensor, active: Tensor) -> Tensor:
        return log_softmax(strategy.logits(theta, own, hp, x[None], t[None]), active[None])[0]

    def score(x: Tensor, t: Tensor, active: Tensor, cotangent: Tensor) -> Tensor:
        return torch.func.grad(lambda theta: log_p(theta, x, t, active) @ cotangent)(theta)

    value = log_softmax(strategy.logits(theta, own, hp, batch.x, batch.t), batch.active)
    total = torch.zeros_like(theta)
    for cotangent in cotangents(value, batch, estimator):
        total = total + torch.vmap(score)(batch.x, batch.t, batch.active, cotangent).square().sum(0)
    return total


def batched(strategy: Strategy, theta: Tensor, own: Tree, hp: Any, pool: Pool, batch_size: int) -> Tensor:
    """(P,): the mean over batches of the squared mean gradient: not the Fisher, but what many compute."""

    def loss(theta: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return cross_entropy(strategy.logits(theta, own, hp, batch.x, batch.t), batch), {}

    total, count = torch.zeros_like(theta), theta.new_zeros(())
    for batch in strategy.data.chunks(pool, batch_size):
        total = total + gradient_of(loss, theta, batch)[0].square()
        count = count + (batch.weight.sum() > 0)
    return total / count.clamp(min=1)
