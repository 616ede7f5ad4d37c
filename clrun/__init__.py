"""clrun: continual-learning experiments from one command, or from Python: `clrun.run` and `clrun.load`."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from clrun.api.results import Results, load
    from clrun.api.running import run
    from clrun.system.errors import RunsFailed, UsageError

__all__ = ["Results", "RunsFailed", "UsageError", "__version__", "load", "run"]


def __getattr__(name: str) -> Any:
    """Import what a notebook uses where it is first read: `import clrun` alone imports neither torch nor pandas."""
    if name in ("Results", "load"):
        from clrun.api import results

        return getattr(results, name)
    if name == "run":
        from clrun.api.running import run

        return run
    if name in ("RunsFailed", "UsageError"):
        from clrun.system import errors

        return getattr(errors, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
