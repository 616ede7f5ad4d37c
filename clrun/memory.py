"""The former path of `clrun.strategy.replay`; it goes away in the next release."""

from clrun.strategy.replay import Memory, Replay

__all__ = ["Memory", "Replay"]
