"""Where clrun's own files and the user's cache lie."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]  # the folder of the package clrun

# The YAML files: inside the package in a wheel, beside it in a checkout.
CONF = next(folder for folder in (PACKAGE / "conf", PACKAGE.parent / "conf") if (folder / "config.yaml").is_file())


def cache_folder() -> Path:
    """Return the user's folder for caches, by the XDG specification: a relative XDG_CACHE_HOME is to be ignored."""
    folder = os.environ.get("XDG_CACHE_HOME", "")
    return Path(folder) if os.path.isabs(folder) else Path.home() / ".cache"
