"""Misjudged test pictures on the page of a report: one sheet for a stream, copied from misjudged.png of its runs."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from clrun.results import misjudged
from clrun.system.messages import announce

EXAMPLES = 3  # pictures of a run's row for one pair of classes after one task
MOST = 2000  # pictures on a sheet
MOST_EXAMPLES = 40_000  # in the data of a stream, of five numbers each
COLUMNS = 40  # pictures side by side on a sheet

EXAMPLE = ("run", "after", "true", "predicted", "tile")


@dataclass(frozen=True)
class Pictures:
    """A sheet of pictures, and what they are examples of."""

    sheet: str = ""  # the sheet as the address of an image: data:image/png;base64,...; "" where there is none
    tile: tuple[int, int] = (0, 0)  # height and width of one picture
    columns: int = COLUMNS  # pictures side by side
    examples: Sequence[int] = ()  # flat: run, tasks learnt, true class, predicted class, picture on the sheet, ...


def pictures_of(
    directories: Sequence[Path | None],
    rows: Sequence[int],
    tables: Sequence[pd.DataFrame | None],
    place: Mapping[str, int],
    room: int,
) -> Pictures:
    """Return the misjudged pictures of the runs in these folders.

    rows: of the report, of each run; tables: `named_pairs` of each; place: the number of each class; room: bytes of
    uncompressed pictures.
    """
    there = [number for number, table in enumerate(tables) if room and table is not None]
    sheets = {number: sheet_or_none(directories[number]) for number in there}
    shapes = {number: next(iter(sheet.values())).shape for number, sheet in sheets.items() if sheet}
    found = {number: sheets[number] or {} for number, shape in shapes.items() if shape == next(iter(shapes.values()))}
    if not found:
        return Pictures()
    pairs = pd.concat([candidates(number, rows[number], tables[number], set(found[number])) for number in found])
    pictures = {sample: picture for sheet in reversed(found.values()) for sample, picture in sheet.items()}
    largest = max(picture.size for picture in pictures.values())
    kept = wanted(pairs, min(MOST, room // largest))
    if kept.empty:
        return Pictures()
    samples = list(dict.fromkeys(kept["sample"].tolist()))
    numbers = {sample: number for number, sample in enumerate(samples)}
    kept = kept.assign(tile=kept["sample"].map(numbers), **{side: kept[side].map(place) for side in EXAMPLE[2:4]})
    tiles = np.stack([pictures[sample] for sample in samples])
    return Pictures(address(tiles), tiles.shape[1:3], COLUMNS, kept[list(EXAMPLE)].to_numpy(int).ravel().tolist())


def sheet_or_none(directory: Path | None) -> Mapping[int, np.ndarray] | None:
    """Return the pictures of a run by their samples; None where there are none, or where the file cannot be read, which
    is said."""
    path = None if directory is None else directory / misjudged.NAME
    if path is None or not path.exists():
        return None
    try:
        return misjudged.read(path)
    except (OSError, ValueError, SyntaxError) as error:  # Pillow calls a PNG that is cut off a SyntaxError
        announce(f"left out of the page: {path} cannot be read: {error}")
        return None


def candidates(number: int, row: int, table: pd.DataFrame | None, samples: set[int]) -> pd.DataFrame:
    """Return the pairs of classes of a run for which its sheet has a picture. samples: those of the sheet."""
    assert table is not None  # by the choice of the runs in `pictures_of`
    wrong = table[(table["true"] != table["predicted"]) & table["sample"].isin(samples)]
    return wrong.assign(run=number, row=row)


def wanted(pairs: pd.DataFrame, most: int) -> pd.DataFrame:
    """Return the pairs whose pictures are shown: at most EXAMPLES of a row for a pair after a task and `most` different
    pictures in all. The most frequent ones of each row come first, those after the last task before earlier ones."""
    one = ["row", "after", "true", "predicted"]
    ordered = pairs.assign(earlier=pairs["after"] < pairs["after"].max())
    ordered = ordered.sort_values(["earlier", "count", "run"], ascending=[True, False, True], kind="stable")
    ordered = ordered[~ordered.duplicated([*one, "sample"])]
    ordered = ordered[ordered.groupby(one).cumcount() < EXAMPLES]
    turn = ordered.groupby("row").cumcount()  # one pair of each row in turn
    ordered = ordered.iloc[np.argsort(turn.to_numpy(), kind="stable")]
    different = (~ordered["sample"].duplicated()).cumsum()
    return ordered[different <= most][:MOST_EXAMPLES]


def address(tiles: np.ndarray) -> str:
    """Return pictures (K, H, W, C) uint8 side by side as the address of an image."""
    file = io.BytesIO()
    misjudged.sheet(tiles, COLUMNS).save(file, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
