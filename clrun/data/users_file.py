"""The file that a user names by `dataset.file`."""

from collections.abc import Collection
from pathlib import Path

from clrun.system.errors import UsageError


def existing(file: str | None, suffixes: Collection[str], kinds: str, missing: str, other: str) -> Path:
    """Return the path of the file. Raise UsageError where there is none, or another kind of file.

    kinds: the suffixes as a phrase. missing: what to type where no file is named. other: what is said of a file with
    another suffix, after its name.
    """
    if file is None:
        raise UsageError(missing)
    path = Path(file).expanduser()
    if not path.is_file():
        what = "is a folder; name a file in it" if path.is_dir() else "does not exist; name your file"
        raise UsageError(f"dataset.file={file} {what}, {kinds}.")
    if path.suffix.lower() not in suffixes:
        raise UsageError(f"dataset.file={file} {other}")
    return path
