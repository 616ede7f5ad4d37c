"""The former path of what methods with a memory use from `clrun.strategy`; it goes away in the next release."""

from clrun.strategy.replay import Replay, buffer_stats, class_subset
from clrun.strategy.reservoir import Memory, write_slots

census, moved_in, of_each_class = buffer_stats, write_slots, class_subset

__all__ = ["Memory", "Replay", "census", "moved_in", "of_each_class"]
