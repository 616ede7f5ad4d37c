"""Networks whose weights come from outside: forward(weights, x, tap) -> logits.

A network's `layers` are PyTorch modules, used for nothing but their names, shapes and initial values; what is computed
stands in `forward`, with weights read from the flat theta. So a run is a tensor, and R runs are one tensor more.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import gcd
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clrun.models.layout import Layout

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


class StatisticsRecorder(Weights):
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


def initialise(network: Network, scheme: str) -> None:
    """`torch`: as PyTorch's layers do by default. `xavier`: Glorot & Bengio 2010 uniform weights, biases zero."""
    if scheme == "torch":
        return
    for module in network.layers.values():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def initialize_network(seed: int, kind: type[Network], scheme: str, **shape: Any) -> Network:
    """A network with the initial values that belong to `seed`; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = kind(**shape)
        initialise(network, scheme)
    return network


class SplitTheta(Tensor):
    """A theta (P,) that brings its pieces with it, each of them a leaf of autograd on theta's own memory.

    A `Net` that is given one reads these pieces. The gradient of a loss by the pieces then is one tensor per parameter,
    of the parameter's shape, where the gradient by theta would first be concatenated to (P,). Everything else sees an
    ordinary flat theta: what is computed from a SplitTheta is a plain tensor, and depends on theta itself.
    """

    pieces: Mapping[str, Tensor]

    # What is computed from it is a plain tensor, as with torch.nn.Parameter. PyTorch's stubs give it another type.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def of(cls, layout: Layout, theta: Tensor) -> "SplitTheta":
        """Return theta (P,) with the pieces that the layout names."""
        split = torch.Tensor._make_subclass(cls, theta.detach(), True)
        split.pieces = {name: piece.detach().requires_grad_() for name, piece in layout.view(theta).items()}
        return split

    @property
    def leaves(self) -> list[Tensor]:
        """The pieces in the order of the layout."""
        return list(self.pieces.values())


@dataclass(frozen=True)
class Net:
    """theta (P,), x (B, C, H, W), taps after and before the nonlinearities -> logits (B, outputs).

    In training (`statistics` None) or at rest; `reader` turns theta's pieces into `Weights` and is exchanged where a
    pass has to look inside (Fisher, batch norm). `autocast` is the type of the matrix products, None for theta's own.
    """

    network: Network
    layout: Layout
    statistics: Statistics | None = None
    reader: Callable[[Mapping[str, Tensor], Statistics | None], Weights] = field(default=Weights)
    autocast: torch.dtype | None = None

    def __call__(self, theta: Tensor, x: Tensor, tap: Tap = no_tap, before: Tap = no_tap) -> Tensor:
        pieces = theta.pieces if isinstance(theta, SplitTheta) else self.layout.view(theta)
        weights = self.reader(pieces, self.statistics)
        if self.autocast is None:
            return self.network.forward(weights, x, tap, before)
        with torch.autocast(theta.device.type, self.autocast):
            return self.network.forward(weights, x, tap, before).to(theta.dtype)

    def eval_mode(self, statistics: Statistics) -> "Net":
        """The network as it is evaluated."""
        return replace(self, statistics=statistics)

    def refreshed(self, theta: Tensor, statistics: Statistics, x: Tensor, momentum: float = 0.1) -> Statistics:
        """Batch norm's running statistics after one more batch: a pass of its own, as the loss stays a function."""
        if not statistics:
            return statistics
        seen = []

        def reader(pieces: Mapping[str, Tensor], _: Statistics | None) -> Weights:
            seen.append(StatisticsRecorder(pieces, None))
            return seen[-1]

        replace(self, statistics=None, reader=reader)(theta.detach(), x)
        return {name: old.lerp(seen[0].seen[name], momentum) for name, old in statistics.items()}
