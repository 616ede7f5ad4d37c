"""The former path of `clrun.data.stream`; it goes away in the next release."""

from clrun.data.stream import Batch, Data, Pool

__all__ = ["Batch", "Data", "Pool"]
