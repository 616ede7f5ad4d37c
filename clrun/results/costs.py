"""What a run's energy and time come to, once somebody says what a kilowatt-hour and an hour cost. nan where unknown."""

from typing import TypeVar

Number = TypeVar("Number")  # a float, or a column of them


def carbon(energy_wh: Number, grams_per_kwh: float) -> Number:
    """Grams of CO2-equivalent."""
    return energy_wh / 1000 * grams_per_kwh


def money(wall_seconds: Number, price_per_hour: float) -> Number:
    """In the currency of the price."""
    return wall_seconds / 3600 * price_per_hour
