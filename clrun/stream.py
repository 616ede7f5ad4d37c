"""The former path of `clrun.data.batches`; it goes away in the next release."""

from clrun.data.batches import Batch, Data, Pool

__all__ = ["Batch", "Data", "Pool"]
