"""The layers of a torch.nn.Module that read what a pass of clrun's brings with it: hooks and replaced layers.

A pass of a network has more than pictures: the running statistics of batch norm, which belong to the run, the samples
that are there, numbers for dropout, and a strategy's changes of hidden layers. `connect` puts layers into a module that
read these from a `Connection`, which holds them for the time of the pass:

    Linear, Conv2d, LayerNorm, GroupNorm
                        get a hook, so that the Fisher information can look at their inputs and outputs
    BatchNorm1d, 2d, 3d are replaced by a layer that calls `weights.batch_norm`
    Dropout, Dropout1d, 2d, 3d, torchvision's StochasticDepth, timm's DropPath
                        are replaced by a layer whose masks follow from the noise of the step
    ReLU and its kind   get hooks: their inputs and outputs are the hidden layers that strategies change

Shapes: B samples.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

from torch import Tensor, nn

from clrun.models.batch_norm import batch_norm
from clrun.models.dropout import keep_mask
from clrun.models.network import Tap, Weights, Window
from clrun.system.errors import UsageError

# The nonlinearities whose calls are hidden layers.
ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus,
    nn.Tanh, nn.Sigmoid, nn.Hardswish, nn.Hardtanh, nn.Hardsigmoid,
)  # fmt: skip

# The layers whose masks can be drawn from the noise of a step, and how many dimensions of the input a mask has: all,
# samples and channels, or samples alone. The others are found by the name of their class, as libraries have their own.
ELEMENTS, CHANNELS, SAMPLES = "elements", "channels", "samples"
DROPOUT = {nn.Dropout: ELEMENTS, nn.Dropout1d: CHANNELS, nn.Dropout2d: CHANNELS, nn.Dropout3d: CHANNELS}


class Pass:
    """What one forward pass brings with it. `dropout` and `activations` number the calls of such layers."""

    def __init__(self, weights: Weights, tap: Tap, before: Tap):
        self.weights, self.tap, self.before = weights, tap, before
        self.dropout, self.activations = count(), count()
        self.tapped: int | None = None  # the hidden layer that is under way


@dataclass
class Connection:
    """Where the layers of a module find the pass that is under way.

    `hidden` maps the number of a call of an activation to the hidden layer that it is; None: each call is one.
    """

    current: Pass | None = None
    hidden: Mapping[int, int] | None = field(default_factory=dict)

    @contextmanager
    def during(self, current: Pass) -> Iterator[None]:
        """Let the layers read this pass while the block runs."""
        self.current = current
        try:
            yield
        finally:
            self.current = None


class BatchNorm(nn.BatchNorm2d):
    """A batch norm that calls `weights.batch_norm`; `drop` and `act` follow it in timm's layers that have them."""

    def __init__(self, name: str, layer: Any, connection: Connection):
        super().__init__(layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
        self.load_state_dict(layer.state_dict(), strict=False)
        self.name, self.connection = name, connection
        self.frozen = False
        self.drop, self.act = getattr(layer, "drop", nn.Identity()), getattr(layer, "act", nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        """Return the batch norm of x (B, C, ...); of a frozen layer by its own statistics, which stay as they are."""
        current = self.connection.current
        if self.frozen or current is None:
            z = batch_norm(x, None, self.running_mean, self.running_var, self.weight, self.bias, self.eps)[0]
        else:
            z = current.weights.batch_norm(self.name, x, self.eps, self.momentum)
        return self.act(self.drop(z))


class Dropout(nn.Module):
    """A dropout whose mask follows from the noise of the step; in evaluation it returns its input."""

    def __init__(self, p: float, kind: str, connection: Connection, scaled: bool = True):
        super().__init__()
        self.p, self.kind, self.connection = p, kind, connection
        self.factor = 1 / (1 - p) if scaled and p < 1 else 1.0  # so that the mean stays the same

    def forward(self, x: Tensor) -> Tensor:
        """Return x (B, ...) with entries, channels or samples set to zero with probability p."""
        current = self.connection.current
        if current is None or current.weights.mode.running is not None or self.p == 0:
            return x
        dimensions = {ELEMENTS: x.dim(), CHANNELS: 2, SAMPLES: 1}[self.kind]
        shape = (*x.shape[:dimensions], *[1] * (x.dim() - dimensions))
        noise = current.weights.mode.noise_of(x)
        return x * keep_mask(noise, next(current.dropout), shape, self.p).to(x.dtype) * self.factor


def connect(module: nn.Module, connection: Connection, names: Mapping[str, str]) -> nn.Module:
    """Return the module with connected layers. `names` maps the path of a layer to the name of that layer in theta.

    Raise UsageError for a batch norm that cannot be connected.
    """
    module = replace_layers(module, "", connection, names)
    for path, layer in module.named_modules():
        if type(layer) in (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.GroupNorm):
            layer.register_forward_hook(partial(report_layer, connection, names.get(path, path)))
        if isinstance(layer, ACTIVATIONS):
            if hasattr(layer, "inplace"):
                layer.inplace = False
            layer.register_forward_pre_hook(partial(enter_activation, connection))
            layer.register_forward_hook(partial(leave_activation, connection))
    return module


def replace_layers(module: nn.Module, path: str, connection: Connection, names: Mapping[str, str]) -> nn.Module:
    """Return a layer's replacement, or the module with replaced layers."""
    new = replacement(module, path, connection, names)
    for name, child in list((new or module).named_children()):
        setattr(new or module, name, replace_layers(child, f"{path}.{name}".lstrip("."), connection, names))
    return new or module


def replacement(layer: nn.Module, path: str, connection: Connection, names: Mapping[str, str]) -> nn.Module | None:
    """Return what takes the place of a layer; None if it stays."""
    kind = type(layer).__name__
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        known = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
        if type(layer) not in known and kind != "BatchNormAct2d":
            raise UsageError(f"the layer {path} is a {kind}, which clrun does not know; use nn.BatchNorm2d.")
        return BatchNorm(names.get(path, path), layer, connection)
    for dropout, of in DROPOUT.items():
        if type(layer) is dropout:
            return Dropout(float(layer.p), of, connection)
    if kind == "StochasticDepth" and layer.mode == "row":
        return Dropout(float(layer.p), SAMPLES, connection)  # type: ignore[arg-type]
    if kind == "DropPath":
        return Dropout(float(layer.drop_prob or 0), SAMPLES, connection, bool(layer.scale_by_keep))  # type: ignore[arg-type]
    return None


# ---------------------------------------------------------------- hooks


def report_layer(connection: Connection, name: str, layer: nn.Module, inputs: tuple[Any, ...], z: Tensor) -> Any:
    """Return the output z of a layer that a hook reports, as the pass wants it."""
    current = connection.current
    if current is None:
        return None
    if isinstance(layer, nn.Conv2d):
        if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            return None  # its input cannot be unfolded by stated numbers
        return current.weights.forward_hook(name, inputs[0], z, Window(layer.padding, layer.stride, layer.dilation))
    return current.weights.forward_hook(name, inputs[0], z)


def enter_activation(connection: Connection, layer: nn.Module, inputs: tuple[Any, ...]) -> Any:
    """Return what a nonlinearity is given: its input, as a strategy changes hidden layers before the nonlinearity."""
    current = connection.current
    if current is None:
        return None
    call = next(current.activations)
    current.tapped = call if connection.hidden is None else connection.hidden.get(call)
    return None if current.tapped is None else (current.before(current.tapped, inputs[0]),)


def leave_activation(connection: Connection, layer: nn.Module, inputs: tuple[Any, ...], h: Tensor) -> Any:
    """Return the output h of a nonlinearity, as a strategy changes hidden layers after the nonlinearity."""
    current = connection.current
    if current is None or current.tapped is None:
        return None
    return current.tap(current.tapped, h)
