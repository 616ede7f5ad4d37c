"""Signals that arrive where Python drops exceptions: in callbacks, in `__del__`, in generators that are cleaned up."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise

import pytest
from helpers import python_path

from clrun.sweep.cluster import JobEnding
from clrun.system import signals
from clrun.system.signals import ExitHandler, graceful_termination, handled, heard_in_callbacks

# Seconds in place of `signals.AGAIN`, for tests that need a moment in which no signal is sent, also on a busy machine.
AGAIN = 1.0

CODES = {signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGINT: 130}

# A command that does something with the signal `number`, and then what would be its work.
COMMAND = """
import ctypes, gc, os, signal, sys, time, weakref
from clrun.commands.console import end_with

number = int(sys.argv[1])
if number == signal.SIGHUP:
    signal.signal(number, signal.SIG_DFL)  # it stays ignored in children of a process that ignores it

class Thing:
    pass

def send(*_):
    os.kill(os.getpid(), number)
    time.sleep(1)  # the signal arrives here at the latest

def action(_):
{body}

end_with(action)
"""

PLACES = {
    "weak reference": "thing = Thing(); reference = weakref.ref(thing, send); del thing",
    "finalizer": "thing = Thing(); weakref.finalize(thing, send); del thing",
    "__del__": "Thing.__del__ = send; Thing()",
    "generator": """
def numbers():
    try:
        yield 1
    finally:
        send()
next(numbers())
""",
    "closed from __del__": """
def numbers():
    try:
        yield 1
    finally:
        send()
class Reader:
    def __init__(self):
        self.rows = numbers()
        next(self.rows)
    def __del__(self):
        self.rows.close()
Reader()
""",
    "garbage collector": "gc.callbacks.append(send); gc.collect(); gc.callbacks.clear()",
    "function of C": "ctypes.CFUNCTYPE(None)(send)()",
}


def outcome_slowly(body: str) -> subprocess.CompletedProcess[str]:
    """As `outcome`, with a signal that is sent again after AGAIN seconds."""
    return outcome(f"import clrun.system.signals\nclrun.system.signals.AGAIN = {AGAIN}\n{body.strip()}")


def outcome(body: str, number: int = signal.SIGTERM) -> subprocess.CompletedProcess[str]:
    """Run the command with this body of its action."""
    text = COMMAND.format(body="".join(f"    {line}\n" for line in body.strip().splitlines()))
    line = [sys.executable, "-c", text, str(int(number))]
    environment = os.environ | {"PYTHONPATH": python_path()}
    return subprocess.run(line, capture_output=True, text=True, timeout=60, env=environment, check=False)


@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
@pytest.mark.parametrize("place", PLACES)
def test_a_signal_in_a_callback_is_not_lost(place, number):
    done = outcome(PLACES[place] + "\ntime.sleep(30)\nprint('went on')", number)
    assert done.returncode == CODES[number] and done.stdout == ""
    assert re.fullmatch(r"clrun: (terminated|interrupted); the same command again continues\.\n", done.stderr)


@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
def test_a_signal_that_still_waits_at_the_end_takes_effect_there(number):
    done = outcome(PLACES["__del__"] + "\nprint('done')", number)
    assert done.returncode == CODES[number] and done.stdout == "done\n"
    assert re.fullmatch(r"clrun: (terminated|interrupted); the same command again continues\.\n", done.stderr)


def test_a_signal_that_is_dropped_again_is_sent_again():
    """One timer at a time: not more often than every `AGAIN` seconds."""
    body = """
def lose(_):
    try:
        time.sleep(30)
    finally:
        print(time.monotonic(), flush=True)
Thing.__del__ = send
Thing()
Thing.__del__ = lose
for _ in range(4):
    Thing()
time.sleep(30)
"""
    done = outcome_slowly(body)
    times = [float(line) for line in done.stdout.split()]
    assert done.returncode == 143 and len(times) == 4
    assert all(later - earlier > 0.9 * AGAIN for earlier, later in pairwise(times))
    assert done.stderr == "clrun: terminated; the same command again continues.\n"


def test_a_second_sigterm_while_the_first_one_waits_is_ignored():
    """A cluster sends it to a worker, and so does the sweep."""
    body = """
def twice(_):
    try:
        send()
    finally:
        send()
Thing.__del__ = twice
Thing()
os.kill(os.getpid(), number)
try:
    time.sleep(30)
finally:
    os.kill(os.getpid(), number)
    time.sleep(0.5)
    print("saved")
"""
    done = outcome_slowly(body)
    assert (done.returncode, done.stdout) == (143, "saved\n")
    assert done.stderr == "clrun: terminated; the same command again continues.\n"


@pytest.mark.parametrize("error", ["ValueError('other')", "SystemExit(3)"])
def test_another_exception_in_a_callback_is_printed(error):
    done = outcome(f"def fail(_):\n    raise {error}\nThing.__del__ = fail\nThing()\ntime.sleep({3 * AGAIN})")
    assert done.returncode == 0
    assert "Exception ignored" in done.stderr and error.split("(")[0] in done.stderr


@pytest.fixture
def dropped(monkeypatch) -> Iterator[list[BaseException | None]]:
    """The exceptions that reach the hook of this process."""
    errors: list[BaseException | None] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: errors.append(unraisable.exc_value))
    yield errors


class Sending:
    """An object that sends a signal when it is deleted."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.kill(os.getpid(), self.number)


def test_the_hook_that_was_there_is_put_back(dropped):
    before = sys.unraisablehook
    with graceful_termination():
        assert sys.unraisablehook != before
    assert sys.unraisablehook == before
    with pytest.raises(ZeroDivisionError), graceful_termination():
        raise ZeroDivisionError
    assert sys.unraisablehook == before and not dropped


def test_a_job_hears_a_signal_in_a_callback(dropped):
    handler = ExitHandler(JobEnding)
    with pytest.raises(JobEnding), handled(handler, signal.SIGUSR2), heard_in_callbacks(handler):
        Sending(signal.SIGUSR2)
        assert handler.received == [signal.SIGUSR2]
        signal.sigtimedwait([], 30)
    assert not dropped and handler.received == [signal.SIGUSR2] * 2


def test_a_signal_is_not_sent_while_the_hook_runs(dropped, monkeypatch):
    """As where the process stands still there: the exception would be dropped once more, and no other follows it."""
    start = signals.ResendingHook.send_later

    def start_and_stand_still(self, number):
        start(self, number)
        if threading.current_thread() is threading.main_thread():
            time.sleep(5 * signals.AGAIN)

    monkeypatch.setattr(signals.ResendingHook, "send_later", start_and_stand_still)
    handler = ExitHandler(JobEnding)
    with pytest.raises(JobEnding), handled(handler, signal.SIGUSR2), heard_in_callbacks(handler):
        Sending(signal.SIGUSR2)
        signal.sigtimedwait([], 30)
    assert not dropped and handler.received == [signal.SIGUSR2] * 2


def test_nothing_is_sent_after_an_error(dropped, monkeypatch):
    """The process ends by the error."""
    monkeypatch.setattr(signals, "AGAIN", AGAIN)
    handler = ExitHandler(JobEnding)
    with handled(handler, signal.SIGUSR2):
        with pytest.raises(ZeroDivisionError), heard_in_callbacks(handler):
            Sending(signal.SIGUSR2)
            raise ZeroDivisionError
        assert not signal.sigtimedwait([], 3 * AGAIN)
    assert not dropped and handler.received == [signal.SIGUSR2]
