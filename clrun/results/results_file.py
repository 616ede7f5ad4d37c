"""The writing of results.csv from the index: in one piece, or with a few rows changed in a copy of what is there.

Either way a whole file takes the place of the old one. To change a few rows is to copy bytes, which takes hundredths of
a second for 50,000 rows; all rows are rendered anew where their columns change, or where the file is not the one that
the index has seen.
"""

import csv
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from clrun.results.index import Index
from clrun.system.atomic_files import replacing

NAME = "results.csv"

COPIED = 1 << 20  # bytes at once

SPLICED = 2000  # rows that are changed in a copy; more are written with all others, a row at a time


class Lines:
    """What renders rows as lines of a CSV file, as `write_table` does."""

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns = columns
        self.buffer = io.StringIO(newline="")
        self.writer = csv.writer(self.buffer, lineterminator="\n")

    def line(self, cells: Sequence[str]) -> bytes:
        """Return cells as a line."""
        self.buffer.seek(0)
        self.buffer.truncate()
        self.writer.writerow(cells)
        return self.buffer.getvalue().encode()

    def header(self) -> bytes:
        """Return the line with the names of the columns."""
        return self.line(self.columns)

    def row(self, row: Mapping[str, str]) -> bytes:
        """Return the line of a row; a column that it does not have is empty."""
        return self.line([row.get(column, "") for column in self.columns])


def update(index: Index, path: Path, before: Mapping[bytes, int], after: Sequence[bytes]) -> None:
    """Write results.csv if it is not as the index says.

    before: place -> bytes of the rows, of the runs that have changed, that the file holds. after: the places of those
    that it shall hold. Raise OSError where it cannot be written.
    """
    lines = Lines(index.columns())
    other_file = index.note("file") != seen(path) or index.note("columns") != json.dumps(lines.columns)
    if other_file or len(after) > SPLICED:
        rewrite(index, path)
        return
    new = {place: lines.row(index.row(place)) for place in after}
    index.set_bytes([(len(line), place) for place, line in new.items()])
    grown = sum(map(len, new.values())) - sum(before.values())
    if len(lines.header()) + index.total_bytes() - grown != path.stat().st_size:  # the index is damaged
        rewrite(index, path)
    elif new or before:
        splice(index, path, len(lines.header()), before, new)


def rewrite(index: Index, path: Path) -> None:
    """Write results.csv from all rows of the index."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        index.set_bytes(write_all(index, file))
    note_written(index, path)


def write_all(index: Index, file: BinaryIO) -> list[tuple[int, bytes]]:
    """Write all rows into a file. Return (bytes, place) of those whose length the index does not know."""
    lines = Lines(index.columns())
    file.write(lines.header())
    unknown = []
    for kept, columns, cells in index.rows():
        line = lines.row(dict(zip(columns, cells, strict=True)))
        file.write(line)
        if len(line) != kept.bytes:
            unknown.append((len(line), kept.place))
    return unknown


def splice(index: Index, path: Path, header: int, before: Mapping[bytes, int], new: Mapping[bytes, bytes]) -> None:
    """Write results.csv as it is, but with these rows replaced, added or left out. header: bytes of the first line."""
    with replacing(path) as temporary, path.open("rb") as old, temporary.open("wb") as file:
        for place, start in starts(index, header, before, new):
            copy(old, file, start - old.tell())
            old.seek(before.get(place, 0), os.SEEK_CUR)
            file.write(new.get(place, b""))
        shutil.copyfileobj(old, file, COPIED)
    note_written(index, path)


def starts(
    index: Index, header: int, before: Mapping[bytes, int], new: Mapping[bytes, bytes]
) -> Iterator[tuple[bytes, int]]:
    """Yield the places that change, in their order, and where each begins, or would begin, in the old file."""
    start, last = header, b""
    for place in sorted({*before, *new}):
        start += index.bytes_between(last, place)  # as in the new file
        if last:
            start -= len(new.get(last, b"")) - before.get(last, 0)
        yield place, start
        last = place


def copy(old: BinaryIO, new: BinaryIO, count: int) -> None:
    """Copy so many bytes."""
    while count:
        piece = old.read(min(count, COPIED))
        if not piece:
            raise OSError(f"{old.name} was cut short while it was read")
        new.write(piece)
        count -= len(piece)


def note_written(index: Index, path: Path) -> None:
    """Note in the index which file it has written."""
    index.set_note("file", seen(path))
    index.set_note("columns", json.dumps(index.columns()))


def seen(path: Path) -> str:
    """Return what tells a file from another that was at its place; "" where there is none."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return ""
    return f"{stat.st_ino} {stat.st_mtime_ns} {stat.st_size}"
