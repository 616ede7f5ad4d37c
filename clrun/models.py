"""Networks whose weights come from outside: forward(weights, x, tap) -> logits.

A network's `layers` are PyTorch modules, used for nothing but their names, shapes and initial values; what is computed
stands in `forward`, with weights read from the flat theta. So a run is a tensor, and R runs are one tensor more.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import gcd, prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clrun.errors import UsageError
from clrun.theta import Layout

Tap = Callable[[int, Tensor], Tensor]
Statistics = dict[str, Tensor]  # batch norm's running mean and variance, by layer


def no_tap(layer: int, h: Tensor) -> Tensor:
    return h


class Weights:
    """One theta, read as the layers of a network.

    `statistics` None means training: batch norm then uses the batch it sees. Otherwise the network is at rest and
    batch norm uses these running statistics.
    """

    def __init__(self, pieces: Mapping[str, Tensor], statistics: Statistics | None):
        self.pieces, self.statistics = pieces, statistics

    def given(self, name: str, x: Tensor, z: Tensor, stride: int = 1) -> Tensor:
        """What a layer hands on, its output z, having read x: the place for a pass that has to look inside."""
        return z

    def linear(self, name: str, x: Tensor) -> Tensor:
        """(B, in) -> (B, out)."""
        return self.given(name, x, F.linear(x, self.pieces[f"{name}.weight"], self.pieces[f"{name}.bias"]))

    def conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        """(B, in, H, W) -> (B, out, H / stride, W / stride), padded so that stride 1 keeps the size."""
        weight = self.pieces[f"{name}.weight"]
        z = F.conv2d(x, weight, self.pieces.get(f"{name}.bias"), stride, weight.shape[-1] // 2)
        return self.given(name, x, z, stride)

    def group_norm(self, name: str, x: Tensor) -> Tensor:
        """(B, C, H, W), gcd(C, 32) groups."""
        groups, scale, shift = gcd(x.shape[1], 32), self.pieces[f"{name}.weight"], self.pieces[f"{name}.bias"]
        return self.given(name, x, torch.group_norm(x, groups, scale, shift))  # of one value too, unlike F's

    def batch_norm(self, name: str, x: Tensor) -> Tensor:
        """(B, C, H, W); never writes statistics: `Net.refreshed` does that as a value."""
        scale, shift = self.pieces[f"{name}.weight"], self.pieces[f"{name}.bias"]
        return self.given(name, x, F.batch_norm(x, *self.moments(name), scale, shift, self.statistics is None))

    def moments(self, name: str) -> tuple[Tensor | None, Tensor | None]:
        """A batch norm's running mean and variance; none in training."""
        running = self.statistics or {}
        return running.get(f"{name}.mean"), running.get(f"{name}.var")


class Watched(Weights):
    """Weights in training that also note the mean and variance of what each batch norm saw."""

    def __init__(self, pieces: Mapping[str, Tensor], statistics: Statistics | None):
        super().__init__(pieces, None)
        self.seen: Statistics = {}

    def batch_norm(self, name: str, x: Tensor) -> Tensor:
        self.seen[f"{name}.var"], self.seen[f"{name}.mean"] = torch.var_mean(x, (0, 2, 3), correction=1)
        return super().batch_norm(name, x)


class Network:
    """A network's equation. `layers` give names, shapes and initial values; `taps` names the layers that may be changed
    on the way, in order, and `widths` their units or channels."""

    layers: dict[str, nn.Module]
    taps: tuple[str, ...]
    widths: tuple[int, ...]

    def forward(self, weights: Weights, x: Tensor, tap: Tap, before: Tap) -> Tensor:
        """x (B, C, H, W) -> logits (B, outputs). The i-th hidden layer is tap(i, relu(before(i, z))): `before` may
        change its pre-activation z (B, width, ...), `tap` its activation."""
        raise NotImplementedError

    def parameters(self) -> dict[str, Tensor]:
        return {f"{layer}.{name}": p.detach() for layer, m in self.layers.items() for name, p in m.named_parameters()}

    def statistics(self) -> Statistics:
        """Batch norm's statistics at birth: mean 0, variance 1."""
        norms = {name: m for name, m in self.layers.items() if isinstance(m, nn.BatchNorm2d)}
        means = {f"{name}.mean": torch.zeros(m.num_features) for name, m in norms.items()}
        return means | {f"{name}.var": torch.ones(m.num_features) for name, m in norms.items()}


class MLP(Network):
    """Fully connected, ReLU."""

    def __init__(self, inputs: Sequence[int], outputs: int, widths: Sequence[int]):
        sizes = [prod(inputs), *widths]
        self.widths = tuple(widths)
        self.taps = tuple(f"hidden.{i}" for i in range(len(widths)))
        hidden = {name: nn.Linear(a, b) for name, a, b in zip(self.taps, sizes, sizes[1:], strict=False)}
        self.layers = hidden | {"head": nn.Linear(sizes[-1], outputs)}

    def forward(self, weights: Weights, x: Tensor, tap: Tap, before: Tap) -> Tensor:
        h = x.flatten(1)
        for i, name in enumerate(self.taps):
            h = tap(i, before(i, weights.linear(name, h)).relu())
        return weights.linear("head", h)


class CNN(Network):
    """Two 3x3 convolutions with ReLU and 2x2 max pooling, one hidden layer; no normalisation."""

    def __init__(self, inputs: Sequence[int], outputs: int, width: int):
        channels, height, breadth = inputs
        self.taps, self.widths = ("conv.0", "conv.1", "hidden.0"), (width, 2 * width, 8 * width)
        self.layers = {
            "conv.0": nn.Conv2d(channels, width, 3, padding=1),
            "conv.1": nn.Conv2d(width, 2 * width, 3, padding=1),
            "hidden.0": nn.Linear(2 * width * (height // 4) * (breadth // 4), 8 * width),
            "head": nn.Linear(8 * width, outputs),
        }

    def forward(self, weights: Weights, x: Tensor, tap: Tap, before: Tap) -> Tensor:
        h = F.max_pool2d(tap(0, before(0, weights.conv("conv.0", x)).relu()), 2)
        h = F.max_pool2d(tap(1, before(1, weights.conv("conv.1", h)).relu()), 2)
        return weights.linear("head", tap(2, before(2, weights.linear("hidden.0", h.flatten(1))).relu()))


class ResNet18(Network):
    """ResNet-18 for small pictures (3x3 stem, no first pooling). width 20: the reduced one of Lopez-Paz & Ranzato 2017
    (GEM); width 64: the full one. norm: group or batch."""

    def __init__(self, inputs: Sequence[int], outputs: int, width: int, norm: str):
        self.norm = norm
        plan = [(1, 1, 1), (1, 1, 1), (1, 2, 2), (2, 2, 1), (2, 4, 2), (4, 4, 1), (4, 8, 2), (8, 8, 1)]
        self.blocks = [(f"block.{i}", a * width, b * width, stride) for i, (a, b, stride) in enumerate(plan)]
        self.taps = ("stem", *(f"{name}.conv.1" for name, *_ in self.blocks))
        self.widths = (width, *(b for _, _, b, _ in self.blocks))
        self.layers = self.convolution("stem", inputs[0], width, 3)
        for name, a, b, stride in self.blocks:
            self.layers |= self.convolution(f"{name}.conv.0", a, b, 3) | self.convolution(f"{name}.conv.1", b, b, 3)
            if stride != 1 or a != b:
                self.layers |= self.convolution(f"{name}.short", a, b, 1)
        self.layers["head"] = nn.Linear(8 * width, outputs)
        self.refuse_constant(inputs[1:], width)

    def refuse_constant(self, size: Sequence[int], width: int) -> None:
        """UsageError where a group of the norm is one number: less its mean it is zero, whatever the picture."""
        sides = list(size)
        for _, _, channels, stride in self.blocks:
            sides = [-(-side // stride) for side in sides]
            if self.norm == "group" and prod(sides) == 1 and channels == gcd(channels, 32):
                raise UsageError(
                    f"model.width={width}: pictures of {size[0]} x {size[1]} pixels shrink to one, of which group norm "
                    "with one channel a group leaves nothing; type a larger one, such as model.width=20, or "
                    "model.norm=batch."
                )

    def convolution(self, name: str, a: int, b: int, kernel: int) -> dict[str, nn.Module]:
        norm = nn.BatchNorm2d(b) if self.norm == "batch" else nn.GroupNorm(gcd(b, 32), b)
        return {name: nn.Conv2d(a, b, kernel, bias=False), f"{name}.norm": norm}

    def normalised(self, weights: Weights, name: str, x: Tensor, stride: int) -> Tensor:
        norm = weights.batch_norm if self.norm == "batch" else weights.group_norm
        return norm(f"{name}.norm", weights.conv(name, x, stride))

    def forward(self, weights: Weights, x: Tensor, tap: Tap, before: Tap) -> Tensor:
        h = tap(0, before(0, self.normalised(weights, "stem", x, 1)).relu())
        for i, (name, a, b, stride) in enumerate(self.blocks, 1):
            inner = self.normalised(weights, f"{name}.conv.0", h, stride).relu()
            short = h if stride == 1 and a == b else self.normalised(weights, f"{name}.short", h, stride)
            h = tap(i, before(i, self.normalised(weights, f"{name}.conv.1", inner, 1) + short).relu())
        return weights.linear("head", h.mean((2, 3)))


def initialise(network: Network, scheme: str) -> None:
    """`torch`: as PyTorch's layers do by default. `xavier`: Glorot & Bengio 2010 uniform weights, biases zero."""
    if scheme == "torch":
        return
    for module in network.layers.values():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def born(seed: int, kind: type[Network], scheme: str, **shape: Any) -> Network:
    """A network with the initial values that belong to `seed`; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = kind(**shape)
        initialise(network, scheme)
    return network


@dataclass(frozen=True)
class Net:
    """theta (P,), x (B, C, H, W), taps after and before the nonlinearities -> logits (B, outputs).

    In training (`statistics` None) or at rest; `reader` turns theta's pieces into `Weights` and is exchanged where a
    pass has to look inside (Fisher, batch norm). `autocast` is the type of the matrix products, None for theta's own.
    Given the very tensor `theta`, it reads `leaves` instead: its pieces, each a leaf of its own for autograd.
    """

    network: Network
    layout: Layout
    statistics: Statistics | None = None
    reader: Callable[[Mapping[str, Tensor], Statistics | None], Weights] = field(default=Weights)
    autocast: torch.dtype | None = None
    theta: Tensor | None = None
    leaves: Mapping[str, Tensor] = field(default_factory=dict)

    def __call__(self, theta: Tensor, x: Tensor, tap: Tap = no_tap, before: Tap = no_tap) -> Tensor:
        weights = self.reader(self.leaves if theta is self.theta else self.layout.view(theta), self.statistics)
        if self.autocast is None:
            return self.network.forward(weights, x, tap, before)
        with torch.autocast(theta.device.type, self.autocast):
            return self.network.forward(weights, x, tap, before).to(theta.dtype)

    def at_rest(self, statistics: Statistics) -> "Net":
        """The network as it is evaluated."""
        return replace(self, statistics=statistics)

    def refreshed(self, theta: Tensor, statistics: Statistics, x: Tensor, momentum: float = 0.1) -> Statistics:
        """Batch norm's running statistics after one more batch: a pass of its own, as the loss stays a function."""
        if not statistics:
            return statistics
        seen = []

        def reader(pieces: Mapping[str, Tensor], _: Statistics | None) -> Weights:
            seen.append(Watched(pieces, None))
            return seen[-1]

        replace(self, statistics=None, reader=reader)(theta.detach(), x)
        return {name: old.lerp(seen[0].seen[name], momentum) for name, old in statistics.items()}
