"""One process a run: whoever trains it stands in `lock.json` in the run's directory.

The file says host and process, and its time of change is a heartbeat, renewed while the process lives. A lock whose
process is dead (seen from the same host), or whose heartbeat is older than a minute (from another host, on a shared
disk), is taken over. Looking at a lock and taking it is one act, under a lock of the `filelock` library that is held
for that moment alone; nobody waits for a run, so nobody can wait for each other.
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


GATE = ".lock"  # filelock's, beside the runs of a strategy


BEAT = 15.0  # seconds between heartbeats


STALE = 60.0  # seconds without one, after which a process on another host is taken for dead


PATIENCE = 30.0  # seconds for the gate, which is held for milliseconds


@dataclass(frozen=True)
class Owner:
    """A process, anywhere. `space` and `started` tell it from a later one of the same number."""

    host: str
    space: str  # boot of the machine, and the container's space of process numbers
    pid: int
    started: str  # in the kernel's clock ticks; "" where the system does not say

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def myself() -> Owner:
    """This process."""
    return Owner(socket.gethostname(), space(), os.getpid(), started(os.getpid()))


def space() -> str:
    """What must be equal for process numbers to be comparable, as far as the system says."""
    boot, numbers = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    told = boot.read_text().strip() if boot.is_file() else ""
    return f"{told} {os.readlink(numbers)}" if numbers.is_symlink() else told


def started(pid: int) -> str:
    """When a process was started; "" where the system does not say or there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return stat.rpartition(")")[2].split()[19]  # field 22; the name before may contain anything


def alive(owner: Owner) -> bool:
    """Whether a process of this host lives."""
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is somebody else's, so it is there
        pass
    return not owner.started or started(owner.pid) == owner.started


# ---------------------------------------------------------------- one lock


def holder(directory: Path) -> Owner | None:
    """Who trains the run in this directory: another, living process; None if nobody does, or this one."""
    path, me = directory / NAME, myself()
    try:
        with path.open(encoding="utf-8") as file:  # opened, so that a shared disk asks its server for the time
            owner, beaten = Owner(**json.load(file)), os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):  # no JSON, or other fields: not ours, and no owner whom it could tell
        return None
    if owner == me:
        return None
    if (owner.host, owner.space) == (me.host, me.space):
        return owner if alive(owner) else None
    return owner if disk_time(directory) - beaten < STALE else None


def disk_time(directory: Path) -> float:
    """Now, by the clock that stamps files there; hosts' own clocks differ."""
    probe = directory / f".{NAME}.{os.getpid()}.time"
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


@contextmanager
def gate(directory: Path) -> Iterator[None]:
    """Nobody else looks at or changes a lock beside this one meanwhile. UsageError if somebody never lets go."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory.parent / GATE
    try:
        with FileLock(path, timeout=PATIENCE):
            yield
    except Timeout:
        raise UsageError(
            f"{path} has been held by another process for {PATIENCE:.0f} s; is one stopped? End it, or delete the file."
        ) from None


def claim(directory: Path) -> Owner | None:
    """Take a run for this process: None if that is done, else who has it. Raises UsageError, OSError."""
    with gate(directory):
        other = holder(directory)
        try:
            if other is None:
                write_text(directory / NAME, json.dumps(asdict(myself())) + "\n")
        finally:
            tidy(directory)
        return other


def release(directory: Path) -> None:
    """Give a run back, unless another process has taken it over; a directory in which there is nothing else goes."""
    with gate(directory):
        if holder(directory) is None:
            (directory / NAME).unlink(missing_ok=True)
        tidy(directory)


def tidy(directory: Path) -> None:
    """Leave no empty directory behind."""
    if not any(directory.iterdir()):
        directory.rmdir()


# ---------------------------------------------------------------- many


@dataclass
class Claim:
    """Which runs are this process's, and who has the others."""

    mine: list[Path]
    others: dict[Path, Owner]


@contextmanager
def claimed(directories: Sequence[Path]) -> Iterator[Claim]:
    """Take what is free of these runs, keep it while the block runs, and give it back. Raises UsageError, OSError."""
    taken = Claim([], {})
    stop = threading.Event()
    try:
        for directory in directories:
            other = claim(directory)
            if other is None:
                taken.mine.append(directory)
            else:
                taken.others[directory] = other
        threading.Thread(target=beat, args=(taken.mine, stop), daemon=True, name="clrun heartbeat").start()
        yield taken
    finally:
        stop.set()
        for directory in taken.mine:
            release(directory)


def beat(directories: Sequence[Path], stop: threading.Event) -> None:
    """Renew the heartbeats until told to stop. One that another process has taken over meanwhile is left alone."""
    while not stop.wait(BEAT):
        for directory in directories:
            with suppress(OSError):  # one that is missed, as on a disk that stalls, is made up for by the next
                if holder(directory) is None:
                    os.utime(directory / NAME)
