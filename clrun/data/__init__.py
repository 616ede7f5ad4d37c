"""From files to batches: data sets, tasks, streams and samplers."""

from clrun.data.parts import Parts

__all__ = ["Parts"]
