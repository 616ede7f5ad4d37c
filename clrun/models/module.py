"""A torch.nn.Module as a network of clrun: run by `torch.func.functional_call` on views of theta.

The module keeps its forward pass. What changes:

* Its trained parameters are read from theta. They are called `body.<path>` there, where `<path>` is their name in the
  module, and those of the last linear layer, the head, `head.weight` and `head.bias`.
* The head is made to fit the number of outputs, or one is added.
* Parameters that are not trained stay in the module and are no part of theta.
* Batch norm, dropout and nonlinearities are connected to what a pass brings with it (`clrun.models.layers`). Anything
  else that changes a buffer or draws random numbers in a forward pass is refused.

Shapes: B samples.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from clrun.models import hidden_layers
from clrun.models.batch_norm import BatchNormMode, RunningStatistics, initial_statistics
from clrun.models.layers import BatchNorm, Connection, Dropout, Pass, connect
from clrun.models.making import made_by
from clrun.models.network import RUNNING, Network, Tap, Weights, identity_tap
from clrun.models.probing import example, guessed, is_meta, probed
from clrun.models.weights_file import load_weights
from clrun.system.errors import UsageError

# Rows of noise of a probing pass, as many as `clrun.data.seeding.DRAWS`.
PROBE_NOISE = 6


class WithHead(nn.Module):
    """A module that returns features, and a linear head on them."""

    def __init__(self, body: nn.Module, head: nn.Linear):
        super().__init__()
        self.body, self.head = body, head

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs (B, outputs) for x (B, ...)."""
        return self.head(self.body(x))


class ModuleNetwork(Network):
    """A module of the user's, made by `target`: the path of a class, or of a function that returns a module.

    It is called with `args` and, where it has such parameters, with `outputs` or `num_classes`, the number of outputs,
    and `inputs`, the shape of a picture. `weights` is a file of initial values, `train` says which parameters are
    trained, and `head` is "auto" or "append". Raise UsageError if it cannot be a network of clrun.
    """

    no_taps = "write its nonlinearities as modules, such as nn.ReLU(), with inputs (B, K) or (B, K, H, W)"
    no_statistics = "use a network with group norm or layer norm in place of batch norm"
    channels: int | None = None  # of the pictures that the module takes; None: of those that there are

    def __init__(
        self, inputs: Sequence[int], outputs: int, target: str | None, args: Mapping[str, Any] | None,
        weights: str | None, train: str, head: str,
    ):  # fmt: skip
        if target is None:
            raise UsageError("model=module needs the class of your network: type model.target=package.Class.")
        if weights == "DEFAULT":
            raise UsageError("model.weights=DEFAULT: only model=torchvision and model=timm have any; name a file.")
        self.where = f"model.target={target}"
        offered = {"outputs": outputs, "num_classes": outputs, "inputs": tuple(inputs)}
        self.adopt(made_by(target, offered, args or {}, self.where), inputs, outputs, weights, train, head)

    # ---------------------------------------------------------------- from a module to a network

    def adopt(
        self, module: nn.Module, inputs: Sequence[int], outputs: int, weights: str | Mapping[str, Tensor] | None,
        train: str, head: str,
    ) -> None:  # fmt: skip
        """Make this the network of a module."""
        if self.channels is not None and inputs[0] not in (1, self.channels):
            raise UsageError(f"{self.where} takes {self.channels} channels, and these pictures have {inputs[0]}.")
        self.inputs, self.connection, empty = tuple(inputs), Connection(), is_meta()
        x = torch.empty(0) if empty else example(inputs)
        calls = guessed(module) if empty else probed(module.eval(), self.as_input(x), self.where, self.inputs)
        head_path = calls.head() if head == "auto" else None
        if weights is not None and not empty:
            load_weights(module, weights, head_path, self.where)
        self.module, head_path = fitted(module, head_path, calls.width, outputs)
        self.name_parameters(head_path, train)
        self.module = connect(self.module.train(), self.connection, self.layer_names).requires_grad_(False)
        self.freeze_batch_norms(train)
        modules = dict(self.module.named_modules())
        owners = dict.fromkeys(path.rpartition(".")[0] for path in self.paths.values())
        self.layers = {self.layer_names[path]: modules[path] for path in owners}
        self.activation_floats, self.taps, self.widths = calls.floats, (), ()
        if not empty:
            self.refuse_state_and_chance(x)
            self.connection.hidden = None  # every call of a nonlinearity is one
            self.connection.hidden, self.taps, self.widths = hidden_layers.find(self.probe, [*self.layers], x)

    def freeze_batch_norms(self, train: str) -> None:
        """Let batch norms of which no parameter is trained keep their statistics, unless everything is trained."""
        for layer in self.module.modules():
            if isinstance(layer, BatchNorm):
                layer.frozen = train != "all" and not any(name.startswith(f"{layer.name}.") for name in self.paths)

    def name_parameters(self, head_path: str, train: str) -> None:
        """Name layers and parameters, and choose those that are trained. Raise UsageError for a wrong `train`."""
        appended = isinstance(self.module, WithHead)

        def layer_name(path: str) -> str:
            if path == head_path:
                return "head"
            return path if appended else f"body.{path}".rstrip(".")

        self.layer_names = {path: layer_name(path) for path, _ in self.module.named_modules()}
        named = {}
        for path, _ in self.module.named_parameters():
            layer, _, parameter = path.rpartition(".")
            named[f"{self.layer_names[layer]}.{parameter}"] = path
        trained = [name for name in named if name.startswith("head.") or self.trains(name, train)]
        if train not in ("all", "head") and not any(not name.startswith("head.") for name in trained):
            some = ", ".join(name.removeprefix("body.") for name in list(named)[:4])
            raise UsageError(f"model.train={train}: it fits none of the parameters, which are {some}, ...")
        last = [name for name in trained if name.startswith("head.")]
        self.paths = {name: named[name] for name in [n for n in trained if n not in last] + last}

    def trains(self, name: str, train: str) -> bool:
        """Return whether a parameter of the body is trained. Raise UsageError for a wrong regular expression."""
        if train in ("all", "head"):
            return train == "all"
        try:
            return re.search(train, name.removeprefix("body.")) is not None
        except re.error as error:
            raise UsageError(
                f"model.train={train} is no regular expression ({error}); type all, head, or one such as 'layer4|fc'."
            ) from None

    def refuse_state_and_chance(self, x: Tensor) -> None:
        """Raise UsageError if a pass in training mode changes a buffer, or if it is not a function of its input."""
        before = {name: buffer.clone() for name, buffer in self.module.named_buffers()}
        rng = torch.get_rng_state()
        first, second = (self.probe(x) for _ in range(2))
        changed = [n for n, v in self.module.named_buffers() if n not in before or not torch.equal(v, before[n])]
        if changed:
            raise UsageError(
                f"{self.where}: its buffer {changed[0]} changes in a forward pass, and a run could not be repeated or "
                "stacked; leave that layer out, or use nn.BatchNorm2d, whose statistics clrun keeps."
            )
        if not (torch.equal(rng, torch.get_rng_state()) and torch.equal(first, second)):
            raise UsageError(
                f"{self.where} draws random numbers in its forward pass, which do not follow the run's seed; use "
                "nn.Dropout layers, whose numbers do, in place of F.dropout, and set dropout within attention and "
                "recurrent layers to 0."
            )

    def probe(
        self, x: Tensor, training: bool = True, tap: Tap = identity_tap, before: Tap = identity_tap,
        reader: Callable[..., Weights] = Weights,
    ) -> Tensor:  # fmt: skip
        """Return the outputs (B, outputs) for x (B, ...) with the initial values of the parameters."""
        noise = torch.linspace(0, 0.9, PROBE_NOISE * len(x)).view(PROBE_NOISE, len(x))
        running = None if training else {name: v.to(x.dtype) for name, v in self.statistics().items()}
        mode = BatchNormMode(running, noise=noise)
        with torch.no_grad():
            return self.forward(reader(self.parameters(), mode), x, tap, before)

    # ---------------------------------------------------------------- the network

    def as_input(self, x: Tensor) -> Tensor:
        """Return pictures x (B, C, H, W) with as many channels as the module takes: grey ones count as coloured."""
        if self.channels is None or x.shape[1] == self.channels:
            return x
        return x.expand(-1, self.channels, *x.shape[2:])

    def forward(self, weights: Weights, x: Tensor, tap: Tap, before: Tap) -> Tensor:
        """Return the outputs (B, outputs) of x (B, ...)."""
        from torch.func import functional_call

        training = weights.mode.running is None
        if self.module.training != training:
            self.module.train(training)
        pieces = {path: weights.pieces[name] for name, path in self.paths.items()}
        with self.connection.during(Pass(weights, tap, before)):
            return functional_call(self.module, pieces, (self.as_input(x),))

    def parameters(self) -> dict[str, Tensor]:
        """Return the initial values of the trained parameters, those of the head last."""
        values = dict(self.module.named_parameters())
        return {name: values[path].detach() for name, path in self.paths.items()}

    def batch_norms(self) -> list[BatchNorm]:
        """Return the batch norms that use the statistics of a batch in training."""
        return [layer for layer in self.module.modules() if isinstance(layer, BatchNorm) and not layer.frozen]

    def statistics(self) -> RunningStatistics:
        return initial_statistics({layer.name: layer for layer in self.batch_norms()})

    @cached_property
    def has_batch_norm(self) -> bool:
        return bool(self.batch_norms())

    @property
    def has_dropout(self) -> bool:
        return any(isinstance(layer, Dropout) and layer.p > 0 for layer in self.module.modules())

    def state_dict(self, weights: Mapping[str, Tensor], statistics: RunningStatistics) -> dict[str, Tensor]:
        """Return all tensors of the module with these weights and running statistics, by the names that it has for
        them itself, so that the module in the user's own code loads them."""
        tensors = dict(self.module.state_dict())
        paths = {layer.name: path for path, layer in self.module.named_modules() if isinstance(layer, BatchNorm)}
        for name, v in statistics.items():
            layer, _, statistic = name.rpartition(".")
            tensors[f"{paths[layer]}.{RUNNING[statistic]}"] = v
        return tensors | {path: weights[name] for name, path in self.paths.items()}

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move what is no part of theta to a device, floating-point numbers as `dtype`."""
        self.module.to(device, dtype)

    def fixed_tensors(self) -> dict[str, Tensor]:
        """Return all values that are no part of theta and could differ between seeds."""
        trained = set(self.paths.values())
        frozen = {n: p.detach() for n, p in self.module.named_parameters() if n not in trained}
        kept = {f"{layer.name}.": None for layer in self.batch_norms()}
        buffers = {n: b for n, b in self.module.named_buffers() if not any(self.owner(n).startswith(k) for k in kept)}
        return frozen | buffers

    def owner(self, buffer: str) -> str:
        """Return the name in theta of the layer that holds a buffer, with a dot at its end."""
        return f"{self.layer_names.get(buffer.rpartition('.')[0], '')}."


def fitted(module: nn.Module, path: str | None, width: int, outputs: int) -> tuple[nn.Module, str]:
    """Return the module with a head of this many outputs, and the path of the head.

    path: of the present head, which is replaced where it has another size; None: a head is added to features of this
    width.
    """
    if path is None:
        return WithHead(module, nn.Linear(width, outputs)), "head"
    head = module.get_submodule(path) if path else module
    new = replaced_head(head, outputs)
    if new is not head and path:
        parent, _, name = path.rpartition(".")
        setattr(module.get_submodule(parent), name, new)
    elif new is not head:
        return new, path
    return module, path


def replaced_head(head: nn.Module, outputs: int) -> nn.Module:
    """Return the head, or a new one of its kind with another number of outputs."""
    if isinstance(head, nn.Conv2d):
        if head.out_channels == outputs:
            return head
        return nn.Conv2d(head.in_channels, outputs, 1, bias=head.bias is not None)
    assert isinstance(head, nn.Linear)
    return head if head.out_features == outputs else nn.Linear(head.in_features, outputs, head.bias is not None)
