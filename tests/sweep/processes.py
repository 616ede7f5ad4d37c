"""What tests of sweeps ask of processes and of the tables that they have written."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SHORT = ("iterations=4", "model.widths=[8]", "device=cpu")
NAMES = (
    "accuracy_matrix.csv", "forgetting.csv", "accuracy.csv", "confusion.csv", "confusion_over_tasks.csv", "health.csv",
)  # fmt: skip


def tables(outputs: str) -> dict[str, bytes]:
    """name of the run's directory / name of the table -> its bytes."""
    paths = [path for path in Path(outputs).glob("runs/*/*/*.csv") if path.name in NAMES]
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in paths}


def children(pid: int) -> list[int]:
    """Living processes that this one has started, and those that they have."""
    found = subprocess.run(["ps", "-o", "pid=,stat=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    own = [int(line.split()[0]) for line in found.stdout.splitlines() if not line.split()[1].startswith("Z")]
    return own + [other for one in own for other in children(one)]


def living(pids: list[int]) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=,stat=", *map(str, pids)], capture_output=True, text=True, check=False)
    return [int(line.split()[0]) for line in found.stdout.splitlines() if not line.split()[1].startswith("Z")]


@contextmanager
def ended(process: subprocess.Popen) -> Iterator[subprocess.Popen]:
    """A process that does not outlive its test, also where that fails."""
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def until(condition, seconds: float = 240.0) -> bool:
    """Whether the condition came true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True
