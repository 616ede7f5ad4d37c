"""Of n values x with mean m and standard deviation s (n - 1): the 95 % interval of the mean is

    m -+ t(0.975, n - 1) s / sqrt(n),

Student's t; for n = 1 there is none.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import stdtrit

LEVEL = 0.95


MOST = 1000  # values that are worth to be asked for


class Statistic(NamedTuple):
    """Of n values: mean, standard deviation (n - 1), and the 95 % t-interval of the mean; nan where undefined."""

    n: int
    mean: float
    sd: float
    low: float
    high: float


def statistic(values: pd.Series) -> Statistic:
    """Of the values that are there."""
    found = values.dropna().astype(float)
    n, mean, sd = len(found), found.mean(), found.std()
    half = half_width(n, sd) if n > 1 else np.nan
    return Statistic(n, mean, sd, mean - half, mean + half)


def half_width(n: np.ndarray | int, sd: float) -> np.ndarray | float:
    """Of the interval of the mean of n values."""
    return stdtrit(n - 1, (1 + LEVEL) / 2) * sd / np.sqrt(n)


def enough(found: Statistic) -> int | None:
    """The smallest n at which the interval would exclude 0 if mean and deviation stayed; None if above MOST."""
    n = np.arange(2, MOST + 1)
    fitting = n[half_width(n, found.sd) < abs(found.mean)]
    return int(fitting[0]) if len(fitting) else None
