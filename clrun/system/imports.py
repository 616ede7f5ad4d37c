"""Objects that a setting names as package.Class, in a package that is installed or in a file of the user's own."""

import importlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from clrun.system.errors import UsageError
from clrun.system.user_frames import described, users_frame


def named_object(path: str, where: str) -> Any:
    """Return what `path`, such as package.Class, names; None if its module has no such name.

    `where` begins the message, such as "model.target=package.Class". Raise UsageError if there is no such module, or if
    it cannot be imported: then the message names the line of the user's file at which that ended.
    """
    module, _, name = path.rpartition(".")
    if not module.startswith("clrun."):
        search_current_folder()
    try:
        return getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        line = users_frame(error)  # of a module that imports another one
        imported = "" if line is None else f" ({line})"
        raise UsageError(
            f"{where}, but there is no module {error.name}{imported}; is it spelt right and on PYTHONPATH?"
        ) from None
    except Exception as error:  # any: it is the user's code that runs here
        reason = " ".join(described(error).split()).rstrip(".")
        raise UsageError(f"{where}, whose module cannot be imported: {reason}.") from error


def search_current_folder() -> None:
    """Let Python import modules of the user's from the current folder. It changes sys.path for the whole process.

    It stands last, so that a file of the user's such as random.py takes the place of no other module, and it is
    searched for a class of the user's alone.
    """
    if "" not in sys.path:
        sys.path.append("")


def search_folders(folders: Iterable[str]) -> None:
    """Let Python import modules of the user's from these folders too, where they are there. It changes sys.path for the
    whole process; they stand last, as in `search_current_folder`."""
    search_current_folder()
    for folder in folders:
        if folder not in sys.path and Path(folder).is_dir():
            sys.path.append(folder)


def folder_of(module: str) -> str | None:
    """Return the folder in which Python has found an imported module of the user's own; None for one without a file,
    and for one that is installed."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None:
        return None
    path = Path(file).resolve()
    if {"site-packages", "dist-packages"} & {*path.parts}:
        return None
    levels = module.count(".") + (path.name == "__init__.py")
    return str(path.parents[levels])
