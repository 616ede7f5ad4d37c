"""A fully connected network."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from torch import Tensor, nn

from clrun.models.network import Network, Tap, Weights, head_layer


class MLP(Network):
    """A fully connected network with ReLU and a hidden layer of as many units as each entry of `widths` says.

    `inputs` is the shape of a sample, such as (channels, height, width) or (features,), which is flattened. `head` is
    "linear" (None) or "cosine". `norm` is None or "batch": a batch norm between each hidden layer and its ReLU.
    """

    no_taps = "type model.widths=[100,100]"
    no_statistics = "type model.norm=null"

    def __init__(
        self,
        inputs: Sequence[int],
        outputs: int,
        widths: Sequence[int],
        head: str | None = None,
        norm: str | None = None,
    ):
        sizes = [prod(inputs), *widths]
        self.norm = norm
        self.widths = tuple(widths)
        self.taps = tuple(f"hidden.{i}" for i in range(len(widths)))
        self.layers = {}
        for name, (a, b) in zip(self.taps, pairwise(sizes), strict=True):
            self.layers[name] = nn.Linear(a, b, bias=norm is None)  # a batch norm subtracts a bias before it
            if norm is not None:
                self.layers[f"{name}.norm"] = nn.BatchNorm1d(b)
        self.layers["head"] = head_layer(head, sizes[-1], outputs)

    def forward(self, weights: Weights, x: Tensor, tap: Tap, before: Tap) -> Tensor:
        """Return the logits (B, outputs) of samples (B, ...)."""
        h = x.flatten(1)
        for i, name in enumerate(self.taps):
            z = weights.linear(name, h)
            if self.norm is not None:
                z = weights.batch_norm(f"{name}.norm", z)
            h = tap(i, before(i, z).relu())
        return self.head(weights, h)
