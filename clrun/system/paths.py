"""Where clrun's own files and the user's cache lie."""

from __future__ import annotations

import os
from pathlib import Path

from clrun.system.errors import UsageError

PACKAGE = Path(__file__).resolve().parents[1]  # the folder of the package clrun

# The YAML files: inside the package in a wheel, beside it in a checkout.
CONF = next(folder for folder in (PACKAGE / "conf", PACKAGE.parent / "conf") if (folder / "config.yaml").is_file())


def cache_folder() -> Path:
    """Return the user's folder for caches, by the XDG specification: a relative XDG_CACHE_HOME is to be ignored.

    Raise UsageError for a user without a home folder.
    """
    folder = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(folder):
        return Path(folder)
    try:
        return Path.home() / ".cache"
    except RuntimeError:  # neither HOME nor an entry in the list of users
        raise UsageError(
            "this user has no home folder, where clrun would keep data; type data_dir=FOLDER, or export "
            "XDG_CACHE_HOME=FOLDER."
        ) from None
