"""The data set `arrays`: the user's own numbers in a file, .npz (NumPy) or .safetensors. Nothing is ever unpickled."""

import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from clrun.data.check_parts import to_arrays, wrong
from clrun.data.parts import Parts
from clrun.data.samples import Arrays
from clrun.data.users_file import existing
from clrun.system.machine import refuse_if_too_large

REQUIRED = ("x_train", "y_train", "x_test", "y_test")
SUFFIXES = (".npz", ".safetensors")

# What reading a damaged .npz may raise.
DAMAGE_ERRORS = (OSError, EOFError, ValueError, KeyError, NotImplementedError, zlib.error, zipfile.BadZipFile)


def read(file: str | None) -> Arrays:
    """Return the data set in a file. Raise UsageError where there is none, or where it cannot be trained on."""
    path = users_path(file)
    source = f"dataset.file={file}"
    refuse_if_too_large(path.stat().st_size, source, "a smaller file")
    found = from_npz(path, source) if path.suffix.lower() == ".npz" else from_safetensors(path, source)
    refuse_names(found, source)
    return to_arrays(Parts(**found), source)


def users_path(file: str | None) -> Path:
    """Return the path of the file. Raise UsageError where there is none, or another kind of file."""
    return existing(
        file,
        SUFFIXES,
        ".npz or .safetensors",
        "dataset=arrays needs your file: dataset.file=my.npz (or .safetensors), with x_train, y_train, x_test and "
        "y_test in it, as numpy.savez('my.npz', x_train=..., ...) writes it.",
        "ends neither in .npz nor in .safetensors; write it by "
        "numpy.savez('my.npz', x_train=..., y_train=..., x_test=..., y_test=...).",
    )


def from_npz(path: Path, source: str) -> dict[str, Any]:
    """Return the arrays of an .npz file by name. Raise UsageError for a damaged file and for pickled objects."""
    found = {}
    try:
        if not zipfile.is_zipfile(path):
            raise zipfile.BadZipFile("it is no .npz file")
        with np.load(path, allow_pickle=False) as file:
            for name in file.files:
                found[name] = file[name]
    except DAMAGE_ERRORS as error:
        if "allow_pickle" in str(error):
            raise wrong(
                source,
                "an array in it holds Python objects, which are never unpickled; write arrays of numbers, and rows of "
                "one length",
            ) from error
        raise wrong(source, f"the file is damaged or cut ({' '.join(str(error).split())}); write it again") from error
    return found


def from_safetensors(path: Path, source: str) -> dict[str, Any]:
    """Return the arrays of a .safetensors file by name, and the class names of its metadata: names, a list in JSON."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            found: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
            if "names" in metadata:
                found["names"] = json.loads(metadata["names"])
    except json.JSONDecodeError as error:
        raise wrong(source, "names in its metadata is no JSON; write json.dumps(['cat', 'dog'])") from error
    except (SafetensorError, OSError, TypeError) as error:  # TypeError: bfloat16, of which NumPy knows nothing
        raise wrong(source, f"the file cannot be read ({' '.join(str(error).split())}); write it again") from error
    return found


def refuse_names(found: dict[str, Any], source: str) -> None:
    """Raise UsageError where an array is missing, or has a name that means nothing."""
    listed = ", ".join(found) or "nothing"
    missing = [name for name in REQUIRED if name not in found]
    if missing:
        raise wrong(source, f"{', '.join(missing)} is not in the file, which holds {listed}; write all four arrays")
    unknown = [name for name in found if name not in Parts._fields]
    if unknown:
        raise wrong(
            source,
            f"{unknown[0]} in the file means nothing; leave it out, or rename it to one of {', '.join(Parts._fields)}",
        )
