"""The former path of `clrun.strategy.fisher`; it goes away in the next release."""

from clrun.strategy.fisher import fisher

__all__ = ["fisher"]
