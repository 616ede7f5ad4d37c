"""The file of data that a user names, by `dataset.file` or as new rows."""

from collections.abc import Collection
from pathlib import Path

from clrun.system.errors import UsageError


def existing(
    file: str | None, suffixes: Collection[str], kinds: str, missing: str, other: str, typed: str | None = None
) -> Path:
    """Return the path of the file. Raise UsageError where there is none, or another kind of file.

    kinds: the suffixes as a phrase. missing: what to type where no file is named. other: what is said of a file with
    another suffix, after its name. typed: how the file is named; by default by `dataset.file`.
    """
    if file is None:
        raise UsageError(missing)
    path, named = Path(file).expanduser(), f"dataset.file={file}" if typed is None else typed
    if not path.is_file():
        what = "is a folder; name a file in it" if path.is_dir() else "does not exist; name your file"
        raise UsageError(f"{named} {what}, {kinds}.")
    if path.suffix.lower() not in suffixes:
        raise UsageError(f"{named} {other}")
    return path
