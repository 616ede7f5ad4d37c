"""What the energy and the time of a run come to, given the price of an hour and the carbon of a kilowatt-hour.

An unknown quantity is nan, and so is what follows from it. Numbers are floats or columns of floats.
"""

from typing import TypeVar

import pandas as pd

Number = TypeVar("Number", float, "pd.Series[float]")


def carbon(energy_wh: Number, grams_per_kwh: float) -> Number:
    """Return grams of CO2-equivalent."""
    return energy_wh / 1000 * grams_per_kwh


def money(wall_seconds: Number, price_per_hour: float) -> Number:
    """Return an amount in the currency of the price."""
    return wall_seconds / 3600 * price_per_hour
