"""What `clrun --cfg job` prints: the composed settings, without what says nothing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clrun.system.errors import UsageError

COMMENT = "# Keys that are null, which have their defaults, and what yaml files specify of keys (knobs) are left out."


def about_experiment(name: str, path: Path) -> str:
    """Return what the yaml of an experiment says of it, as comments: where the protocol is from, what differs, and what
    to type."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    return "\n".join([f"# +experiment={name}", *(line for line in lines if not line.startswith("# @"))])


def stated(value: Any) -> Any:
    """Return a value without what is null and without specifications of keys, down to the bottom."""
    if not isinstance(value, Mapping):
        return value
    kept = {key: stated(inner) for key, inner in value.items() if inner is not None and key != "knobs"}
    return {key: inner for key, inner in kept.items() if inner != {}}


def part_of(tree: dict[str, Any], package: str | None) -> Any:
    """Return what is below a package, such as `optimizer`; all of it for None and `_global_`. Raise UsageError."""
    part: Any = tree
    for name in [] if package in (None, "_global_") else str(package).split("."):
        if not isinstance(part, dict) or name not in part:
            raise UsageError(f"--package {package}: nothing of this name is composed; type e.g. --package optimizer.")
        part = part[name]
    return part
