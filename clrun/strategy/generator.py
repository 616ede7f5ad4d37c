"""A variational autoencoder (Kingma & Welling 2014) of samples, whose weights are part of theta.

    loss(x) = ( sum_d d(x_d, x^_d(z)) + KL( N(mean(x), var(x)) || N(0, 1) ) ) / D,    z = mean(x) + sqrt(var(x)) e

e is standard normal, and D the number of values of a sample. d is the binary cross entropy of pixels from 0 to 1, and
half the square of the difference for floats. Encoder and decoder have two hidden layers of as many units each.

Shapes: B samples, D values, L latent variables.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from clrun.models import MLP, Linear, Network

PREFIX = "generator"  # the beginning of the names of its weights in theta


def flat_inputs(network: Network) -> int | None:
    """Return the number D of values that a network reads of a sample in one row; None for one that reads pictures."""
    if not isinstance(network, MLP | Linear):
        return None
    return next(iter(network.parameters().values())).shape[1]


@dataclass(frozen=True)
class Autoencoder:
    """A variational autoencoder of samples of D values."""

    values: int  # D
    units: int
    latent: int  # L
    floats: bool  # whether the values are any numbers, not pixels from 0 to 1

    def initial(self) -> dict[str, Tensor]:
        """Return the initial values of its weights, by their names in theta, as nn.Linear draws them."""
        sizes = {"encode": (self.values, self.units, self.units, 2 * self.latent)}
        sizes["decode"] = (self.latent, self.units, self.units, self.values)
        layers = {
            f"{PREFIX}.{part}.{i}": nn.Linear(a, b)
            for part, widths in sizes.items()
            for i, (a, b) in enumerate(pairwise(widths))
        }
        return {f"{name}.{kind}": p.detach() for name, one in layers.items() for kind, p in one.named_parameters()}

    def apply(self, pieces: Mapping[str, Tensor], part: str, x: Tensor) -> Tensor:
        """Return the output of "encode" or "decode" for x (B, ...)."""
        for i in range(3):
            layer = f"{PREFIX}.{part}.{i}"
            x = F.linear(x if i == 0 else x.relu(), pieces[f"{layer}.weight"], pieces[f"{layer}.bias"])
        return x

    def loss(self, pieces: Mapping[str, Tensor], x: Tensor, e: Tensor) -> Tensor:
        """Return the loss (B,) of samples x (B, D), with standard normal numbers e (B, L)."""
        mean, log_var = self.apply(pieces, "encode", x).chunk(2, 1)
        output = self.apply(pieces, "decode", mean + (log_var / 2).exp() * e)
        if self.floats:
            error = (output - x).square().sum(1) / 2
        else:
            error = F.binary_cross_entropy_with_logits(output, x, reduction="none").sum(1)
        divergence = (mean.square() + log_var.exp() - 1 - log_var).sum(1) / 2
        return (error + divergence) / self.values

    def generated(self, pieces: Mapping[str, Tensor], z: Tensor) -> Tensor:
        """Return the samples (B, D) that the decoder makes of z (B, L)."""
        output = self.apply(pieces, "decode", z)
        return output if self.floats else output.sigmoid()
