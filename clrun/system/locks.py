"""Locks of runs: the process that trains a run is named in `lock.json` in the directory of the run.

The file names host and process. Its time of modification is a heartbeat, which the process renews. A lock is taken
over if its process is dead (seen from the same host), or if its heartbeat is older than a minute (seen from another
host, on a shared disk). Reading a lock and taking it is one atomic operation: a lock of the library `filelock`, the
gate, is held for that moment alone. No process waits for a run, so there is no deadlock.
"""

import json
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from clrun.system.atomic_files import write_text
from clrun.system.errors import UsageError

NAME = "lock.json"
GATE = ".lock"  # the file of the gate, in the folder of the runs of a strategy

HEARTBEAT_SECONDS = 15.0  # between two heartbeats
STALE_SECONDS = 60.0  # without a heartbeat, after which a process on another host is taken for dead
GATE_TIMEOUT_SECONDS = 30.0  # to wait for the gate, which is held for milliseconds


@dataclass(frozen=True)
class Owner:
    """A process on some host. `space` and `started` distinguish it from a later process with the same number.

    The fields are the keys of lock.json, which other versions of clrun read.
    """

    host: str
    space: str  # see `process_namespace`
    pid: int
    started: str  # see `start_time`

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def this_process() -> Owner:
    """Return the owner that stands for this process."""
    return Owner(socket.gethostname(), process_namespace(), os.getpid(), start_time(os.getpid()))


def process_namespace() -> str:
    """Return the boot of the machine and the container's namespace of process numbers, as far as the system states
    them: process numbers are comparable only if both are equal."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    boot_id = boot.read_text().strip() if boot.is_file() else ""
    return f"{boot_id} {os.readlink(namespace)}" if namespace.is_symlink() else boot_id


def start_time(pid: int) -> str:
    """Return when a process was started, in clock ticks of the kernel; "" if the system does not state it, or if there
    is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return stat.rpartition(")")[2].split()[19]  # field 22; the name before may contain anything


def alive(owner: Owner) -> bool:
    """Return whether a process of this host is running."""
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it belongs to another user, so it exists
        pass
    return not owner.started or start_time(owner.pid) == owner.started


# ---------------------------------------------------------------- one lock


def holder(directory: Path) -> Owner | None:
    """Return the other, living process that trains the run in this directory; None if there is none, or if it is this
    process."""
    path, me = directory / NAME, this_process()
    try:
        with path.open(encoding="utf-8") as file:  # open() makes a shared disk fetch the current time
            owner, heartbeat = Owner(**json.load(file)), os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):  # no JSON, or other fields: not written by clrun, so it names no owner
        return None
    if owner == me:
        return None
    if (owner.host, owner.space) == (me.host, me.space):
        return owner if alive(owner) else None
    return owner if disk_time(directory) - heartbeat < STALE_SECONDS else None


def disk_time(directory: Path) -> float:
    """Return the present time in seconds by the clock of the disk, since the clocks of hosts differ."""
    probe = directory / f".{NAME}.{os.getpid()}.time"
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


@contextmanager
def gate(directory: Path, timeout: float = GATE_TIMEOUT_SECONDS) -> Iterator[None]:
    """Keep other processes from reading or changing the locks of this strategy's runs while the block runs.

    Raise UsageError if another process holds the gate for `timeout` seconds.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory.parent / GATE
    try:
        with FileLock(path, timeout=timeout):
            yield
    except Timeout:
        raise UsageError(
            f"{path} has been held by another process for {timeout:.0f} s; is one stopped? End it, or delete the file."
        ) from None


def claim(directory: Path) -> Owner | None:
    """Take the lock of a run for this process; return None, or the process that holds it.

    Raise UsageError where the gate stays held, and OSError where the lock cannot be written.
    """
    with gate(directory):
        other = holder(directory)
        try:
            if other is None:
                write_text(directory / NAME, json.dumps(asdict(this_process())) + "\n")
        finally:
            remove_if_empty(directory)
        return other


def release(directory: Path) -> None:
    """Give the lock of a run back, unless another process has taken it over; remove its directory if it is empty."""
    with gate(directory):
        if holder(directory) is None:
            (directory / NAME).unlink(missing_ok=True)
        remove_if_empty(directory)


def remove_if_empty(directory: Path) -> None:
    """Remove a directory if it is empty."""
    if not any(directory.iterdir()):
        directory.rmdir()


# ---------------------------------------------------------------- the locks of many runs


@dataclass
class Claim:
    """The runs of this process, and the owners of the others."""

    mine: list[Path]
    others: dict[Path, Owner]


@contextmanager
def claimed(directories: Sequence[Path], heartbeat_seconds: float = HEARTBEAT_SECONDS) -> Iterator[Claim]:
    """Take the locks of those of these runs that are free, and give them back when the block ends.

    Raise UsageError where the gate stays held, and OSError where the lock cannot be written.
    """
    result = Claim([], {})
    stop = threading.Event()
    arguments = (result.mine, stop, heartbeat_seconds)
    heartbeat = threading.Thread(target=renew_heartbeats, args=arguments, daemon=True, name="clrun heartbeat")
    try:
        for directory in directories:
            other = claim(directory)
            if other is None:
                result.mine.append(directory)
            else:
                result.others[directory] = other
        heartbeat.start()
        yield result
    finally:
        stop.set()
        for directory in result.mine:
            release(directory)


def renew_heartbeats(directories: Sequence[Path], stop: threading.Event, seconds: float) -> None:
    """Renew the heartbeats of these locks until the event is set. A lock that another process has taken over meanwhile
    is left alone."""
    while not stop.wait(seconds):
        for directory in directories:
            with suppress(OSError):  # a heartbeat that is missed, as on a slow disk, is made up for by the next one
                if holder(directory) is None:
                    os.utime(directory / NAME)
