"""A first pass of a module, to see what it is: which layers it calls, what it returns, and whether it takes pictures.

Shapes: B samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from clrun.system.errors import UsageError

SAMPLES = 2  # of the probing pass: batch norm needs more than one

# What to do where a network does not take the pictures.
ADVICE = (
    "Change the network (model.args={...}), or the pictures: dataset.size=224 makes those of dataset=image_folder "
    "larger, dataset.pad=2 adds a border."
)


@dataclass
class LayerCalls:
    """The layers with parameters that a pass has called, in order, and the floats that all layers left behind."""

    calls: list[tuple[str, nn.Module, Tensor]] = field(default_factory=list)
    floats: int = 0  # a sample
    width: int = 0  # of what the module returned

    def head(self) -> str | None:
        """Return the path of the head: the layer called last, if it is linear and as wide as what was returned.

        A convolution with a 1x1 kernel is linear, too. None: the module returns features.
        """
        if not self.calls:
            return None
        path, layer, output = self.calls[-1]
        once = [called for called, _, _ in self.calls].count(path) == 1
        linear = type(layer) is nn.Linear and output.dim() == 2
        linear = linear or (type(layer) is nn.Conv2d and layer.kernel_size == (1, 1) and layer.groups == 1)
        return path if once and linear and output.shape[1] == self.width else None


def is_meta() -> bool:
    """Return whether tensors are made without values, as where only sizes are asked for."""
    return torch.empty(0).is_meta


def example(inputs: Sequence[int]) -> Tensor:
    """Return a batch of samples of this shape; no two values are equal, and no random number is drawn."""
    n = SAMPLES * prod(inputs)
    return torch.arange(n, dtype=torch.get_default_dtype()).mul(12.9898).sin().view(SAMPLES, *inputs)


def guessed(module: nn.Module) -> LayerCalls:
    """Return what a pass would call last, where there are no values, as where sizes are asked for: a linear layer.

    A pass without values would import PyTorch's compiler.
    """
    linear = [(path, layer) for path, layer in module.named_modules() if type(layer) is nn.Linear]
    calls = [(path, layer, torch.empty(SAMPLES, layer.out_features)) for path, layer in linear[-1:]]
    return LayerCalls(list[tuple[str, nn.Module, Tensor]](calls), 0, calls[0][1].out_features if calls else 1)


def probed(module: nn.Module, x: Tensor, where: str, inputs: Sequence[int], advice: str = ADVICE) -> LayerCalls:
    """Return what a pass of x (B, ...) through the module has called.

    Raise UsageError, which begins with `where`, if the module does not take such inputs, or returns something else than
    a tensor (B, width). advice: what to do then, as a sentence.
    """
    found = LayerCalls()

    def record(path: str, layer: nn.Module) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                found.floats += output.numel() // SAMPLES
                if next(layer.parameters(recurse=False), None) is not None:
                    found.calls.append((path, layer, output))

        return layer.register_forward_hook(hook)

    handles = [record(path, layer) for path, layer in module.named_modules() if not list(layer.children())]
    try:
        with torch.no_grad():
            output = module(x)
    except Exception as error:  # any: it is the user's code that runs here
        reason = " ".join(str(error).split())
        raise UsageError(
            f"{where} does not take these pictures, {' x '.join(map(str, inputs))} (channels, height, width): "
            f"{type(error).__name__}: {reason}. {advice}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    found.width = width_of(output, where)
    return found


def width_of(output: Any, where: str) -> int:
    """Return the width of a module's output. Raise UsageError if it is no tensor (B, width)."""
    if not isinstance(output, Tensor):
        raise UsageError(f"{where} returns a {type(output).__name__}; it must return a tensor (B, features).")
    if output.dim() != 2 or len(output) != SAMPLES or not output.is_floating_point():
        raise UsageError(
            f"{where} returns {tuple(output.shape)} for a batch of {SAMPLES}; it must return (B, outputs or features), "
            "such as by nn.Flatten() at its end."
        )
    return output.shape[1]
