"""What happens on SIGTERM, SIGHUP and Ctrl-C (SIGINT).

A signal ends a process by raising an exception: SystemExit for SIGTERM and SIGHUP (`graceful_termination`),
KeyboardInterrupt for Ctrl-C, as Python does. The exception leaves every `with` and `finally` block on its way, so that
checkpoints are written (clrun/runs/checkpointer.py, `Checkpointer.writing_on_interrupt`) and locks are removed
(clrun/system/locks.py).

Where nothing could catch an exception, as in a `__del__`, Python prints it and goes on. Such a signal is sent again
(`heard_in_callbacks`).
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

AGAIN = 0.1  # seconds after which a signal is sent again whose exception Python has dropped

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


class Termination(SystemExit):
    """The exit of a process that was sent SIGTERM or SIGHUP."""


@dataclass
class ExitHandler:
    """A handler of signals that are to end this process: the first one raises an exit, whose code is 128 + its number,
    and those that arrive while checkpoints are written are only recorded."""

    kind: type[SystemExit]  # a class that nothing else raises
    received: list[int] = field(default_factory=list)
    raised_for: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)
        if self.raised_for is None:
            self.raised_for = number
            raise self.kind(128 + number)


@contextmanager
def graceful_termination() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise SystemExit with the exit codes 143 and 129 while the block runs; a second signal is
    ignored.

    A cluster sends SIGTERM to every process of a job, and a process that has started workers sends it to them again:
    the second one must not interrupt the writing of checkpoints that the first one began. (A second Ctrl-C does.)
    SIGHUP stays ignored where it is, as under nohup.
    """
    numbers = [signal.SIGTERM, *([signal.SIGHUP] if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL else [])]
    handler = ExitHandler(Termination)
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        with heard_in_callbacks(handler):
            yield
    finally:
        for number, previous in before.items():  # ignored: another signal would change the exit code of what is ending
            signal.signal(number, previous if handler.raised_for is None else signal.SIG_IGN)


@dataclass
class ResendingHook:
    """A `sys.unraisablehook` that sends a signal again whose exception Python drops, and leaves every other exception
    to the hook before it."""

    handler: ExitHandler
    previous: Callable[["sys.UnraisableHookArgs"], object]
    due: set[int] = field(default_factory=set)  # signals that wait for their timer
    timers: dict[int, threading.Timer] = field(default_factory=dict)
    running: bool = False  # whether Python has called this hook, and it has not returned

    def __call__(self, unraisable: "sys.UnraisableHookArgs") -> None:
        self.running = True
        try:
            number = self.number_of(unraisable.exc_value)
            if number is None:
                self.previous(unraisable)
            elif number not in self.due:
                self.due.add(number)
                self.send_later(number)
        finally:
            self.running = False

    def send_later(self, number: int) -> None:
        """Start the timer that sends a signal again."""
        timer = threading.Timer(AGAIN, self.send, (number,))
        timer.daemon = True
        timer.start()
        self.timers[number] = timer

    def number_of(self, error: BaseException | None) -> int | None:
        """Return the signal whose handler has raised this exception; None for any other exception."""
        if isinstance(error, KeyboardInterrupt):
            return signal.SIGINT
        return self.handler.raised_for if isinstance(error, self.handler.kind) else None

    def send(self, number: int) -> None:
        """Send a signal to this process, whose handler raises its exception again. Wait once more while the main thread
        stands still within this hook, where Python would drop the exception for good."""
        if self.running:
            self.send_later(number)
            return
        self.due.discard(number)
        if self.handler.raised_for == number:  # until now, so that a second signal was ignored while this one waited
            self.handler.raised_for = None
        os.kill(os.getpid(), number)

    def cancel(self) -> None:
        """Wait for no timer any more."""
        for number in list(self.timers):
            while (timer := self.timers[number]).is_alive():  # one that was just due may have started another
                timer.cancel()
                timer.join()


@contextmanager
def heard_in_callbacks(handler: ExitHandler) -> Iterator[None]:
    """Send a signal again, a moment later, if it arrives where Python drops the exception of this handler, or that of
    Ctrl-C, while the block runs.

    Python does so in callbacks of weak references and of the garbage collector, in `__del__`, and in generators that
    are cleaned up; it prints "Exception ignored in ..." and goes on as if no signal had come. A signal that still waits
    when the block ends without an exception takes effect then.
    """
    hook = ResendingHook(handler, sys.unraisablehook)
    sys.unraisablehook = hook
    try:
        yield
        hook.cancel()
        for number in sorted(hook.due):
            hook.send(number)
    finally:
        hook.cancel()
        sys.unraisablehook = hook.previous


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
