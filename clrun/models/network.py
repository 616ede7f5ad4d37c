"""Networks whose parameters come from outside: forward(weights, x, tap, before) -> logits.

The `layers` of a network are PyTorch modules that provide names, shapes and initial values and nothing else. What is
computed is in `forward`, with parameters read from the flat vector theta. A trained network is therefore one tensor,
and R networks of a stack are one tensor with a leading axis R.

Shapes: B samples, C channels, H x W pixels, P parameters.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import gcd
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clrun.models.layout import Layout
from clrun.system.errors import UsageError

# tap(i, h) returns what the i-th hidden layer passes on in place of h (B, width, ...).
Tap = Callable[[int, Tensor], Tensor]

# The running means and variances of all batch norms: {"<layer>.mean": (C,), "<layer>.var": (C,)}.
RunningStatistics = dict[str, Tensor]


def identity_tap(layer: int, h: Tensor) -> Tensor:
    """Return h as it is: the tap of a network that no strategy changes."""
    return h


class Weights:
    """The parameters of one network, applied layer by layer.

    `pieces` is {"<layer>.<parameter>": tensor}. `statistics` None means training, where batch norm uses the mean and
    variance of the batch; otherwise the network is in evaluation mode and batch norm uses these running statistics.
    """

    def __init__(self, pieces: Mapping[str, Tensor], statistics: RunningStatistics | None):
        self.pieces, self.statistics = pieces, statistics

    def forward_hook(self, name: str, x: Tensor, z: Tensor, stride: int = 1) -> Tensor:
        """Return the output of layer `name`, which computed z from x.

        It is called after every layer; the default returns z. Subclasses override it to record or to change outputs.
        """
        return z

    def linear(self, name: str, x: Tensor) -> Tensor:
        """Return the output (B, out) of a linear layer for x (B, in)."""
        return self.forward_hook(name, x, F.linear(x, self.pieces[f"{name}.weight"], self.pieces[f"{name}.bias"]))

    def conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        """Return the output (B, out, H / stride, W / stride) of a convolution of x (B, in, H, W).

        It is padded by half its kernel, so that stride 1 keeps the size of the image.
        """
        weight = self.pieces[f"{name}.weight"]
        z = F.conv2d(x, weight, self.pieces.get(f"{name}.bias"), stride, weight.shape[-1] // 2)
        return self.forward_hook(name, x, z, stride)

    def group_norm(self, name: str, x: Tensor) -> Tensor:
        """Return the group norm (B, C, H, W) of x (B, C, H, W), with gcd(C, 32) groups."""
        groups, scale, shift = gcd(x.shape[1], 32), self.pieces[f"{name}.weight"], self.pieces[f"{name}.bias"]
        # torch.group_norm also accepts groups of a single value, which F.group_norm refuses.
        return self.forward_hook(name, x, torch.group_norm(x, groups, scale, shift))

    def batch_norm(self, name: str, x: Tensor) -> Tensor:
        """Return the batch norm (B, C, H, W) of x (B, C, H, W).

        It never writes running statistics; `Net.updated_statistics` returns those as a new value.
        """
        scale, shift = self.pieces[f"{name}.weight"], self.pieces[f"{name}.bias"]
        z = F.batch_norm(x, *self.running_moments(name), scale, shift, self.statistics is None)
        return self.forward_hook(name, x, z)

    def running_moments(self, name: str) -> tuple[Tensor | None, Tensor | None]:
        """Return the running mean (C,) and variance (C,) of a batch norm; (None, None) in training."""
        running = self.statistics or {}
        return running.get(f"{name}.mean"), running.get(f"{name}.var")


class StatisticsRecorder(Weights):
    """Weights in training mode that record the mean and variance of the input of each batch norm in `recorded`."""

    def __init__(self, pieces: Mapping[str, Tensor], recorded: RunningStatistics):
        super().__init__(pieces, None)
        self.recorded = recorded

    def batch_norm(self, name: str, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=1)
        self.recorded |= {f"{name}.var": variance, f"{name}.mean": mean}
        return super().batch_norm(name, x)


class Network:
    """The equation of a network: a subclass sets `layers`, `taps` and `widths` and overrides `forward`.

    `layers` are modules that provide names, shapes and initial values; the last is called "head". `taps` are the names
    of the hidden layers in order, and `widths` the number of units or channels of each.
    """

    layers: dict[str, nn.Module]
    taps: tuple[str, ...]
    widths: tuple[int, ...]

    def forward(self, weights: Weights, x: Tensor, tap: Tap, before: Tap) -> Tensor:
        """Return the logits (B, outputs) of samples x (B, C, H, W), or (B, ...) of another shape.

        The i-th hidden layer is tap(i, relu(before(i, z))) with z (B, width, ...) its value before the nonlinearity:
        strategies change z by `before` and the activation by `tap`.
        """
        raise NotImplementedError

    def parameters(self) -> dict[str, Tensor]:
        """Return the initial values of all parameters: {"<layer>.<parameter>": tensor}."""
        return {f"{layer}.{name}": p.detach() for layer, m in self.layers.items() for name, p in m.named_parameters()}

    def statistics(self) -> RunningStatistics:
        """Return the initial running statistics of all batch norms: mean 0 and variance 1."""
        norms = {name: m for name, m in self.layers.items() if isinstance(m, nn.BatchNorm2d)}
        means = {f"{name}.mean": torch.zeros(m.num_features) for name, m in norms.items()}
        return means | {f"{name}.var": torch.ones(m.num_features) for name, m in norms.items()}


def picture_shape(inputs: Sequence[int], model: str) -> tuple[int, int, int]:
    """Return (channels, height, width). Raise UsageError where the samples are no pictures, which `model` needs."""
    if len(inputs) != 3:
        raise UsageError(
            f"model={model} needs pictures (channels, height, width), and a sample of this data set is "
            f"{' x '.join(map(str, inputs))} numbers; type model=mlp."
        )
    channels, height, width = inputs
    return channels, height, width


def initialize_layers(network: Network, scheme: str) -> None:
    """Write initial values into the layers of a network.

    `torch` leaves the values that PyTorch's layers have by default. `xavier` sets the weights of linear layers and
    convolutions to the uniform values of Glorot & Bengio 2010 and their biases to zero.
    """
    if scheme == "torch":
        return
    for module in network.layers.values():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def initialize_network(seed: int, kind: type[Network], scheme: str, **shape: Any) -> Network:
    """Return a network with the initial values that belong to `seed`; PyTorch's global generator is left unchanged."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = kind(**shape)
        initialize_layers(network, scheme)
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
    """A network as a function: net(theta, x, tap, before) -> logits.

    theta is (P,), x (B, C, H, W), the logits (B, outputs). `tap` and `before` change hidden layers after and before
    the nonlinearity. `statistics` None means training mode, otherwise they are batch norm's running statistics.
    `reader` makes `Weights` of the pieces of theta and the statistics; it is replaced where a pass has to look inside
    (Fisher information, batch norm). `autocast` is the type of matrix products, None for theta's own type.
    Given a `SplitTheta`, it reads its pieces.
    """

    network: Network
    layout: Layout
    statistics: RunningStatistics | None = None
    reader: Callable[[Mapping[str, Tensor], RunningStatistics | None], Weights] = field(default=Weights)
    autocast: torch.dtype | None = None

    def __call__(self, theta: Tensor, x: Tensor, tap: Tap = identity_tap, before: Tap = identity_tap) -> Tensor:
        pieces = theta.pieces if isinstance(theta, SplitTheta) else self.layout.view(theta)
        weights = self.reader(pieces, self.statistics)
        if self.autocast is None:
            return self.network.forward(weights, x, tap, before)
        with torch.autocast(theta.device.type, self.autocast):
            return self.network.forward(weights, x, tap, before).to(theta.dtype)

    def eval_mode(self, statistics: RunningStatistics) -> "Net":
        """Return the network in evaluation mode, with these running statistics for batch norm."""
        return replace(self, statistics=statistics)

    def updated_statistics(
        self, theta: Tensor, statistics: RunningStatistics, x: Tensor, momentum: float = 0.1
    ) -> RunningStatistics:
        """Return batch norm's running statistics after one more batch x (B, C, H, W).

        It takes a forward pass of its own, so that the loss stays a function without side effects. A network without
        batch norm returns its (empty) statistics at once.
        """
        if not statistics:
            return statistics
        recorded: RunningStatistics = {}

        def reader(pieces: Mapping[str, Tensor], _: RunningStatistics | None) -> Weights:
            return StatisticsRecorder(pieces, recorded)

        replace(self, statistics=None, reader=reader)(theta.detach(), x)
        return {name: old.lerp(recorded[name], momentum) for name, old in statistics.items()}
