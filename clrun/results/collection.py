"""The runs of a folder together: results.csv, and the index from which it is written.

An update looks at which folders of runs there are, reads the summaries that are new, and checks some of those that are
known: all up to CHECKED, and of more the next CHECKED, in turn, so that the costs of an update do not grow with the
runs that are there. A report checks all.

One process at a time updates; a lock of the library `filelock` is held meanwhile. Where the lock or the index cannot be
used (a disk that is read-only or has no locks, a process that does not let go), all summaries are read instead, as if
there were no index, and that is said. A damaged index is made again.
"""

import io
import os
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from filelock import FileLock, Timeout

from clrun.results import index as indices
from clrun.results import results_file
from clrun.results.columns import SUMMARY_HEAD, SUMMARY_TAIL
from clrun.results.index import SEPARATOR, UNSURE, DamagedIndex, Found, Index, Stamp
from clrun.results.outcome import RunStatus
from clrun.results.reading import UnreadableFile, reason_of, refuse_no_file, summary_row
from clrun.results.run_files import read_summary, table_of
from clrun.system.messages import announce

LOCK = ".results.lock"

READ_AT_ONCE = 500  # summaries whose rows are in memory

CHECKED = 10_000  # summaries of finished runs whose stamps are compared in an update

LOCK_SECONDS = 30.0  # to wait for another process that updates; it takes a second, and the first time longer

# Nanoseconds in which a file may change again with the same stamp: clocks of disks are as coarse as two seconds.
COARSE_CLOCK = 2_000_000_000

NAMED = 3  # folders that a message names

# Errors of SQLite that say that the file is not what it should be.
DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CONSTRAINT)


class IndexUnavailable(Exception):
    """The index cannot be used now, and why."""


@dataclass
class Changes:
    """What an update has found."""

    found: list[Found] = field(default_factory=list)  # new or changed
    gone: list[bytes] = field(default_factory=list)
    touched: list[tuple[bytes, Stamp]] = field(default_factory=list)  # with the same content
    damaged: list[UnreadableFile] = field(default_factory=list)  # cannot be read, and so are left out

    def places(self) -> list[bytes]:
        """Return the places of all rows that change."""
        return [*(found.place for found in self.found), *self.gone]


class LeftOut(NamedTuple):
    """What an update leaves out of results.csv."""

    copies: list[tuple[Path, Path]]  # a folder, and the one with the same run that counts instead
    damaged: list[UnreadableFile]  # summaries that cannot be read


# ---------------------------------------------------------------- for those who read runs


def update(
    outputs: Path,
    changed: Collection[Path] = (),
    checked: int | None = CHECKED,
    say: Callable[[str], None] = announce,
    lock_seconds: float = LOCK_SECONDS,
) -> None:
    """Bring results.csv up to date: the summary rows of all runs, sorted by path, one a run. Without any finished run
    nothing is written.

    changed: folders of runs that this process has finished. checked: how many of the known summaries are compared with
    what is there, None for all. say: prints a sentence. lock_seconds: to wait for another process. A summary that
    cannot be read is left out, and said so. Raise OSError where results.csv cannot be written.
    """
    if not holds_runs(outputs):
        return
    places = [place_of(outputs, directory) for directory in changed]
    try:
        left_out = update_with_index(outputs, places, checked, lock_seconds)
    except IndexUnavailable as reason:
        say(f"{outputs / indices.NAME} cannot be used ({reason}), so every summary.csv was read instead.")
        left_out = update_without_index(outputs)
    if left_out.copies:
        say(sentence_on(left_out.copies))
    say_damaged(left_out.damaged, say)


def collect(outputs: Path, say: Callable[[str], None] = announce, lock_seconds: float = LOCK_SECONDS) -> pd.DataFrame:
    """Bring results.csv up to date, every summary.csv checked, and return it as `read_summary` does.

    Where results.csv cannot be written, say so, and return what it would hold. A summary that cannot be read is left
    out, and said so.
    """
    if not holds_runs(outputs):
        return pd.DataFrame(columns=[*SUMMARY_HEAD, "stream", "setup", *SUMMARY_TAIL])
    try:
        update(outputs, checked=None, say=say, lock_seconds=lock_seconds)
    except OSError as error:
        say(f"{outputs / results_file.NAME} could not be written: {error.strerror or error}.")
        return table_of(io.StringIO(written_to_memory(outputs)))
    path = outputs / results_file.NAME
    if not path.exists():  # no summary can be read
        return pd.DataFrame(columns=[*SUMMARY_HEAD, "stream", "setup", *SUMMARY_TAIL])
    with path.open(encoding="utf-8") as file:
        return table_of(file)


def first_done(outputs: Path, strategy: str, setup: str, seed: str) -> pd.Series | None:
    """Return the first row in results.csv of a run that is done, of this strategy, setup and seed; None without one.

    Raise UsageError where results.csv has to be read, and is cut short.
    """
    path = outputs / results_file.NAME
    if not path.is_file():
        return None
    cells = {"strategy": strategy, "setup": setup, "seed": seed}
    with suppress(sqlite3.Error, DamagedIndex), indices.opened_for_reading(outputs / indices.NAME) as index:
        if index.note("file") == results_file.seen(path):
            row = index.first(**cells, status=RunStatus.DONE.value)
            return None if row is None else series_of(row)
    rows = read_summary(path)
    rows["setup"] = setups_of(rows)
    same = pd.concat([rows[name].astype(str) == value for name, value in cells.items()], axis=1).all(axis=1)
    rows = rows[same & (rows["status"] == RunStatus.DONE)]
    return None if rows.empty else rows.iloc[0]


def setups_of(rows: pd.DataFrame) -> "pd.Series[str]":
    """Return the setup of each row; rows of earlier versions have it in the column `stream`."""
    return rows["setup"].fillna(rows["stream"]) if "setup" in rows else rows["stream"]


def folders(outputs: Path, runs: Collection[str]) -> dict[str, Path]:
    """Return the folders of these runs, by identity, where they are there: from the index, or else by their names."""
    with suppress(sqlite3.Error, DamagedIndex), indices.opened_for_reading(outputs / indices.NAME) as index:
        places = {run: index.place_of(run) for run in runs}
        found = {run: directory_of(outputs, place) for run, place in places.items() if place is not None}
        if all((path / "summary.csv").is_file() for path in found.values()):
            return found
    named = {path.name.rpartition("-")[2]: path for path in sorted(outputs.glob("runs/*/*"))}
    return {run: named[run] for run in runs if run in named}


def series_of(row: dict[str, str]) -> pd.Series:
    """Return a row as `read_summary` reads it."""
    lines = results_file.Lines(list(row))
    return table_of(io.StringIO((lines.header() + lines.row(row)).decode())).iloc[0]


def holds_runs(outputs: Path) -> bool:
    """Return whether a folder has finished runs, or had some."""
    return (outputs / indices.NAME).exists() or next(outputs.glob("runs/*/*/summary.csv"), None) is not None


def sentence_on(copies: Sequence[tuple[Path, Path]]) -> str:
    """Return a sentence on folders that were left out. copies: the folder, and the one that counts instead."""
    named = "; ".join(f"{copy} (of {kept.name})" for copy, kept in copies[:NAMED])
    more = f"; and {len(copies) - NAMED} more" if len(copies) > NAMED else ""
    what = "one folder was left out that is a copy" if len(copies) == 1 else f"{len(copies)} folders are copies"
    rest = "" if len(copies) == 1 else " and were left out"
    return f"A run counts once, so {what} of another run's{rest}: {named}{more}."


def say_damaged(damaged: Sequence[UnreadableFile], say: Callable[[str], None]) -> None:
    """Say which summaries cannot be read, so that their runs are left out; of many, the first few."""
    for error in damaged[:NAMED]:
        say(f"left out: {error}")
    if len(damaged) > NAMED:
        say(f"left out as well: {len(damaged) - NAMED} more runs whose summary.csv cannot be read.")


# ---------------------------------------------------------------- with and without the index


def update_with_index(outputs: Path, changed: Sequence[bytes], checked: int | None, lock_seconds: float) -> LeftOut:
    """Update the index and results.csv, and return what was left out. Raise IndexUnavailable."""
    path = outputs / indices.NAME
    with exclusive(outputs, lock_seconds):
        try:
            return update_once(outputs, path, changed, checked, lock_seconds)
        except DamagedIndex:
            remove_index(path)
        except sqlite3.Error as error:
            if not is_damage(error):
                raise IndexUnavailable(str(error)) from error
            remove_index(path)
        try:
            return update_once(outputs, path, changed, checked, lock_seconds)
        except (sqlite3.Error, DamagedIndex) as error:
            raise IndexUnavailable(str(error)) from error


def update_once(
    outputs: Path, path: Path, changed: Sequence[bytes], checked: int | None, lock_seconds: float
) -> LeftOut:
    """Update an index and results.csv. Return what was left out."""
    with indices.opened(path, min(lock_seconds, indices.BUSY_SECONDS)) as index:
        return apply(index, outputs, changed, checked)[1]


def copies_in(index: Index, outputs: Path) -> list[tuple[Path, Path]]:
    """Return the folders that are copies, each with the one that counts instead."""
    return [(directory_of(outputs, copy), directory_of(outputs, kept)) for copy, kept in index.left_out()]


def update_without_index(outputs: Path) -> LeftOut:
    """Write results.csv from all summaries. Return what was left out.

    Several processes may do this at once. Each looks again after writing, and writes again if a run has ended
    meanwhile, so that the process that writes last has seen every run.
    """
    with indices.opened(None) as index:
        while (found := apply(index, outputs, (), None))[0]:
            pass
        return found[1]


def written_to_memory(outputs: Path) -> str:
    """Return what results.csv would hold."""
    file = io.BytesIO()
    with indices.opened(None) as index:
        keep_all(index, outputs, (), None)
        results_file.write_all(index, file)
    return file.getvalue().decode()


@contextmanager
def exclusive(outputs: Path, seconds: float) -> Iterator[None]:
    """Keep other processes from updating while the block runs. Raise IndexUnavailable where that is impossible."""
    if not os.access(outputs, os.W_OK):
        raise IndexUnavailable("the folder is read-only")
    lock = FileLock(outputs / LOCK, timeout=seconds)
    try:
        lock.acquire()
    except Timeout:
        raise IndexUnavailable(f"another process has held {LOCK} for {seconds:.0f} s") from None
    except (OSError, NotImplementedError) as error:  # no locks on this disk
        raise IndexUnavailable(f"{LOCK}: {error}") from error
    try:
        yield
    finally:
        lock.release()


def is_damage(error: sqlite3.Error) -> bool:
    """Return whether an error says that the index is damaged, and not that it cannot be read or written now."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in DAMAGE


def remove_index(path: Path) -> None:
    """Remove a damaged index, and what SQLite has left beside it."""
    for name in (path.name, f"{path.name}-journal", f"{path.name}-wal", f"{path.name}-shm"):
        path.with_name(name).unlink(missing_ok=True)


# ---------------------------------------------------------------- the update


def apply(
    index: Index, outputs: Path, changed: Sequence[bytes], checked: int | None, read_at_once: int = READ_AT_ONCE
) -> tuple[bool, LeftOut]:
    """Look for summaries that are new, changed or gone, and keep that in the index and in results.csv. Return whether
    there was anything new, and what was left out.

    changed, checked: as of `update`. read_at_once: summaries whose rows are in memory.
    """
    kept, damaged = keep_all(index, outputs, changed, checked, read_at_once)
    if index.count():
        results_file.update(index, outputs / results_file.NAME, kept.before, list(kept.after(index)))
    return bool(kept.places), LeftOut(copies_in(index, outputs), damaged)


@dataclass
class Kept:
    """What changes have been kept in the index, of which results.csv knows nothing yet."""

    places: list[bytes] = field(default_factory=list)  # of the rows that have changed
    identities: set[str] = field(default_factory=set)  # of their runs
    before: dict[bytes, int] = field(default_factory=dict)  # place -> bytes of the rows in results.csv concerned

    def after(self, index: Index) -> dict[bytes, int]:
        """Return the places of the rows that stand in results.csv from now on."""
        return index.kept(self.identities, self.places)


def keep_all(
    index: Index, outputs: Path, changed: Sequence[bytes], checked: int | None, read_at_once: int = READ_AT_ONCE
) -> tuple[Kept, list[UnreadableFile]]:
    """Keep all changes in the index, piece by piece, so that a first index takes no more memory than a second. Return
    what was kept, and the summaries that cannot be read."""
    kept, damaged = Kept(), list[UnreadableFile]()
    for found in changes(index, outputs, changed, checked, read_at_once):
        keep(index, found, kept)
        damaged += found.damaged
    return kept, damaged


def keep(index: Index, found: Changes, kept: Kept) -> None:
    """Keep changes in the index, and note in `kept` which rows of results.csv they concern."""
    places = found.places()
    identities = index.identities(places) | {one.row["run"] for one in found.found if one.row.get("run")}
    kept.before = index.kept(identities, places) | kept.before  # what the file holds is what was noted first
    kept.places += places
    kept.identities |= identities
    for place in found.gone:
        index.remove(place)
    for one in found.found:
        index.put(one)
    for place, stamp in found.touched:
        index.restamp(place, stamp)
    index.keep_one(identities)


def changes(
    index: Index, outputs: Path, changed: Sequence[bytes], checked: int | None, read_at_once: int
) -> Iterator[Changes]:
    """Yield in which summaries the folders of runs differ from the index, `read_at_once` at a time. Which they are is
    found out before the first is yielded. The other arguments are those of `update`."""
    new, gone = listed(index, outputs)
    known = dict(index.stamps(checked))
    known |= {place: stamp for place in changed if (stamp := index.stamp(place)) is not None}
    runs = os.fsencode(outputs / "runs")
    left = set(gone)
    other = [place for place in known if place not in left and stamp_at(runs, place) != known[place]]
    yield Changes(gone=gone)
    for places in batched([*new, *other], read_at_once):
        result = Changes()
        for place in places:
            read_into(result, index, outputs, place, known.get(place))
        yield result


def batched(places: Sequence[bytes], count: int) -> Iterator[Sequence[bytes]]:
    """Yield so many places at once."""
    for start in range(0, len(places), count):
        yield places[start : start + count]


def listed(index: Index, outputs: Path) -> tuple[list[bytes], list[bytes]]:
    """Return the places of folders that the index does not know, and those of folders that are not there any more."""
    new: list[bytes] = []
    gone: list[bytes] = []
    runs = os.fsencode(outputs / "runs")
    for strategy in sorted({*names_in(runs), *index.strategies()}):
        there = {
            strategy + SEPARATOR + name for name in names_in(os.path.join(os.fsencode(outputs), b"runs", strategy))
        }
        for place in index.places_of(strategy):
            if place in there:
                there.remove(place)
            else:
                gone.append(place)
        new += sorted(there)
    return new, gone


def names_in(folder: bytes) -> list[bytes]:
    """Return the names in a folder; none where there is no folder."""
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def read_into(result: Changes, index: Index, outputs: Path, place: bytes, known: Stamp | None) -> None:
    """Read a summary.csv, and add to the changes what it tells: that it is new or other, gone, or as it was."""
    path = directory_of(outputs, place) / "summary.csv"
    try:
        stamp, row = stamp_and_row(path)
    except (FileNotFoundError, NotADirectoryError):  # not finished, or removed since it was listed
        result.gone += [] if known is None else [place]
        return
    except UnreadableFile as error:
        result.gone += [] if known is None else [place]
        result.damaged.append(error)
        return
    if time.time_ns() - stamp.changed < COARSE_CLOCK:
        stamp = stamp._replace(modified=UNSURE)
    if known is not None and index.row(place) == row:
        result.touched.append((place, stamp))
    else:
        result.found.append(Found(place, stamp, row))


def stamp_and_row(path: Path) -> tuple[Stamp, dict[str, str]]:
    """Return the stamp of a summary.csv and its row, cells as text.

    Raise FileNotFoundError or NotADirectoryError where there is none, and UnreadableFile where it is not whole.
    """
    try:
        refuse_no_file(path)
        with path.open("rb") as file:
            stamp, content = stamp_of(os.fstat(file.fileno())), file.read()
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise UnreadableFile(path, reason_of(path, error)) from None
    header, row = summary_row(path, content)
    return stamp, dict(zip(header, row, strict=True))


def stamp_at(runs: bytes, place: bytes) -> Stamp | None:
    """Return the stamp of the summary.csv at a place below the folder `runs`; None where there is none."""
    strategy, _, folder = place.partition(SEPARATOR)
    try:
        return stamp_of(os.stat(b"/".join([runs, strategy, folder, b"summary.csv"])))
    except (FileNotFoundError, NotADirectoryError):
        return None


def stamp_of(stat: os.stat_result) -> Stamp:
    """Return the stamp of a file."""
    return Stamp(stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size)


def place_of(outputs: Path, directory: Path) -> bytes:
    """Return the place of a run's folder in the index."""
    return SEPARATOR.join(os.fsencode(part) for part in directory.relative_to(outputs / "runs").parts)


def directory_of(outputs: Path, place: bytes) -> Path:
    """Return the folder of a run at a place in the index."""
    return outputs / "runs" / Path(*(os.fsdecode(part) for part in place.split(SEPARATOR)))
