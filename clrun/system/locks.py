"""Locks of runs: the process that trains a run is named in `lock.json` in the directory of the run.

The file names host and process. Its time of modification is a heartbeat, which the process renews. A lock is taken
over if its process is dead (seen from the same host), or if its heartbeat is older than a minute (seen from another
host, on a shared disk). Reading a lock and taking it is one atomic operation: a lock of the library `filelock`, the
gate, is held for that moment alone. No process waits for a run, so there is no deadlock.

A process that was suspended, as by the lid of a laptop or a disk that does not answer, may have lost its lock when it
goes on. Every claim therefore has a token of its own, which stands in lock.json, and a file of a run gets its name only
while the gate is held and the token is still there (`Lock.held`, which clrun/system/atomic_files.py enters).

The gate is an flock, which ends with its process. On a disk without flock it is a file that exists while the gate is
held: one that a killed process has left there is noticed on the same host; on another host, it has to be deleted.
"""

import errno
import fcntl
import json
import os
import socket
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from clrun.system.atomic_files import write_text
from clrun.system.errors import UsageError
from clrun.system.signals import postponed

NAME = "lock.json"
GATE = ".lock"  # the file of the gate, in the folder of the runs of a strategy
GATE_WITHOUT_FLOCK = ".lock.held"  # where the disk has no flock: it exists while the gate is held

HEARTBEAT_SECONDS = 15.0  # between two heartbeats
STALE_SECONDS = 60.0  # without a heartbeat, after which a process on another host is taken for dead
GATE_TIMEOUT_SECONDS = 30.0  # to wait for the gate, which is held for milliseconds
GATE_POLL_SECONDS = 0.01  # between two attempts to take the gate

MOST_PROCESSES = 2**31 - 1  # the largest number of a process

# What flock answers on a disk that has no such locks. EACCES is also the answer for a lock that another process holds.
NO_FLOCK = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EACCES)


@dataclass(frozen=True)
class Owner:
    """A process on some host. `space` and `started` distinguish it from a later process with the same number.

    The fields are the keys of lock.json, which other versions of clrun read; `token` is not in theirs.
    """

    host: str
    space: str  # see `process_namespace`
    pid: int
    started: str  # see `start_time`
    token: str = field(default="", compare=False)  # of the claim: 32 hexadecimal digits

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def this_process() -> Owner:
    """Return the owner that stands for this process, without a token."""
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
    return stated(pid, 22)


def is_zombie(pid: int) -> bool:
    """Return whether a process has ended, and has its number only until its parent asks how. A parent that never does,
    as the first process of some containers, keeps it for ever. False where the system does not state it."""
    return stated(pid, 3) in ("Z", "X", "x")


def stated(pid: int, field: int) -> str:
    """Return a field of /proc/PID/stat, which are numbered from 1, behind the name; "" if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return stat.rpartition(")")[2].split()[field - 3]  # field 2 is the name, which may contain anything


def exists(pid: int) -> bool:
    """Return whether this host has a process of this number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it belongs to another user
        return True
    return True


def alive(owner: Owner) -> bool:
    """Return whether a process of this host is running."""
    same = not owner.started or start_time(owner.pid) == owner.started
    return exists(owner.pid) and same and not is_zombie(owner.pid)


# ---------------------------------------------------------------- one lock


def holder(directory: Path, stale_seconds: float = STALE_SECONDS) -> Owner | None:
    """Return the other, living process that trains the run in this directory; None if there is none, or if it is this
    process. stale_seconds: without a heartbeat, after which a process on another host is taken for dead."""
    owner, heartbeat = read(directory)
    me = this_process()
    if owner is None or owner == me:
        return None
    if (owner.host, owner.space) == (me.host, me.space):
        return owner if alive(owner) else None
    return owner if disk_time(directory) - heartbeat < stale_seconds else None


def read(directory: Path) -> tuple[Owner | None, float]:
    """Return the owner that stands in the lock of a run, living or dead, and its last heartbeat, in seconds by the
    clock of the disk; None and 0 where no lock names an owner."""
    try:
        with (directory / NAME).open(encoding="utf-8") as file:  # open() makes a shared disk fetch the current time
            owner, heartbeat = owner_of(json.load(file)), os.fstat(file.fileno()).st_mtime
    except (FileNotFoundError, NotADirectoryError):
        return None, 0.0
    except (ValueError, RecursionError):  # no JSON: not written by clrun, so it names no owner
        return None, 0.0
    return (None, 0.0) if owner is None else (owner, heartbeat)


def owner_of(content: object) -> Owner | None:
    """Return the owner that the content of a lock names; None where it names none: it was not written by clrun."""
    if not isinstance(content, dict):
        return None
    kinds = {name: int if name == "pid" else str for name in (f.name for f in fields(Owner))}
    known = {name: content[name] for name in kinds if name in content}
    whole = kinds.keys() - {"token"} <= known.keys()
    if not whole or any(type(value) is not kinds[name] for name, value in known.items()):
        return None
    return Owner(**known) if 0 < known["pid"] <= MOST_PROCESSES else None


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
    folder = directory.parent
    folder.mkdir(parents=True, exist_ok=True)
    kind: type[BaseFileLock] = FileLock if has_flock(folder) else SoftFileLock
    path = folder / (GATE if kind is FileLock else GATE_WITHOUT_FLOCK)
    try:
        with kind(path, timeout=timeout, poll_interval=GATE_POLL_SECONDS):
            yield
    except Timeout:
        raise UsageError(
            f"{path} has been held by another process for {timeout:.0f} s; is one stopped? End it, or delete the file."
        ) from None


@cache
def has_flock(folder: Path) -> bool:
    """Return whether the disk of a folder has locks that end with their process. Raise OSError where nothing can be
    written into the folder."""
    probe = folder / f".{GATE}.{os.getpid()}.{uuid.uuid4().hex[:8]}.probe"
    try:
        with probe.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_FLOCK and error.filename is None:  # an error of open() names its file
            return False
        raise
    finally:
        probe.unlink(missing_ok=True)
    return True


class LockLost(Exception):
    """The lock of a run is no longer that of this process. Nothing more is to be written into its directory."""

    def __init__(self, directory: Path, owner: Owner | None) -> None:
        self.directory, self.owner = directory, owner
        who = "another process" if owner is None else str(owner)
        why = f"this process stood still for so long that {who} took the run over"
        if owner is None and not directory.is_dir():
            why = "its folder was removed meanwhile"
        super().__init__(f"{directory.name}: {why}; nothing more of it is written here.")


@dataclass(frozen=True)
class Lock:
    """A claim of this process on a run."""

    directory: Path
    token: str

    def check(self) -> None:
        """Raise LockLost if another process has taken the run over, as far as can be seen without the gate."""
        owner, _ = read(self.directory)
        if owner is None or owner.token != self.token:
            raise LockLost(self.directory, owner)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the lock while the block runs, which is to be short. Raise LockLost if another process has it."""
        if not self.directory.is_dir():  # the gate would make the folder above it anew
            raise LockLost(self.directory, None)
        with gate(self.directory):
            self.check()
            yield


def claim(directory: Path, token: str, stale_seconds: float = STALE_SECONDS) -> Owner | None:
    """Take the lock of a run for this process; return None, or the process that holds it.

    token: of this claim, which no other has. Raise UsageError where the gate stays held, and OSError where the lock
    cannot be written.
    """
    with gate(directory):
        directory.mkdir(exist_ok=True)
        other = holder(directory, stale_seconds)
        try:
            if other is None:
                write_text(directory / NAME, json.dumps(asdict(this_process()) | {"token": token}) + "\n")
        finally:
            remove_if_empty(directory)
        return other


def release(directory: Path, token: str) -> None:
    """Give the lock of a run back, unless another process has taken it over; remove its directory if it is empty."""
    if not directory.is_dir():
        return
    with gate(directory):
        owner, _ = read(directory)
        if owner is not None and owner.token == token:
            (directory / NAME).unlink(missing_ok=True)
        if directory.is_dir():
            remove_if_empty(directory)


def remove_if_empty(directory: Path) -> None:
    """Remove a directory if it is empty."""
    if not any(directory.iterdir()):
        directory.rmdir()


# ---------------------------------------------------------------- the locks of many runs


@dataclass
class Claim:
    """The locks of this process by the directories of their runs, and the owners of the others."""

    mine: dict[Path, Lock]
    others: dict[Path, Owner]


@contextmanager
def claimed(
    directories: Sequence[Path],
    heartbeat_seconds: float = HEARTBEAT_SECONDS,
    stale_seconds: float = STALE_SECONDS,
) -> Iterator[Claim]:
    """Take the locks of those of these runs that are free, and give them back when the block ends.

    Raise UsageError where the gate stays held, and OSError where the lock cannot be written.
    """
    result, token = Claim({}, {}), uuid.uuid4().hex
    stop = threading.Event()
    arguments = (result.mine, stop, heartbeat_seconds)
    heartbeat = threading.Thread(target=renew_heartbeats, args=arguments, daemon=True, name="clrun heartbeat")
    try:
        for directory in directories:
            result.mine[directory] = Lock(directory, token)  # first: a signal may arrive once the lock is written
            other = claim(directory, token, stale_seconds)
            if other is not None:
                del result.mine[directory]
                result.others[directory] = other
        heartbeat.start()
        yield result
    finally:
        stop.set()
        with postponed():  # a signal that arrived here would leave locks behind
            release_all(list(result.mine.values()))


def release_all(mine: Sequence[Lock]) -> None:
    """Give locks back: all that can be. Raise the first error, where some could not."""
    errors = []
    for lock in mine:
        try:
            release(lock.directory, lock.token)
        except (OSError, UsageError) as error:
            errors.append(error)
    if errors:
        raise errors[0]


def renew_heartbeats(mine: dict[Path, Lock], stop: threading.Event, seconds: float) -> None:
    """Renew the heartbeats of these locks until the event is set. A lock that another process has taken over meanwhile
    is left alone."""
    while not stop.wait(seconds):
        for lock in list(mine.values()):
            with suppress(OSError, LockLost):  # a heartbeat that is missed, as on a slow disk, is made up for
                lock.check()
                os.utime(lock.directory / NAME)
