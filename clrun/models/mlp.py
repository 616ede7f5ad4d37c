"""A fully connected network."""

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn

from clrun.models.network import Network, Tap, Weights


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
