"""Sums over samples of a measure, square or absolute value, of each entry of each sample's own gradient.

Every layer is linear in its weights, so a sample's gradient is a product of what the weights meet and of d = d value /
d (the layer's output). For a linear layer with input a it is d a^T. Both measures of a product are the product of the
measures, so the sum over samples is measure(d)^T measure(a): exact without a loop, and as `a` does not depend on the
cotangent, all cotangents share one product. For a convolution it is d unfold(a)^T, a sum over places: one product a
sample. For a norm's scale it is the sum over places of d times what was normalised.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clrun.data.stream import Batch, Pool
from clrun.models import Statistics, Weights
from clrun.strategy.base import Strategy, Tree
from clrun.strategy.gradients import lifted

CHUNK = 1024  # samples a pass where all layers are linear; on a GPU eight times as many


PLACES = 64  # samples a pass where there are convolutions


FLOATS = 2**24  # per-sample gradients of a layer (or, without a closed form, of all) held at once


class Score(NamedTuple):
    """What is differentiated, a sample at a time, and what of the gradient is summed."""

    values: Callable[[Tensor, Tensor], Tensor]  # logits (B, C), active (B, C) -> (B, K)
    cotangents: Callable[[Tensor, Batch], Iterator[Tensor]]  # values, batch -> (B, K) each; 0 where weight is 0
    measure: Callable[[Tensor], Tensor]  # torch.square or torch.abs


def summed(strategy: Strategy, theta: Tensor, state: Tree, hp: Any, pool: Pool, score: Score) -> Tensor:
    """(P,): sum over the pool's samples and their cotangents v of measure(d (values . v) / d theta); 0 for what a
    strategy added to theta."""
    theta, total = theta.detach(), torch.zeros_like(theta)
    shapes = output_shapes(strategy, theta, state, hp, next(strategy.data.chunks(pool, 1)))
    for batch in strategy.data.chunks(pool, samples_a_pass(strategy, theta, shapes)):
        if shapes is None:
            total = total + one_by_one(strategy, theta, state, hp, batch, score)
        else:
            total = total + closed_form(strategy, theta, state, hp, batch, score, shapes)
    return torch.where(of_network(strategy, theta), total, 0)


def samples_a_pass(strategy: Strategy, theta: Tensor, shapes: "Shapes | None") -> int:
    """As many as fit into the memory that is meant for it; in closed form only convolutions need much."""
    if shapes is None:
        return max(1, min(PLACES, FLOATS // len(theta)))
    kernels = [m.weight.numel() for m in strategy.net.network.layers.values() if isinstance(m, nn.Conv2d)]
    if kernels:
        return max(1, min(PLACES, FLOATS // max(kernels)))
    return CHUNK * (8 if theta.is_cuda else 1)


def of_network(strategy: Strategy, theta: Tensor) -> Tensor:
    """(P,) bool: the entries of theta that are the network's, not the strategy's."""
    names = strategy.net.network.parameters()
    return strategy.net.layout.where(names.__contains__, theta)


# ---------------------------------------------------------------- which layers, and what they give


KNOWN = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.BatchNorm2d)


Shapes = Mapping[str, tuple[int, ...]]  # of a layer's output, for one sample


class Survey(Weights):
    """Notes the shape of what each layer gives for a sample, once for every time that it is read."""

    def __init__(self, pieces: Mapping[str, Tensor], statistics: Statistics | None, seen: list[tuple[str, tuple]]):
        super().__init__(pieces, statistics)
        self.seen = seen

    def given(self, name: str, x: Tensor, z: Tensor, stride: int = 1) -> Tensor:
        self.seen.append((name, tuple(z.shape[1:])))
        return z


def output_shapes(strategy: Strategy, theta: Tensor, state: Tree, hp: Any, batch: Batch) -> Shapes | None:
    """None without a closed form: where a layer is of no known kind, or not read once and at theta itself."""
    writer = next(cls for cls in type(strategy).__mro__ if "logits" in vars(cls))
    layers = strategy.net.network.layers
    plain = vars(writer).get("reads_once", False) and strategy.net.autocast is None
    if not plain or not all(isinstance(layer, KNOWN) for layer in layers.values()):
        return None
    seen: list[tuple[str, tuple]] = []
    looking = replace(strategy, net=replace(strategy.net, reader=lambda *view: Survey(*view, seen)))
    looking.logits(theta, state, hp, batch.x[:1], batch.t[:1])
    return dict(seen) if sorted(name for name, _ in seen) == sorted(layers) else None


# ---------------------------------------------------------------- in closed form


class Tapped(Weights):
    """Layers with a tap at each output, to take gradients at, and a note of what their weights met.

    A tap is the output itself where autograd can be asked for it, and otherwise a zero that is added to it.
    """

    def __init__(
        self, pieces: Mapping[str, Tensor], statistics: Statistics | None, layers: Mapping[str, nn.Module], seen: "Seen"
    ):
        super().__init__(pieces, statistics)
        self.layers, self.seen = layers, seen

    def given(self, name: str, x: Tensor, z: Tensor, stride: int = 1) -> Tensor:
        self.seen.met[name] = self.what_met(name, self.layers[name], x, stride)
        return self.seen.tap(name, z)

    def what_met(self, name: str, layer: nn.Module, x: Tensor, stride: int) -> Tensor:
        """(B, in), a convolution's (B, in * kernel^2, places), a norm's (B, C, H, W) normalised."""
        x = x.detach()
        if isinstance(layer, nn.Conv2d):
            kernel = layer.weight.shape[-1]
            return F.unfold(x, kernel, padding=kernel // 2, stride=stride)
        if isinstance(layer, nn.GroupNorm):
            return torch.group_norm(x, layer.num_groups)
        if isinstance(layer, nn.BatchNorm2d):
            return F.batch_norm(x, *self.moments(name), training=self.statistics is None)
        return x


class Seen(NamedTuple):
    """What a pass has left: what each layer's weights met, and the taps."""

    met: dict[str, Tensor]
    taps: dict[str, Tensor]
    added: bool  # whether the taps are zeros, there beforehand

    def tap(self, name: str, z: Tensor) -> Tensor:
        if self.added:
            return z + self.taps[name]
        self.taps[name] = z.requires_grad_()
        return self.taps[name]


def closed_form(
    strategy: Strategy, theta: Tensor, state: Tree, hp: Any, batch: Batch, score: Score, shapes: Shapes
) -> Tensor:
    """(P,) for one batch."""
    layers = strategy.net.network.layers
    linear = [name for name, layer in layers.items() if isinstance(layer, nn.Linear)]

    def values(seen: Seen) -> Tensor:
        looking = replace(strategy, net=replace(strategy.net, reader=lambda *view: Tapped(*view, layers, seen)))
        return score.values(looking.logits(theta, state, hp, batch.x, batch.t), batch.active)

    value, met, pull = pullback(values, lambda: {n: theta.new_zeros(len(batch.y), *s) for n, s in shapes.items()})
    sizes: dict[str, Tensor] = {}
    pieces = {name: theta.new_zeros(()) for name in strategy.net.layout.shapes}  # of what no layer has: no gradient
    for cotangent in score.cotangents(value, batch):
        d = pull(cotangent)
        sizes = {name: plus(sizes.get(name), score.measure, d[name]) for name in linear}
        for name in layers.keys() - sizes.keys():
            for leaf, g in gradients(name, layers[name], met[name], d[name]).items():
                pieces[leaf] = pieces[leaf] + score.measure(g).sum(0)
    pieces |= {f"{name}.weight": size.mT @ score.measure(met[name]) for name, size in sizes.items()}
    pieces |= {f"{name}.bias": size.sum(0) for name, size in sizes.items()}
    return strategy.net.layout.flat(
        {name: v.reshape(strategy.net.layout.shapes[name]) if v.dim() else v for name, v in pieces.items()}
    )


def plus(total: Tensor | None, measure: Callable[[Tensor], Tensor], v: Tensor) -> Tensor:
    """total + measure(v), without a tensor in between for squares."""
    if total is None:
        return measure(v)
    return torch.addcmul(total, v, v) if measure is torch.square else total + measure(v)


def gradients(name: str, layer: nn.Module, met: Tensor, d: Tensor) -> dict[str, Tensor]:
    """Each sample's own gradients of a convolution's or a norm's leaves: (B, ...). d (B, out, H, W)."""
    d = d.flatten(2)
    weight = d @ met.mT if isinstance(layer, nn.Conv2d) else (d * met.flatten(2)).sum(2)
    return {f"{name}.weight": weight} | ({} if layer.bias is None else {f"{name}.bias": d.sum(2)})


def pullback(
    f: Callable[[Seen], Tensor], zeros: Callable[[], dict[str, Tensor]]
) -> tuple[Tensor, dict[str, Tensor], Callable[[Tensor], dict[str, Tensor]]]:
    """f's value, what the weights met, and the map from a cotangent of the value to gradients at the taps.

    `torch.func.vjp` lifts over runs but imports the compiler, so alone it is plain autograd.
    """
    if lifted():

        def tapped(taps: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
            seen = Seen({}, taps, added=True)
            return f(seen), seen.met

        value, pull, met = torch.func.vjp(tapped, zeros(), has_aux=True)
        return value, met, lambda cotangent: pull(cotangent, retain_graph=True)[0]
    seen = Seen({}, {}, added=False)
    with torch.enable_grad():
        value = f(seen)

    def pull_alone(cotangent: Tensor) -> dict[str, Tensor]:
        grads = torch.autograd.grad(value, list(seen.taps.values()), cotangent, retain_graph=True)
        return dict(zip(seen.taps, grads, strict=True))

    return value.detach(), seen.met, pull_alone


# ---------------------------------------------------------------- everything else


def one_by_one(strategy: Strategy, theta: Tensor, state: Tree, hp: Any, batch: Batch, score: Score) -> Tensor:
    """(P,) for one batch, a gradient a sample by vmap."""

    def values(theta: Tensor, x: Tensor, t: Tensor, active: Tensor) -> Tensor:
        return score.values(strategy.logits(theta, state, hp, x[None], t[None]), active[None])[0]

    def gradient(x: Tensor, t: Tensor, active: Tensor, cotangent: Tensor) -> Tensor:
        return torch.func.grad(lambda theta: values(theta, x, t, active) @ cotangent)(theta)

    value = score.values(strategy.logits(theta, state, hp, batch.x, batch.t), batch.active)
    total = torch.zeros_like(theta)
    for cotangent in score.cotangents(value, batch):
        total = total + score.measure(torch.vmap(gradient)(batch.x, batch.t, batch.active, cotangent)).sum(0)
    return total
