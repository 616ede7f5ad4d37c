"""Networks whose parameters come from outside: forward(weights, x, tap, before) -> logits.

The `layers` of a network are PyTorch modules that provide names, shapes and initial values and nothing else. What is
computed is in `forward`, with parameters read from the flat vector theta. A trained network is therefore one tensor,
and R networks of a stack are one tensor with a leading axis R.

Shapes: B samples, C channels, H x W pixels, P parameters.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import gcd
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clrun.models.batch_norm import (
    EPS,
    MOMENTUM,
    BatchNormMode,
    BatchNormRecord,
    Moments,
    RunningStatistics,
    batch_norm,
    initial_statistics,
)
from clrun.models.fixed import digest_of
from clrun.models.layout import Layout
from clrun.system.errors import UsageError

# tap(i, h) returns what the i-th hidden layer passes on in place of h (B, width, ...).
Tap = Callable[[int, Tensor], Tensor]

# Batch norm in training mode, over samples all of which are there.
TRAINING = BatchNormMode()


class Window(NamedTuple):
    """How the kernel of a convolution moves over an image."""

    padding: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...] = (1, 1)


def identity_tap(layer: int, h: Tensor) -> Tensor:
    """Return h as it is: the tap of a network that no strategy changes."""
    return h


# What the cosines of a cosine head are multiplied by: between -1 and 1, a softmax over them would stay almost uniform.
COSINE_SCALE = 10.0


class CosineLinear(nn.Module):
    """A head whose logits are 10 cos(W_o, h): the lengths of weights and features do not count.

    The initial weights are those of nn.Linear, which draws every direction with a like chance.
    """

    def __init__(self, features: int, outputs: int):
        super().__init__()
        self.weight = nn.Linear(features, outputs, bias=False).weight


def head_layer(kind: str | None, features: int, outputs: int) -> nn.Module:
    """Return a head: "linear", which is that of None, or "cosine"."""
    return CosineLinear(features, outputs) if kind == "cosine" else nn.Linear(features, outputs)


class Weights:
    """The parameters of one network, applied layer by layer.

    `pieces` is {"<layer>.<parameter>": tensor}. `mode` says how batch norm works in this pass: in training or with
    running statistics, over which samples, and where it records what it has seen.
    """

    def __init__(self, pieces: Mapping[str, Tensor], mode: BatchNormMode):
        self.pieces, self.mode = pieces, mode

    def forward_hook(self, name: str, x: Tensor, z: Tensor, window: Window | None = None) -> Tensor:
        """Return the output of layer `name`, which computed z from x; `window` is that of a convolution.

        It is called after every layer; the default returns z. Subclasses override it to record or to change outputs.
        """
        return z

    def linear(self, name: str, x: Tensor) -> Tensor:
        """Return the output (B, out) of a linear layer for x (B, in)."""
        return self.forward_hook(name, x, F.linear(x, self.pieces[f"{name}.weight"], self.pieces.get(f"{name}.bias")))

    def cosine(self, name: str, x: Tensor) -> Tensor:
        """Return the output (B, out) of a CosineLinear for x (B, in)."""
        z = COSINE_SCALE * F.linear(F.normalize(x, dim=1), F.normalize(self.pieces[f"{name}.weight"], dim=1))
        return self.forward_hook(name, x, z)

    def conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        """Return the output (B, out, H / stride, W / stride) of a convolution of x (B, in, H, W).

        It is padded by half its kernel, so that stride 1 keeps the size of the image.
        """
        weight = self.pieces[f"{name}.weight"]
        padding = weight.shape[-1] // 2
        z = F.conv2d(x, weight, self.pieces.get(f"{name}.bias"), stride, padding)
        return self.forward_hook(name, x, z, Window((padding, padding), (stride, stride)))

    def group_norm(self, name: str, x: Tensor) -> Tensor:
        """Return the group norm (B, C, H, W) of x (B, C, H, W), with gcd(C, 32) groups."""
        groups, scale, shift = gcd(x.shape[1], 32), self.pieces[f"{name}.weight"], self.pieces[f"{name}.bias"]
        # torch.group_norm also accepts groups of a single value, which F.group_norm refuses.
        return self.forward_hook(name, x, torch.group_norm(x, groups, scale, shift))

    def batch_norm(self, name: str, x: Tensor, eps: float = EPS, momentum: float | None = MOMENTUM) -> Tensor:
        """Return the batch norm of x (B, C) or (B, C, ...), in training over the samples that are there.

        eps and momentum are those of the layer. It never writes running statistics: it records the moments of the
        batch, from which the engine makes new ones (see `clrun.models.batch_norm`).
        """
        scale, shift = self.pieces.get(f"{name}.weight"), self.pieces.get(f"{name}.bias")
        z, moments = batch_norm(x, self.mode.weight_of(x), *self.running_moments(name), scale, shift, eps)
        if moments is not None and self.mode.records is not None:
            seen = Moments(*(v.detach() for v in moments))
            self.mode.records.append(BatchNormRecord(name, seen, momentum))
        return self.forward_hook(name, x, z)

    def running_moments(self, name: str) -> tuple[Tensor | None, Tensor | None]:
        """Return the running mean (C,) and variance (C,) of a batch norm; (None, None) in training."""
        running = self.mode.running or {}
        return running.get(f"{name}.mean"), running.get(f"{name}.var")


class Network:
    """The equation of a network: a subclass sets `layers`, `taps` and `widths` and overrides `forward`.

    `layers` are modules that provide names, shapes and initial values; the last is called "head". `taps` are the names
    of the hidden layers in order, and `widths` the number of units or channels of each.
    """

    layers: dict[str, nn.Module]
    taps: tuple[str, ...]
    widths: tuple[int, ...]
    activation_floats = 0  # that a sample leaves in all layers, where some are not applied by `Weights`
    no_taps = "type model=mlp or model=cnn"  # what to do for hidden layers, where there are none
    no_statistics = "type model.norm=group"  # what to do in place of batch norm's running statistics

    def forward(self, weights: Weights, x: Tensor, tap: Tap, before: Tap) -> Tensor:
        """Return the logits (B, outputs) of samples x (B, C, H, W), or (B, ...) of another shape.

        The i-th hidden layer is tap(i, relu(before(i, z))) with z (B, width, ...) its value before the nonlinearity:
        strategies change z by `before` and the activation by `tap`.
        """
        raise NotImplementedError

    def head(self, weights: Weights, h: Tensor) -> Tensor:
        """Return the logits (B, outputs) of features h (B, D), by the layer that is called "head"."""
        return weights.cosine("head", h) if self.has_cosine_head else weights.linear("head", h)

    @property
    def has_cosine_head(self) -> bool:
        """Whether the lengths of the head's weights do not count."""
        return isinstance(self.layers["head"], CosineLinear)

    def parameters(self) -> dict[str, Tensor]:
        """Return the initial values of all parameters: {"<layer>.<parameter>": tensor}."""
        return {f"{layer}.{name}": p.detach() for layer, m in self.layers.items() for name, p in m.named_parameters()}

    def statistics(self) -> RunningStatistics:
        """Return the initial running statistics of all batch norms, by name; those that the layers hold by default.

        A network whose batch norms lie elsewhere than in `layers`, such as in a module with modules of its own,
        overrides it: the name of a batch norm is the one by which `forward` calls `weights.batch_norm`.
        """
        return initial_statistics(self.layers)

    @cached_property
    def has_batch_norm(self) -> bool:
        """Whether the samples of a batch are normalised together; by default whether there are running statistics.

        A network all of whose batch norms are without running statistics overrides it.
        """
        return bool(self.statistics())

    @property
    def has_dropout(self) -> bool:
        """Whether a pass in training mode needs noise; by default it does not."""
        return False

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move what a pass reads besides theta to a device, floating-point numbers as `dtype`; by default nothing."""

    def fixed_tensors(self) -> dict[str, Tensor]:
        """Return what a pass reads besides theta and running statistics, by name; by default nothing."""
        return {}

    def set_fixed_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Write values into what `fixed_tensors` names, such as those that a finished run has stored.

        Raise ValueError if names or shapes differ.
        """
        mine = self.fixed_tensors()
        if {name: v.shape for name, v in mine.items()} != {name: v.shape for name, v in tensors.items()}:
            raise ValueError("what the network reads besides its weights is not as the code wants it")
        for name, v in tensors.items():
            mine[name].copy_(v)

    def state_dict(self, weights: Mapping[str, Tensor], statistics: RunningStatistics) -> dict[str, Tensor]:
        """Return the weights {"<layer>.<parameter>": tensor} and the running statistics of a trained network by the
        names that a torch.nn.Module of these layers has."""
        return dict(weights) | {running_name(name): v for name, v in statistics.items()}

    def fixed(self) -> str:
        """Return a digest of what a pass reads besides theta; "" for nothing, as by default.

        Runs that differ in it cannot be trained as one stack.
        """
        return digest_of(self.fixed_tensors())


class FeatureWeights(Weights):
    """Weights that append the inputs of the head to `seen`."""

    def __init__(self, pieces: Mapping[str, Tensor], mode: BatchNormMode, seen: list[Tensor]):
        super().__init__(pieces, mode)
        self.seen = seen

    def forward_hook(self, name: str, x: Tensor, z: Tensor, window: Window | None = None) -> Tensor:
        if name == "head":
            self.seen.append(x)
        return z


# The last part of the name of a running statistic, and what torch.nn.BatchNorm2d calls it.
RUNNING = {"mean": "running_mean", "var": "running_var", "batches": "num_batches_tracked"}


def running_name(name: str) -> str:
    """Return the name in a state_dict of a running statistic "<layer>.<statistic>"."""
    layer, _, statistic = name.rpartition(".")
    return f"{layer}.{RUNNING[statistic]}"


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

    `torch` leaves the values that PyTorch's layers have by default. `xavier` and `kaiming` set the biases of linear
    layers and convolutions to zero and their weights to uniform values: those of Glorot & Bengio 2010, or those of He
    et al. 2015, with the gain of ReLU everywhere but in the head.
    """
    if scheme == "torch":
        return
    for name, module in network.layers.items():
        if isinstance(module, nn.Linear | nn.Conv2d):
            if scheme == "xavier":
                nn.init.xavier_uniform_(module.weight)
            else:
                nn.init.kaiming_uniform_(module.weight, nonlinearity="linear" if name == "head" else "relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def initialize_network(seed: int, kind: type[Network], scheme: str, **shape: Any) -> Network:
    """Return a network with the initial values that belong to `seed`; PyTorch's global generator is left unchanged."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = kind(**shape)
        initialize_layers(network, scheme)
    return network


class PositionCounter(Weights):
    """Weights that append to `seen` how many values of one sample each channel of a batch norm has."""

    def __init__(self, pieces: Mapping[str, Tensor], mode: BatchNormMode, seen: list[int]):
        super().__init__(pieces, mode)
        self.seen = seen

    def batch_norm(self, name: str, x: Tensor, eps: float = EPS, momentum: float | None = MOMENTUM) -> Tensor:
        self.seen.append(x.shape[2:].numel() * len(x))
        return x


def normalises_one_sample(network: Network, shape: Sequence[int]) -> bool:
    """Return whether every batch norm can normalise a batch of one sample, of the given shape (C, H, W).

    It cannot where a channel of the sample is a single value, whose deviation from the mean is 0.
    """
    seen: list[int] = []
    with torch.no_grad():
        mode = BatchNormMode(noise=torch.zeros(1, 1))  # for dropout, which changes no size
        weights = PositionCounter(network.parameters(), mode, seen)
        network.forward(weights, torch.zeros(1, *shape), identity_tap, identity_tap)
    return min(seen, default=2) > 1


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


# From the pieces of theta and the mode of batch norm to what a network reads its weights from.
WeightsReader = Callable[[Mapping[str, Tensor], BatchNormMode], Weights]


@dataclass(frozen=True)
class Net:
    """A network as a function: net(theta, x, tap, before) -> logits.

    theta is (P,), x (B, C, H, W), the logits (B, outputs). `tap` and `before` change hidden layers after and before
    the nonlinearity. `reader` makes `Weights` of the pieces of theta and the mode of batch norm; it is replaced where a
    pass has to look inside (Fisher information). `autocast` is the type of matrix products, None for theta's own type.
    `mode` is how batch norm works. Given a `SplitTheta`, it reads its pieces.
    """

    network: Network
    layout: Layout
    reader: WeightsReader = field(default=Weights)
    autocast: torch.dtype | None = None
    mode: BatchNormMode = TRAINING

    def __call__(self, theta: Tensor, x: Tensor, tap: Tap = identity_tap, before: Tap = identity_tap) -> Tensor:
        return self.read_by(self.reader, theta, x, tap, before)

    def read_by(
        self, reader: WeightsReader, theta: Tensor, x: Tensor, tap: Tap = identity_tap, before: Tap = identity_tap
    ) -> Tensor:
        """Return the logits with another reader, without a network of its own: PyTorch 2.11 compiles no `replace`."""
        pieces = theta.pieces if isinstance(theta, SplitTheta) else self.layout.view(theta)
        weights = reader(pieces, self.mode.of_batch(x.shape[0]))
        if self.autocast is None:
            return self.network.forward(weights, x, tap, before)
        with torch.autocast(theta.device.type, self.autocast):
            return self.network.forward(weights, x, tap, before).to(theta.dtype)

    def features(self, theta: Tensor, x: Tensor) -> Tensor:
        """Return the features (B, D) of x (B, ...): what the head is given, as `Weights.forward_hook` sees it.

        Those of a head that is a convolution, with positions behind D, are averaged over the positions.
        """
        seen: list[Tensor] = []
        self.recording(seen)(theta, x)
        features = seen[-1].to(theta.dtype)
        return features if features.dim() == 2 else features.flatten(2).mean(-1)

    def recording(self, seen: list[Tensor]) -> "Net":
        """Return the network that appends what the head is given to `seen` in each pass."""
        return replace(self, reader=lambda pieces, mode: FeatureWeights(pieces, mode, seen))

    @property
    def feature_count(self) -> int:
        """The number D of features."""
        return self.layout.shapes["head.weight"][1]

    @property
    def statistics(self) -> RunningStatistics | None:
        """The running statistics of batch norm in evaluation mode; None in training mode."""
        return self.mode.running

    def eval_mode(self, statistics: RunningStatistics) -> "Net":
        """Return the network in evaluation mode, with these running statistics for batch norm."""
        return replace(self, mode=BatchNormMode(statistics))

    def train_mode(
        self, sample_weight: Tensor | None, records: list[BatchNormRecord] | None, noise: Tensor | None = None
    ) -> "Net":
        """Return the network in training mode, for one step of training.

        sample_weight (B,) says which samples of the step's batch are there, None for all of them. What each batch norm
        sees is appended to `records` in each pass; None: it is not recorded. noise (K, B) are the step's uniform
        numbers, from which the masks of dropout follow.
        """
        return replace(self, mode=BatchNormMode(None, sample_weight, records, noise))

    def weighing(self, sample_weight: Tensor) -> "Net":
        """Return the network for passes in which sample_weight (B,), 1 or 0, says which of the B samples are there.

        In evaluation mode, in which samples do not depend on each other, it is the network itself.
        """
        return (
            self if self.statistics is not None else self.train_mode(sample_weight, self.mode.records, self.mode.noise)
        )

    def unrecorded(self) -> "Net":
        """Return the network for passes that do not count for the running statistics."""
        return replace(self, mode=replace(self.mode, records=None))
