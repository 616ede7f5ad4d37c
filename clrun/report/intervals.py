"""Mean, standard deviation, and the 95 % confidence interval of the mean by Student's t.

Of n values x with mean m and standard deviation s (with n - 1), the interval is

    m ± t(0.975, n - 1) s / sqrt(n);

for n = 1 there is none.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import stdtrit

LEVEL = 0.95  # probability with which the interval contains the expected value

MOST_VALUES = 1000  # the largest n that `sufficient_n` considers


class Statistic(NamedTuple):
    """Mean, standard deviation (with n - 1), and 95 % interval of the mean of n values; nan where undefined."""

    n: int
    mean: float
    sd: float
    low: float
    high: float


def statistic(values: pd.Series) -> Statistic:
    """Return the statistic of the values that are not nan."""
    numbers = values.to_numpy(dtype=float, na_value=np.nan)  # by NumPy: a report asks for many of them
    present = numbers[~np.isnan(numbers)]
    n = len(present)
    mean = float(present.sum() / n) if n else np.nan
    sd = float(np.sqrt(((mean - present) ** 2).sum() / (n - 1))) if n > 1 else np.nan
    half = float(half_width(n, sd)) if n > 1 else np.nan
    return Statistic(n, mean, sd, mean - half, mean + half)


def half_width(n: np.ndarray | int, sd: float) -> np.ndarray:
    """Return half the width of the interval of the mean of n values with standard deviation `sd`."""
    return stdtrit(n - 1, (1 + LEVEL) / 2) * sd / np.sqrt(n)


def sufficient_n(found: Statistic) -> int | None:
    """Return the smallest n at which the interval would exclude 0 if mean and deviation stayed; None if above
    MOST_VALUES."""
    n = np.arange(2, MOST_VALUES + 1)
    sufficient = n[half_width(n, found.sd) < abs(found.mean)]
    return int(sufficient[0]) if len(sufficient) else None
