"""The former path of `clrun.strategy.Memory` and `Replay`; it goes away in the next release."""

from clrun.strategy.replay import Replay
from clrun.strategy.reservoir import Memory

__all__ = ["Memory", "Replay"]
