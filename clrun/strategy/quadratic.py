"""Quadratic penalties on the parameters."""

from typing import Any, NamedTuple

from torch import Tensor

from clrun.strategy.gradients import dot
from clrun.strategy.returned import Method, is_scalar, wrong


class Gaussian(NamedTuple):
    """A sum of quadratic penalties of past tasks k, as one quadratic.

    sum_k F_k (theta - theta_k)^2 = precision (theta - mean)^2 + a constant, entry by entry. It takes 2 P numbers,
    however many tasks there are.
    """

    mean: Tensor  # (P,)
    precision: Tensor  # (P,)

    def absorb(self, theta: Tensor, precision: Tensor) -> "Gaussian":
        """Return the sum with one more quadratic, precision (P,) around theta (P,); the result is exact."""
        total = self.precision + precision
        return Gaussian(self.mean + precision / total.clamp(min=1e-30) * (theta - self.mean), total)


class Quadratic(NamedTuple):
    """The penalty strength/2 sum_i precision_i (theta_i - mean_i)^2."""

    strength: Tensor  # ()
    mean: Tensor  # (P,)
    precision: Tensor  # (P,)

    def value(self, away: Tensor) -> Tensor:
        """Return the penalty () at the distance away = theta - mean (P,)."""
        return self.strength / 2 * dot(self.precision * away, away)

    def gradient(self, away: Tensor) -> Tensor:
        """Return the gradient (P,) of the penalty at the distance away = theta - mean (P,)."""
        return self.strength * self.precision * away


def check_quadratic(method: Method, returned: Any, size: int) -> None:
    """Raise UsageError unless None, or a penalty on `size` parameters, was returned."""
    if returned is None:
        return
    right = isinstance(returned, Quadratic) and is_scalar(returned.strength)
    if not (right and all(isinstance(v, Tensor) and v.shape == (size,) for v in (returned.mean, returned.precision))):
        must = f"Quadratic(strength, mean, precision): strength a tensor of shape (), the others ({size},) as theta"
        raise wrong(method, returned, f"{must}; or None")
