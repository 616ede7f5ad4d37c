"""How a process is told to end: by a signal that unwinds it once, so that what it has is saved and nothing is left."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM and SIGHUP unwind like Ctrl-C does, and exit with 143 and 129; a second one is ignored.

    A cluster sends SIGTERM to every process of a job, and who started a worker sends it another: the second must not
    break off the saving that the first began. (A second Ctrl-C does.) SIGHUP stays ignored where it is, as under nohup.
    """
    numbers = [signal.SIGTERM, *([signal.SIGHUP] if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL else [])]

    def end(number: int, _: object) -> None:
        for other in numbers:
            signal.signal(other, signal.SIG_IGN)
        sys.exit(128 + number)

    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
