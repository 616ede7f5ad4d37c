"""Sums over samples of a measure, square or absolute value, of each entry of each sample's own gradient.

For a linear layer with input a and d = d value / d(pre-activation), a sample's gradient is d a^T. Both measures of a
product are the product of the measures, so the sum over samples is measure(d)^T measure(a): exact without a loop. As
`a` does not depend on the cotangent, all cotangents share one product.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from clrun.models import Statistics, Weights
from clrun.strategy import Strategy, Tree, lifted
from clrun.stream import Batch, Pool

CHUNK = 512  # samples a pass in closed form
FLOATS = 2**24  # per-sample gradients held at once elsewhere


class Score(NamedTuple):
    """What is differentiated, a sample at a time, and what of the gradient is summed."""

    values: Callable[[Tensor, Tensor], Tensor]  # logits (B, C), active (B, C) -> (B, K)
    cotangents: Callable[[Tensor, Batch], Iterator[Tensor]]  # values, batch -> (B, K) each; 0 where weight is 0
    measure: Callable[[Tensor], Tensor]  # torch.square or torch.abs


def summed(strategy: Strategy, theta: Tensor, own: Tree, hp: Any, pool: Pool, score: Score) -> Tensor:
    """(P,): sum over the pool's samples and their cotangents v of measure(d (values . v) / d theta); 0 for what a
    strategy added to theta."""
    closed = has_closed_form(strategy)
    size = CHUNK if closed else max(1, min(64, FLOATS // len(theta)))
    total = torch.zeros_like(theta)
    for batch in strategy.data.chunks(pool, size):
        total = total + (closed_form if closed else one_by_one)(strategy, theta.detach(), own, hp, batch, score)
    return torch.where(of_network(strategy, theta), total, 0)


def of_network(strategy: Strategy, theta: Tensor) -> Tensor:
    """(P,) bool: the entries of theta that are the network's, not the strategy's."""
    names = strategy.net.network.parameters()
    return strategy.net.layout.where(names.__contains__, theta)


def has_closed_form(strategy: Strategy) -> bool:
    """All layers linear, each read once and at theta itself."""
    writer = next(cls for cls in type(strategy).__mro__ if "logits" in vars(cls))
    plain = vars(writer).get("reads_once", False) and strategy.net.autocast is None
    return plain and all(isinstance(layer, nn.Linear) for layer in strategy.net.network.layers.values())


# ---------------------------------------------------------------- linear layers


class Tapped(Weights):
    """Linear layers whose inputs are kept, with a zero added to each pre-activation to take gradients at."""

    def __init__(self, pieces: Mapping[str, Tensor], taps: Mapping[str, Tensor], inputs: dict[str, Tensor]):
        super().__init__(pieces, {})
        self.taps, self.inputs = taps, inputs

    def linear(self, name: str, x: Tensor) -> Tensor:
        self.inputs[name] = x
        return super().linear(name, x) + self.taps[name]


def closed_form(strategy: Strategy, theta: Tensor, own: Tree, hp: Any, batch: Batch, score: Score) -> Tensor:
    """(P,) for one batch; one product a layer, however many cotangents."""
    layers = strategy.net.network.layers

    def values(taps: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        inputs: dict[str, Tensor] = {}

        def reader(pieces: Mapping[str, Tensor], _: Statistics | None) -> Weights:
            return Tapped(pieces, taps, inputs)

        looking = replace(strategy, net=replace(strategy.net, reader=reader))
        return score.values(looking.logits(theta, own, hp, batch.x, batch.t), batch.active), inputs

    zeros = {name: theta.new_zeros(len(batch.y), layer.out_features) for name, layer in layers.items()}
    value, inputs, pull = pullback(values, zeros)
    sizes = zeros
    for cotangent in score.cotangents(value, batch):
        sizes = {name: sizes[name] + score.measure(d) for name, d in pull(cotangent).items()}
    pieces = {f"{name}.weight": sizes[name].mT @ score.measure(inputs[name]) for name in layers}
    pieces |= {f"{name}.bias": sizes[name].sum(0) for name in layers}
    return strategy.net.layout.flat(beyond(strategy, theta) | pieces)


def beyond(strategy: Strategy, theta: Tensor) -> dict[str, Tensor]:
    """Zeros for every leaf of theta: those that are not the network's have no gradient."""
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


def one_by_one(strategy: Strategy, theta: Tensor, own: Tree, hp: Any, batch: Batch, score: Score) -> Tensor:
    """(P,) for one batch, a gradient a sample by vmap."""

    def values(theta: Tensor, x: Tensor, t: Tensor, active: Tensor) -> Tensor:
        return score.values(strategy.logits(theta, own, hp, x[None], t[None]), active[None])[0]

    def gradient(x: Tensor, t: Tensor, active: Tensor, cotangent: Tensor) -> Tensor:
        return torch.func.grad(lambda theta: values(theta, x, t, active) @ cotangent)(theta)

    value = score.values(strategy.logits(theta, own, hp, batch.x, batch.t), batch.active)
    total = torch.zeros_like(theta)
    for cotangent in score.cotangents(value, batch):
        total = total + score.measure(torch.vmap(gradient)(batch.x, batch.t, batch.active, cotangent)).sum(0)
    return total
