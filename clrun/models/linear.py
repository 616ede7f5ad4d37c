"""A linear network: no hidden layer."""

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn

from clrun.models.network import Network, Tap, Weights


class Linear(Network):
    """One linear layer, the head, on pictures that are flattened, or on features: multinomial logistic regression.

    `inputs` is the shape of a sample, such as (channels, height, width) of a picture.
    """

    def __init__(self, inputs: Sequence[int], outputs: int):
        self.taps, self.widths = (), ()
        self.layers = {"head": nn.Linear(prod(inputs), outputs)}

    def forward(self, weights: Weights, x: Tensor, tap: Tap, before: Tap) -> Tensor:
        """Return the logits (B, outputs) of samples (B, ...)."""
        return weights.linear("head", x.flatten(1))
