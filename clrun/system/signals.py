"""What happens on SIGTERM, SIGHUP and Ctrl-C (SIGINT).

A signal ends a process by raising an exception: SystemExit for SIGTERM and SIGHUP (`graceful_termination`),
KeyboardInterrupt for Ctrl-C, as Python does. The exception leaves every `with` and `finally` block on its way, so that
checkpoints are written (clrun/runs/checkpointer.py, `Checkpointer.writing_on_interrupt`) and locks are removed
(clrun/system/locks.py).
"""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

Handler = Callable[[int, FrameType | None], object] | int | signal.Handlers | None  # as signal.signal() takes it


@contextmanager
def handled(handler: Handler, *numbers: signal.Signals) -> Iterator[None]:
    """Handle these signals by another handler while the block runs.

    A signal that is ignored (SIG_IGN) is also ignored by the processes that are started meanwhile.
    """
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


@contextmanager
def graceful_termination() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise SystemExit with the exit codes 143 and 129 while the block runs; a second signal is
    ignored.

    A cluster sends SIGTERM to every process of a job, and a process that has started workers sends it to them again:
    the second one must not interrupt the writing of checkpoints that the first one began. (A second Ctrl-C does.)
    SIGHUP stays ignored where it is, as under nohup.
    """
    numbers = [signal.SIGTERM, *([signal.SIGHUP] if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL else [])]
    before: dict[signal.Signals, Handler] = {}

    def terminate(number: int, _: FrameType | None) -> None:
        for other in numbers:
            signal.signal(other, signal.SIG_IGN)
        before.clear()  # they stay ignored: another signal would change the exit code of a process that is ending
        sys.exit(128 + number)

    for number in numbers:
        before[number] = signal.signal(number, terminate)
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


@contextmanager
def postponed() -> Iterator[None]:
    """Let SIGINT, SIGTERM and SIGHUP take effect when the block ends, which is to be short.

    Only the main thread may change how signals are handled; in another one, which no signal interrupts, nothing is
    changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if callable(signal.getsignal(n))]
    try:
        with handled(lambda number, _: received.append(number), *numbers):
            yield
    finally:
        for number in received:
            signal.raise_signal(number)
