"""How a process is told to end: by a signal that unwinds it once, so that what it has is saved and nothing is left."""

import atexit
import gc
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def handled(handler: Any, *numbers: signal.Signals) -> Iterator[None]:
    """Another handler for these signals. What is ignored is so by processes that are started meanwhile, too."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def graceful_termination() -> Iterator[None]:
    """SIGTERM and SIGHUP unwind like Ctrl-C does, and exit with 143 and 129; a second one is ignored.

    A cluster sends SIGTERM to every process of a job, and who started a worker sends it another: the second must not
    break off the saving that the first began. (A second Ctrl-C does.) SIGHUP stays ignored where it is, as under nohup.
    """
    numbers = [signal.SIGTERM, *([signal.SIGHUP] if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL else [])]
    before: dict[signal.Signals, Any] = {}

    def end(number: int, _: object) -> None:
        for other in numbers:
            signal.signal(other, signal.SIG_IGN)
        before.clear()  # it stays so: another signal would otherwise change the code of a process that is ending
        sys.exit(128 + number)

    for number in numbers:
        before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


OBJECTS = 100_000  # between two searches


def relax_gc() -> None:
    """From here on, and not on the way out."""
    gc.set_threshold(OBJECTS)
    atexit.register(gc.freeze)
