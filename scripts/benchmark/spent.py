"""Run a command, and write what it took into a file: wall time, seconds of the CPU, and peak memory, as JSON.

    python scripts/benchmark/spent.py FILE COMMAND ...

It is a small process of its own for two reasons. Linux counts the memory of the process that started a command to that
command's peak, and the caller may have PyTorch in memory. And the workers of a sweep belong to a server of processes,
which the command leaves behind: on Linux, what is left behind becomes a child of this process, which waits for it, so
that its seconds count. The exit code is that of the command.
"""

import ctypes
import json
import os
import resource
import subprocess
import sys
import time

PR_SET_CHILD_SUBREAPER = 36  # of prctl(2): the processes that a child leaves behind become children of this one


def main() -> int:
    """Return the exit code of the command."""
    target, *command = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    began = time.perf_counter()
    code = subprocess.run(command).returncode
    wall = time.perf_counter() - began
    wait_for_all()
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    unit = 1024 if sys.platform == "linux" else 1  # bytes of ru_maxrss
    told = {"wall": wall, "cpu": spent.ru_utime + spent.ru_stime, "memory": spent.ru_maxrss * unit / 1e6}
    with open(target, "w") as file:
        json.dump(told, file)
    return code


def wait_for_all() -> None:
    """Wait until no child is left."""
    while True:
        try:
            os.wait()
        except ChildProcessError:
            return


if __name__ == "__main__":
    sys.exit(main())
