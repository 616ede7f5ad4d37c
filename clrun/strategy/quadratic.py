"""Quadratic penalties on the parameters."""

from typing import NamedTuple

from torch import Tensor


class Gaussian(NamedTuple):
    """What the past asks of theta: sum_k F_k (theta - theta_k)^2 = precision (theta - mean)^2 + constant."""

    mean: Tensor  # (P,)
    precision: Tensor  # (P,)

    def absorb(self, theta: Tensor, precision: Tensor) -> "Gaussian":
        """One more anchor; the sum of all quadratics stays one quadratic, exactly."""
        total = self.precision + precision
        return Gaussian(self.mean + precision / total.clamp(min=1e-30) * (theta - self.mean), total)


class Quadratic(NamedTuple):
    """strength/2 sum_i precision_i (theta_i - mean_i)^2."""

    strength: Tensor  # ()
    mean: Tensor  # (P,)
    precision: Tensor  # (P,)

    def value(self, away: Tensor) -> Tensor:
        """away (P,) = theta - mean -> ()."""
        return self.strength / 2 * ((self.precision * away) @ away)

    def gradient(self, away: Tensor) -> Tensor:
        """away (P,) = theta - mean -> (P,)."""
        return self.strength * self.precision * away
