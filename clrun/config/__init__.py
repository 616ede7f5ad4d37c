"""What may be typed: the catalogue of keys, composition by Hydra, checks and messages."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Import `compose` where it is first read: help and refusals need no Hydra."""
    if name == "compose":
        from clrun.config.composition import compose

        return compose
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
