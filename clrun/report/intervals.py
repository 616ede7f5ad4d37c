"""Mean, standard deviation, and the 95 % confidence interval of the mean by Student's t.

Of n values x with mean m and standard deviation s (with n - 1), the interval is

    m ± t(0.975, n - 1) s / sqrt(n);

for n = 1 there is none. Where a measure has bounds, such as 0 and 1 of an accuracy, the interval ends there: the mean
that it is to contain cannot lie beyond.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import stdtrit

LEVEL = 0.95  # probability with which the interval contains the expected value

MOST_VALUES = 1000  # the largest n that `sufficient_n` considers

UNBOUNDED = (-np.inf, np.inf)


class Statistic(NamedTuple):
    """Mean, standard deviation (with n - 1), and 95 % interval of the mean of n values; nan where undefined."""

    n: int
    mean: float
    sd: float
    low: float
    high: float


def statistic(values: pd.Series, bounds: tuple[float, float] = UNBOUNDED) -> Statistic:
    """Return the statistic of the values that are not nan. bounds: the least and the largest value that can be."""
    numbers = values.to_numpy(dtype=float, na_value=np.nan)  # by NumPy: a report asks for many of them
    present = numbers[~np.isnan(numbers)]
    n = len(present)
    mean = float(present.sum() / n) if n else np.nan
    sd = float(np.sqrt(((mean - present) ** 2).sum() / (n - 1))) if n > 1 else np.nan
    half = float(half_width(n, sd)) if n > 1 else np.nan
    return Statistic(n, mean, sd, max(mean - half, bounds[0]), min(mean + half, bounds[1]))


def statistics_of(
    values: np.ndarray, groups: np.ndarray, count: int, bounds: Sequence[tuple[float, float]] | None = None
) -> list[np.ndarray]:
    """Return, for the measures in the columns of `values` (N, M), the fields of `Statistic` as arrays (count, M): each
    over the rows of a group that are not nan. groups: the number of the group of each row (N,), below `count`.
    bounds: of each measure, as of `statistic`; by default none."""
    present = ~np.isnan(values)
    n = sums(present.astype(float), groups, count)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = sums(np.where(present, values, 0), groups, count) / n
        squares = sums(np.where(present, (mean[groups] - values) ** 2, 0), groups, count)
        sd = np.where(n > 1, np.sqrt(squares / (n - 1)), np.nan)
        half = np.where(n > 1, half_width(n, sd), np.nan)
    least, largest = np.array(bounds or [UNBOUNDED] * values.shape[1]).T
    return [n, mean, sd, np.maximum(mean - half, least), np.minimum(mean + half, largest)]


def sums(values: np.ndarray, groups: np.ndarray, count: int) -> np.ndarray:
    """Return the sums (count, M) of the rows of values (N, M) of each group."""
    totals = np.zeros((count, values.shape[1]))
    np.add.at(totals, groups, values)
    return totals


def half_width(n: np.ndarray | int, sd: np.ndarray | float) -> np.ndarray:
    """Return half the width of the interval of the mean of n values with standard deviation `sd`."""
    return stdtrit(n - 1, (1 + LEVEL) / 2) * sd / np.sqrt(n)


def sufficient_n(found: Statistic) -> int | None:
    """Return the smallest n at which the interval would exclude 0 if mean and deviation stayed; None if above
    MOST_VALUES."""
    n = np.arange(2, MOST_VALUES + 1)
    sufficient = n[half_width(n, found.sd) < abs(found.mean)]
    return int(sufficient[0]) if len(sufficient) else None
