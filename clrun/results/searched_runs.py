"""Which runs were trained by searches (clrun-tune): `outputs/tune/<search>/runs.txt`, an identity a line.

A run that was finished before its search began is none of them: somebody wanted it.
"""

from collections.abc import Iterable
from pathlib import Path

from clrun.system.atomic_files import write_text

NAME = "runs.txt"


def read(outputs: Path) -> set[str]:
    """Return the identities of the runs that the searches of a folder have trained."""
    return {run for path in outputs.glob(f"tune/*/{NAME}") for run in listed(path)}


def add(folder: Path, runs: Iterable[str]) -> None:
    """Note in the folder of a search which runs it trains, besides those that it has noted before."""
    known = listed(folder / NAME)
    new = dict.fromkeys(run for run in runs if run not in known)
    if new:
        write_text(folder / NAME, "".join(f"{run}\n" for run in (*known, *new)))


def listed(path: Path) -> list[str]:
    """Return the identities in a file; none where there is no file. Bytes that are no text name no run."""
    if not path.is_file():
        return []
    return path.read_text(encoding="utf-8", errors="replace").split()
