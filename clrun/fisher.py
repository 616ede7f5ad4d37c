"""The former path of `clrun.strategy.diagonal_fisher`; it goes away in the next release."""

from clrun.strategy.fisher_information import diagonal_fisher as fisher

__all__ = ["fisher"]
