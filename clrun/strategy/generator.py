"""A variational autoencoder (Kingma & Welling 2014) of samples, whose weights are part of theta.

    loss(x) = ( sum_d d(x_d, x^_d(z)) + KL( N(mean(x), var(x)) || N(0, 1) ) ) / D,    z = mean(x) + sqrt(var(x)) e

e is standard normal, and D the number of values of a sample. d is the binary cross entropy of pixels from 0 to 1, and
half the square of the difference for floats. Encoder and decoder have two hidden layers of as many units each.

Shapes: B samples, D values, L latent variables.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clrun.data.batches import Data
from clrun.models import MLP, Layout, Linear, Network

PREFIX = "generator"  # the beginning of the names of its weights in theta

# Values of samples that are decoded at once, where one draw of the latent variables needs fewer.
NUMBERS_AT_ONCE = 2**20


def flat_inputs(network: Network) -> int | None:
    """Return the number D of values that a network reads of a sample in one row; None for one that reads pictures."""
    if not isinstance(network, MLP | Linear):
        return None
    return next(iter(network.parameters().values())).shape[1]


def values_of(data: Data, x: Tensor) -> Tensor:
    """Return samples x (B, ...) as rows of numbers (B, D): pixels from 0 to 1, floats as the network gets them."""
    plain = x if data.images.is_floating_point() else (x - data.shift) / data.scale / 255
    return plain.flatten(1)


@dataclass(frozen=True)
class Autoencoder:
    """A variational autoencoder of samples of D values."""

    # Floats that `log_likelihood` has in memory at once: what is decoded, the samples beside it, and errors, twice.
    likelihood_floats: ClassVar[int] = 4 * NUMBERS_AT_ONCE

    values: int  # D
    units: int
    latent: int  # L
    floats: bool  # whether the values are any numbers, not pixels from 0 to 1

    @classmethod
    def of_samples(cls, images: Tensor, units: int, latent: int) -> "Autoencoder":
        """Return that of samples of this shape and type (N, ...). None of them need be there, as after training."""
        return cls(images.shape[1:].numel(), units, latent, images.is_floating_point())

    @property
    def layers(self) -> dict[str, tuple[int, int]]:
        """The numbers of inputs and outputs of its layers, by their names in theta."""
        sizes = {"encode": (self.values, self.units, self.units, 2 * self.latent)}
        sizes["decode"] = (self.latent, self.units, self.units, self.values)
        return {f"{PREFIX}.{part}.{i}": ab for part, widths in sizes.items() for i, ab in enumerate(pairwise(widths))}

    @property
    def layout(self) -> Layout:
        """The layout of the vector (p,) of its weights."""
        shapes = {name: {"weight": (b, a), "bias": (b,)} for name, (a, b) in self.layers.items()}
        return Layout({f"{name}.{kind}": shape for name, of in shapes.items() for kind, shape in of.items()})

    def initial(self) -> dict[str, Tensor]:
        """Return the initial values of its weights, by their names in theta, as nn.Linear draws them."""
        layers = {name: nn.Linear(a, b) for name, (a, b) in self.layers.items()}
        return {f"{name}.{kind}": p.detach() for name, one in layers.items() for kind, p in one.named_parameters()}

    def apply(self, pieces: Mapping[str, Tensor], part: str, x: Tensor) -> Tensor:
        """Return the output of "encode" or "decode" for x (B, ...)."""
        for i in range(3):
            layer = f"{PREFIX}.{part}.{i}"
            x = F.linear(x if i == 0 else x.relu(), pieces[f"{layer}.weight"], pieces[f"{layer}.bias"])
        return x

    def loss(self, pieces: Mapping[str, Tensor], x: Tensor, e: Tensor) -> Tensor:
        """Return the loss (B,) of samples x (B, D), with standard normal numbers e (B, L)."""
        error, divergence = self.errors(pieces, x, e)
        return (error + divergence) / self.values

    def errors(self, pieces: Mapping[str, Tensor], x: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
        """Return both terms of D times the loss: what is lost of samples x (B, D), and the divergence (B,) in nats."""
        mean, log_var = self.apply(pieces, "encode", x).chunk(2, 1)
        error = self.error(pieces, x, mean + (log_var / 2).exp() * e)
        return error, (mean.square() + log_var.exp() - 1 - log_var).sum(1) / 2

    def error(self, pieces: Mapping[str, Tensor], x: Tensor, z: Tensor) -> Tensor:
        """Return sum_d d(x_d, x^_d(z)) (..., B) for samples x (B, D) and z (..., B, L)."""
        output = self.apply(pieces, "decode", z)
        if self.floats:
            return (output - x).square().sum(-1) / 2
        return F.binary_cross_entropy_with_logits(output, x.expand_as(output), reduction="none").sum(-1)

    def log_likelihood(self, pieces: Mapping[str, Tensor], x: Tensor, e: Tensor) -> Tensor:
        """Return estimates (B,) of log p(x) of samples x (B, D), up to a constant that does not depend on the weights.

        They are importance samples, for standard normal numbers e (S, L) that all x share:

            log 1/S sum_s p(x | z_s) p(z_s) / q(z_s | x),    z_s = mean(x) + sqrt(var(x)) e_s

        -log p(x | z) is the error of x for z, up to that constant.
        """
        mean, log_var = self.apply(pieces, "encode", x).chunk(2, 1)
        log_weights = []
        for noise in e[:, None].split(max(1, NUMBERS_AT_ONCE // x.numel())):
            z = mean + (log_var / 2).exp() * noise
            prior_to_posterior = (log_var + noise.square() - z.square()).sum(-1) / 2
            log_weights.append(prior_to_posterior - self.error(pieces, x, z))
        return torch.cat(log_weights).logsumexp(0) - math.log(len(e))

    def generated(self, pieces: Mapping[str, Tensor], z: Tensor) -> Tensor:
        """Return the samples (B, D) that the decoder makes of z (B, L)."""
        output = self.apply(pieces, "decode", z)
        return output if self.floats else output.sigmoid()
