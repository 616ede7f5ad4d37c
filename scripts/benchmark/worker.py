"""One contender in a process of its own: a line of JSON in, a run, a line of JSON out. Standard library only, so that
it also runs in a peer's environment.

A process is kept for a whole workload, so imports and first calls are paid before the first round; every contender
trains a few steps on tiny data before anything is measured.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

Answer = dict[str, Any]  # "matrix" [T][T] accuracies, "phases" {name: [cpu s, wall s, count]}
MARK = "@bench "  # what is printed otherwise is the contender's own


class Clock:
    """CPU seconds of this process, wall seconds and a count for each phase."""

    def __init__(self, synchronize: Callable[[], None] = lambda: None):
        self.phases: dict[str, list[float]] = {}
        self.synchronize = synchronize

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.synchronize()
        cpu, wall = time.process_time(), time.perf_counter()
        try:
            yield
        finally:
            self.synchronize()
            spent = self.phases.setdefault(name, [0.0, 0.0, 0.0])
            spent[0] += time.process_time() - cpu
            spent[1] += time.perf_counter() - wall

    def count(self, name: str, n: float) -> None:
        """n more of what the phase's time is divided by: steps, samples."""
        self.phases.setdefault(name, [0.0, 0.0, 0.0])[2] += n

    def timed(self, name: str, f: Callable) -> Callable:
        """f, its time charged to a phase."""

        def inner(*args: Any, **keywords: Any) -> Any:
            with self.phase(name):
                return f(*args, **keywords)

        return inner


def serve(run: Callable[[Mapping[str, Any]], Answer]) -> None:
    """Answer until standard input ends."""
    for line in sys.stdin:
        answer = run(json.loads(line))
        print(f"{MARK}{json.dumps(answer)}", flush=True)


def one_thread() -> None:
    """Before torch or numpy is imported."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"
