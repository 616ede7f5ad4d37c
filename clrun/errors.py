"""The former path of `clrun.system.errors`; it goes away in the next release."""

from clrun.system.errors import RunsFailed, UsageError

__all__ = ["RunsFailed", "UsageError"]
