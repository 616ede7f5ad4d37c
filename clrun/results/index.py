"""The index of a folder of results: the row of every summary.csv, in a SQLite database beside results.csv.

The folders of the runs are the truth. The index says of each summary.csv when it was last changed, so that only those
that differ are read again, and it can be deleted at any time. A row is known by its place, `<strategy>/<folder>` below
`runs`, as bytes with a zero between, so that the order of SQLite is that of the two names.

A run has one row: of several folders with the same identity (a copy, `NAME.bak`) one is kept, see `preference`.
"""

import json
import sqlite3
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from clrun.results.columns import SUMMARY_HEAD, SUMMARY_TAIL

NAME = ".results.sqlite"

# SQLite keeps two numbers for the programs that use it: whose file it is, and the version of its tables.
APPLICATION, VERSION = 0x636C7275, 2

BUSY_SECONDS = 5.0  # to wait for another process that reads or writes a page

SEPARATOR = b"\0"  # no name of a file contains it

TABLES = """
CREATE TABLE note (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE layout (number INTEGER PRIMARY KEY, keys TEXT NOT NULL UNIQUE);
CREATE TABLE content (
    number INTEGER PRIMARY KEY, setup TEXT, seed TEXT, strategy TEXT, status TEXT, cells BLOB NOT NULL);
CREATE TABLE run (
    place BLOB PRIMARY KEY, modified INTEGER NOT NULL, changed INTEGER NOT NULL, size INTEGER NOT NULL, run TEXT,
    layout INTEGER NOT NULL, content INTEGER NOT NULL, checksum INTEGER NOT NULL,
    kept INTEGER NOT NULL DEFAULT 1, bytes INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE INDEX run_by_identity ON run (run);
CREATE INDEX run_by_content ON run (content);
CREATE INDEX left_out ON run (place) WHERE NOT kept;
CREATE INDEX content_by_setup ON content (setup, seed, strategy);
"""


class DamagedIndex(Exception):
    """The index is not what this version of clrun has written; it can be made again from the folders."""


class Stamp(NamedTuple):
    """When and how a file was last changed, in nanoseconds and bytes."""

    modified: int
    changed: int
    size: int


# The stamp of a file that has changed so recently that a second change might leave the same stamp.
UNSURE = -1


@dataclass(frozen=True)
class Found:
    """A summary.csv that is new or has changed."""

    place: bytes
    stamp: Stamp
    row: Mapping[str, str]


class Kept(NamedTuple):
    """A row as it stands in results.csv: its place, and the number of its bytes there."""

    place: bytes
    bytes: int


@contextmanager
def opened(path: Path | None, busy_seconds: float = BUSY_SECONDS) -> Iterator["Index"]:
    """Yield the index in this file, new where there is none, or in memory for None. What the block changes is kept if
    it ends without an exception.

    busy_seconds: to wait for another process that holds it. Raise DamagedIndex or sqlite3.Error where it cannot be
    used.
    """
    connection = sqlite3.connect(":memory:" if path is None else path, isolation_level=None, timeout=busy_seconds)
    with closing(connection):
        connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("BEGIN IMMEDIATE")
        try:
            make_tables(connection)
            yield Index(connection)
        except BaseException:
            if connection.in_transaction:  # SQLite itself ends it after some errors
                connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")


@contextmanager
def opened_for_reading(path: Path) -> Iterator["Index"]:
    """Yield the index in this file, which the block does not change. Raise DamagedIndex or sqlite3.Error."""
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=BUSY_SECONDS)) as connection:
        connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
        refuse_foreign(connection)
        yield Index(connection)


def make_tables(connection: sqlite3.Connection) -> None:
    """Make the tables of a new index. Raise DamagedIndex for a file that is not clrun's, or of another version."""
    (objects,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if objects:
        refuse_foreign(connection)
        return
    for statement in filter(str.strip, TABLES.split(";")):
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION}")
    connection.execute(f"PRAGMA user_version = {VERSION}")


def refuse_foreign(connection: sqlite3.Connection) -> None:
    """Raise DamagedIndex for a file that is not clrun's, or of another version."""
    found = tuple(connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
    if found != (APPLICATION, VERSION):
        raise DamagedIndex(f"application and version are {found}")


@dataclass(frozen=True)
class Index:
    """An open index. Its methods raise DamagedIndex or sqlite3.Error where it cannot be used."""

    connection: sqlite3.Connection

    # ------------------------------------------------------------ what is known

    def strategies(self) -> list[bytes]:
        """Return the names of the folders that hold the folders of runs."""
        names: list[bytes] = []
        after = b""
        while found := self.connection.execute("SELECT min(place) FROM run WHERE place >= ?", [after]).fetchone()[0]:
            names.append(found.partition(SEPARATOR)[0])
            after = names[-1] + b"\1"
        return names

    def places_of(self, strategy: bytes) -> Iterator[bytes]:
        """Yield the places of the runs below the folder of a strategy, in their order."""
        query = "SELECT place FROM run WHERE place >= ? AND place < ? ORDER BY place"
        for (place,) in self.connection.execute(query, [strategy + SEPARATOR, strategy + b"\1"]):
            yield place

    def stamps(self, most: int | None) -> list[tuple[bytes, Stamp]]:
        """Return places with the stamps of their summary.csv, at most so many: the next ones at every call. All for
        None."""
        query = "SELECT place, modified, changed, size FROM run WHERE place > ? ORDER BY place LIMIT ?"
        after = from_hex(self.note("checked")) if most is not None else b""
        rows = self.connection.execute(query, [after, -1 if most is None else most]).fetchall()
        if most is not None:
            if len(rows) < most:  # the end: go on at the beginning, but with no row twice
                rows += [row for row in self.connection.execute(query, [b"", most - len(rows)]) if row[0] <= after]
            self.set_note("checked", rows[-1][0].hex() if rows else "")
        return [(place, Stamp(*stamp)) for place, *stamp in rows]

    def stamp(self, place: bytes) -> Stamp | None:
        """Return the stamp of the summary.csv at a place; None if it is not known."""
        row = self.connection.execute("SELECT modified, changed, size FROM run WHERE place = ?", [place]).fetchone()
        return None if row is None else Stamp(*row)

    def identities(self, places: Iterable[bytes]) -> set[str]:
        """Return the identities of the runs at these places."""
        query = "SELECT run FROM run WHERE place = ?"
        found = (self.connection.execute(query, [place]).fetchone() for place in places)
        return {row[0] for row in found if row is not None and row[0] is not None}

    def kept(self, identities: Iterable[str], places: Iterable[bytes]) -> dict[bytes, int]:
        """Return the number of bytes in results.csv of the rows of these runs, and of those at these places, by their
        place."""
        rows: dict[bytes, int] = {}
        for identity in identities:
            rows |= self.connection.execute("SELECT place, bytes FROM run WHERE run = ? AND kept", [identity])
        for place in places:
            rows |= self.connection.execute("SELECT place, bytes FROM run WHERE place = ? AND kept", [place])
        return rows

    def left_out(self) -> list[tuple[bytes, bytes]]:
        """Return the places of copies, each with the place of the row that is kept instead of it."""
        copies = self.connection.execute("SELECT place, run FROM run WHERE NOT kept ORDER BY place").fetchall()
        query = "SELECT min(place) FROM run WHERE run = ? AND kept"
        return [(place, self.connection.execute(query, [run]).fetchone()[0] or b"") for place, run in copies]

    def count(self) -> int:
        """Return the number of rows in results.csv."""
        number: int = self.connection.execute("SELECT count(*) FROM run WHERE kept").fetchone()[0]
        return number

    # ------------------------------------------------------------ rows

    def columns(self) -> list[str]:
        """Return the columns of results.csv: between SUMMARY_HEAD and SUMMARY_TAIL the keys of all runs, in the order
        in which the rows name them first."""
        query = "SELECT layout FROM run WHERE kept GROUP BY layout ORDER BY min(place)"
        layouts = [self.layout(number) for (number,) in self.connection.execute(query).fetchall()]
        keys = dict.fromkeys(key for layout in layouts for key in layout)
        between = [key for key in keys if key not in (*SUMMARY_HEAD, *SUMMARY_TAIL)]
        return [*SUMMARY_HEAD, *between, *SUMMARY_TAIL]

    def layout(self, number: int) -> list[str]:
        """Return the columns of a summary.csv."""
        row = self.connection.execute("SELECT keys FROM layout WHERE number = ?", [number]).fetchone()
        if row is None:
            raise DamagedIndex("a layout is missing")
        return decoded(row[0].encode())

    def rows(self) -> Iterator[tuple[Kept, list[str], list[str]]]:
        """Yield the rows of results.csv in their order: what is known of each, its columns, and its cells."""
        layouts: dict[int, list[str]] = {}
        query = """SELECT place, bytes, layout, checksum, cells FROM run LEFT JOIN content ON content = number
                   WHERE kept ORDER BY place"""
        for place, length, layout, checksum, cells in self.connection.execute(query):
            if layout not in layouts:
                layouts[layout] = self.layout(layout)
            yield Kept(place, length), layouts[layout], checked(cells, checksum)

    def row(self, place: bytes) -> dict[str, str]:
        """Return the row at a place."""
        query = "SELECT layout, checksum, cells FROM run JOIN content ON content = number WHERE place = ?"
        found = self.connection.execute(query, [place]).fetchone()
        if found is None:
            raise DamagedIndex("a row is missing")
        layout, checksum, cells = found
        return dict(zip(self.layout(layout), checked(cells, checksum), strict=True))

    def first(self, **cells: str) -> dict[str, str] | None:
        """Return the first row of results.csv with these cells, of setup, seed, strategy and status; None without
        one."""
        wanted = " AND ".join(f"content.{name} = :{name}" for name in cells)
        query = f"SELECT place FROM content JOIN run ON content = number WHERE {wanted} AND kept ORDER BY place LIMIT 1"
        found = self.connection.execute(query, cells).fetchone()
        return None if found is None else self.row(found[0])

    def place_of(self, run: str) -> bytes | None:
        """Return the place of the folder of a run that stands in results.csv; None without one."""
        found = self.connection.execute("SELECT place FROM run WHERE run = ? AND kept", [run]).fetchone()
        return None if found is None else found[0]

    def bytes_between(self, first: bytes, end: bytes) -> int:
        """Return the number of bytes in results.csv of the rows from place `first` on, before place `end`."""
        query = "SELECT coalesce(sum(bytes), 0) FROM run WHERE kept AND place >= ? AND place < ?"
        total: int = self.connection.execute(query, [first, end]).fetchone()[0]
        return total

    def total_bytes(self) -> int:
        """Return the number of bytes of all rows in results.csv."""
        total: int = self.connection.execute("SELECT coalesce(sum(bytes), 0) FROM run WHERE kept").fetchone()[0]
        return total

    # ------------------------------------------------------------ changes

    def put(self, found: Found) -> None:
        """Keep a summary.csv that is new or has changed."""
        self.remove(found.place)
        keys, cells = encoded(list(found.row)), encoded(list(found.row.values()))
        self.connection.execute("INSERT OR IGNORE INTO layout (keys) VALUES (?)", [keys.decode()])
        (layout,) = self.connection.execute("SELECT number FROM layout WHERE keys = ?", [keys.decode()]).fetchone()
        setup = found.row.get("setup") or found.row.get("stream")  # which earlier versions wrote there
        searched = [setup, *(found.row.get(name) for name in ("seed", "strategy", "status"))]
        query = "INSERT INTO content (setup, seed, strategy, status, cells) VALUES (?, ?, ?, ?, ?)"
        content = self.connection.execute(query, [*searched, cells]).lastrowid
        values = [found.place, *found.stamp, found.row.get("run") or None, layout, content, zlib.crc32(cells)]
        query = "INSERT INTO run (place, modified, changed, size, run, layout, content, checksum)"
        self.connection.execute(f"{query} VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)

    def restamp(self, place: bytes, stamp: Stamp) -> None:
        """Note that a summary.csv was touched, while its content is the same."""
        query = "UPDATE run SET modified = ?, changed = ?, size = ? WHERE place = ?"
        self.connection.execute(query, [*stamp, place])

    def remove(self, place: bytes) -> None:
        """Forget a summary.csv that is not there any more."""
        self.connection.execute("DELETE FROM content WHERE number = (SELECT content FROM run WHERE place = ?)", [place])
        self.connection.execute("DELETE FROM run WHERE place = ?", [place])

    def keep_one(self, identities: Iterable[str]) -> None:
        """Choose one of the folders of each of these runs, the row of which stands in results.csv."""
        query = "SELECT place, strategy FROM run JOIN content ON content = number WHERE run = ?"
        for identity in identities:
            folders = self.connection.execute(query, [identity]).fetchall()
            if folders:
                best = min(preference(place, strategy, identity) for place, strategy in folders)[-1]
                self.connection.execute("UPDATE run SET kept = (place = ?) WHERE run = ?", [best, identity])

    def set_bytes(self, lengths: Collection[tuple[int, bytes]]) -> None:
        """Note how many bytes rows take in results.csv, as pairs (bytes, place)."""
        self.connection.executemany("UPDATE run SET bytes = ? WHERE place = ?", lengths)

    # ------------------------------------------------------------ notes

    def note(self, key: str) -> str:
        """Return a note; "" if there is none."""
        row = self.connection.execute("SELECT value FROM note WHERE key = ?", [key]).fetchone()
        return "" if row is None else row[0]

    def set_note(self, key: str, value: str) -> None:
        """Keep a note."""
        self.connection.execute("INSERT OR REPLACE INTO note (key, value) VALUES (?, ?)", [key, value])


def preference(place: bytes, strategy: str | None, identity: str) -> tuple[bool, bool, int, bytes]:
    """Return how well a folder is the one that clrun made for a run; the smallest is the best: below its strategy, with
    the identity at its end, and with the shortest name, as a copy has a longer one."""
    parent, _, folder = place.partition(SEPARATOR)
    return parent != (strategy or "").encode(), not folder.endswith(f"-{identity}".encode()), len(folder), place


def from_hex(text: str) -> bytes:
    """Return the bytes that a note states. Raise DamagedIndex."""
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise DamagedIndex("a note cannot be read") from None


def encoded(texts: Sequence[str]) -> bytes:
    """Return texts as bytes, which `decoded` reads."""
    return json.dumps(texts, ensure_ascii=False).encode()


def decoded(content: bytes) -> list[str]:
    """Return the texts in these bytes. Raise DamagedIndex."""
    try:
        texts: Any = json.loads(content)
    except ValueError:
        raise DamagedIndex("a row cannot be read") from None
    return list(texts)


def checked(content: Any, checksum: int) -> list[str]:
    """Return the texts in these bytes. Raise DamagedIndex where they are not those that were written."""
    if not isinstance(content, bytes) or zlib.crc32(content) != checksum:
        raise DamagedIndex("a row has another checksum")
    return decoded(content)
