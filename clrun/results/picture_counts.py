"""pictures.csv of a run: the pictures of each class, and what has changed since another run was trained."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

NAME = "pictures.csv"

# (part, class) -> number of pictures and the digest of their bytes
Counts = Mapping[tuple[str, str], tuple[int, str]]


def picture_table(rows: Iterable[tuple[str, str, int, str]], settings: str) -> pd.DataFrame:
    """Return pictures.csv. settings: the identity of the run's settings without its data."""
    table = pd.DataFrame(list(rows), columns=["part", "class", "pictures", "digest"])
    return table.assign(settings=settings)


def read_counts(directory: Path) -> tuple[Counts, str] | None:
    """Return the pictures of a run and the identity of its settings; None where its pictures.csv cannot be used."""
    path = directory / NAME
    if not path.is_file():
        return None
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        pairs = {(part, name): (int(n), digest) for part, name, n, digest, _ in table.to_numpy().tolist()}
        return pairs, table["settings"].iloc[0]
    except (ValueError, KeyError, IndexError, OSError):  # of an older version, or damaged
        return None


def changes(before: Counts, now: Counts) -> list[str]:
    """Return what has changed, such as "3 pictures were added to cat in train"; empty where nothing has."""
    said = []
    for part, name in dict.fromkeys([*before, *now]):
        (old, mark), (new, other) = (counts.get((part, name), (0, "")) for counts in (before, now))
        where = f"{name} in {part}"
        if new > old:
            said.append(f"{amount(new - old)} added to {where}")
        elif new < old:
            said.append(f"{amount(old - new)} removed from {where}")
        elif mark != other:
            said.append(f"pictures of {where} were changed")
    return said


def amount(pictures: int) -> str:
    """Return a number of pictures and its verb."""
    return "1 picture was" if pictures == 1 else f"{pictures} pictures were"
