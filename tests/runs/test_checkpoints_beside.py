"""On a GPU a thread writes checkpoints while training goes on; the files are those that training itself would write."""

import shutil
import signal
import threading
import weakref
from concurrent.futures import wait
from dataclasses import replace

import pytest
import torch
from interrupting import SHORT_BLOCKS, InterruptingProgress, Killed
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map

from clrun.runs import checkpoint, checkpointer, train
from clrun.runs.build import build
from clrun.runs.checkpointer import Checkpointer
from clrun.runs.recording import new_outcome
from clrun.system.locks import LockLost

SMALL = ("strategy=ewc", "model.widths=[12,8]", "device=cpu", "iterations=20", "plots=false")


class Disk:
    """Takes the place of the disk: it notes what is written and by which thread, once `ready` is set."""

    def __init__(self):
        self.ready, self.written, self.troubles = threading.Event(), [], {}

    def write(self, directory, run, content, guard):
        by_thread = threading.current_thread() is not threading.main_thread()
        assert self.ready.wait(60) if by_thread else True
        trouble = self.troubles.get((run, content.position.stage))
        if trouble is not None:
            raise trouble
        self.written.append((run, content.position.stage, by_thread))


@pytest.fixture
def disk(monkeypatch) -> Disk:
    """A disk, and a clock that stands still, so that a checkpoint is due after each task."""
    there = Disk()
    monkeypatch.setattr(checkpoint, "write", there.write)
    monkeypatch.setattr(checkpointer, "monotonic", lambda: 0.0)
    return there


@pytest.fixture
def kept(prepared_of, request):
    """A function of a number of runs that returns their checkpointer, their state, and what it reports."""

    def begin(runs: int = 1):
        prepared = [prepared_of(*SMALL, f"seed={seed}") for seed in range(runs)]
        stack = build(prepared)
        outcomes = [new_outcome(each, stack) for each in prepared]
        said: list[str] = []
        made = Checkpointer(stack, outcomes, 0, said.append, dict, beside=True)
        request.addfinalizer(made.thread.shutdown)
        current = stack.initialize()
        made.start(current, 0, None)
        return made, current, said

    return begin


def test_a_thread_writes_one_point_at_a_time_and_the_last_one_waits(kept, disk):
    made, current, _ = kept()
    (run,) = (outcome.run for outcome in made.outcomes)
    made.end_task(current, 1)
    made.end_task(current, 2)  # the first is still being written
    assert disk.written == [] and made.is_writing() and made.latest.position.stage == 2
    disk.ready.set()
    made.pending[1].result()
    assert not made.is_writing() and made.written.stage == 1
    disk.ready.clear()
    made.end_task(current, 3)
    threading.Timer(0.2, disk.ready.set).start()
    made.end_task(current, 5)
    assert disk.written == [(run, 1, True), (run, 3, True), (run, 5, False)]
    assert made.latest.position == made.written and not made.is_writing()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interruption_waits_for_the_thread_and_writes_the_latest_point(kept, disk, error):
    made, current, said = kept()
    with pytest.raises(error), made.writing_on_interrupt():
        made.end_task(current, 1)
        made.end_task(current, 2)
        disk.ready.set()
        raise error
    assert [(stage, by_thread) for _, stage, by_thread in disk.written] == [(1, True), (2, False)]
    assert said == ["saved after task 2 (0 steps so far); the same command continues from there."]


def test_an_interruption_writes_no_point_twice(kept, disk):
    made, current, said = kept()
    with pytest.raises(SystemExit), made.writing_on_interrupt():
        made.end_task(current, 1)
        disk.ready.set()
        raise SystemExit
    assert [(stage, by_thread) for _, stage, by_thread in disk.written] == [(1, True)]
    assert said == ["saved after task 1 (0 steps so far); the same command continues from there."]


def test_an_interruption_of_the_waiting_writes_the_latest_point_last(kept, disk, monkeypatch):
    """The last point waits for an older one when the signal arrives. If the older one ended after it, a resumed run
    would go on from there."""
    made, current, _ = kept()
    made.end_task(current, 1)
    waits = []

    def interrupted_at_first(writing):
        waits.append(len(disk.written))
        if len(waits) == 1:
            signal.raise_signal(signal.SIGINT)
        disk.ready.set()
        wait(writing)

    monkeypatch.setattr(checkpointer, "wait", interrupted_at_first)
    with pytest.raises(KeyboardInterrupt), made.writing_on_interrupt():
        made.end_task(current, 5)
    assert waits == [0, 0]
    assert [(stage, by_thread) for _, stage, by_thread in disk.written] == [(1, True), (5, False)]


def test_a_signal_while_the_thread_is_given_a_point_loses_no_thread(kept, disk, monkeypatch):
    made, current, _ = kept()
    submit = made.thread.submit

    def interrupted(*arguments):
        writing = submit(*arguments)
        signal.raise_signal(signal.SIGINT)
        return writing

    monkeypatch.setattr(made.thread, "submit", interrupted)
    disk.ready.set()
    with pytest.raises(KeyboardInterrupt), made.writing_on_interrupt():
        made.end_task(current, 1)
    assert [(stage, by_thread) for _, stage, by_thread in disk.written] == [(1, True)]


def test_a_full_disk_is_reported_where_the_run_crashes_meanwhile(kept, disk):
    made, current, said = kept()
    disk.troubles[made.outcomes[0].run, 1] = OSError(28, "No space left on device")
    with pytest.raises(RuntimeError, match="crash"), made.writing_on_interrupt():
        made.end_task(current, 1)
        disk.ready.set()
        raise RuntimeError("crash")
    assert len(said) == 1 and "No space left on device" in said[0]


def test_no_point_but_the_latest_stays_on_the_card(kept, disk):
    """Neither while it is written, from a copy on the host, nor after that."""
    made, current, _ = kept()
    made.end_task(current, 1)
    first = weakref.ref(made.latest)
    made.end_task(current, 2)
    assert made.is_writing() and first() is None
    disk.ready.set()
    made.settle()
    made.end_task(current, 3)
    made.settle()
    third = weakref.ref(made.latest)
    made.latest = made.after_tasks(current, 4)
    assert made.written.stage == 3 and third() is None


def test_an_interruption_writes_the_others_where_a_run_was_taken_over(kept, disk):
    """Before and after: the thread finds it out, and the latest point of the other run is written."""
    made, current, _ = kept(2)
    first, second = (outcome.run for outcome in made.outcomes)
    for stage in (1, 2):
        disk.troubles[first, stage] = LockLost(made.outcomes[0].directory, None)
    with pytest.raises(SystemExit), made.writing_on_interrupt():
        made.end_task(current, 1)
        made.end_task(current, 2)
        disk.ready.set()
        raise SystemExit
    assert disk.written == [(second, 1, True), (second, 2, False)]


@pytest.mark.parametrize("error", [None, RuntimeError])
def test_in_the_end_nothing_is_being_written(kept, disk, error):
    """A crash writes no other point."""
    made, current, _ = kept()
    try:
        with made.writing_on_interrupt():
            made.end_task(current, 1)
            disk.ready.set()
            if error is not None:
                raise error
    except RuntimeError:
        assert error is RuntimeError
    assert [(stage, by_thread) for _, stage, by_thread in disk.written] == [(1, True)]
    with pytest.raises(RuntimeError, match="after shutdown"):
        made.thread.submit(print)


def test_a_run_that_is_taken_over_is_noticed_and_the_others_are_written(kept, disk):
    made, current, _ = kept(2)
    first, second = (outcome.run for outcome in made.outcomes)
    disk.troubles[first, 1] = LockLost(made.outcomes[0].directory, None)
    disk.ready.set()
    made.end_task(current, 1)
    made.pending[1].result()
    with pytest.raises(LockLost):
        made.end_task(current, 2)
    assert disk.written == [(second, 1, True)]


def test_a_full_disk_is_reported_and_training_goes_on(kept, disk):
    made, current, said = kept()
    started_at = made.written
    disk.troubles[made.outcomes[0].run, 1] = OSError(28, "No space left on device")
    disk.ready.set()
    made.end_task(current, 1)
    made.pending[1].result()
    assert not made.is_writing() and made.written == started_at
    assert len(said) == 1 and "No space left on device" in said[0]
    made.end_task(current, 2)
    made.settle()
    assert [stage for _, stage, _ in disk.written] == [2] and len(said) == 1


def test_the_thread_is_given_copies_on_the_host(kept, disk, monkeypatch):
    made, current, _ = kept(2)
    given = []
    monkeypatch.setattr(made.thread, "submit", lambda _, point, costs: given.append(point))
    with FakeTensorMode() as mode:
        on_card = tree_map(lambda v: mode.from_tensor(v).to("cuda"), current)
        made.write_beside(replace(made.after_tasks(current, 1), current=on_card))
    (point,) = given
    made.pending = None
    devices = {v.device.type for v in tree_leaves(on_card) if isinstance(v, torch.Tensor)}
    assert devices == {"cuda"}
    assert {v.device.type for v in tree_leaves(point.current) if isinstance(v, torch.Tensor)} == {"cpu"}


@pytest.mark.parametrize("lives", [1, 5, 9])
def test_killed_and_resumed_is_not_killed(prepared_of, monkeypatch, lives):
    """Two runs as a stack, whose checkpoints a thread has written, within tasks, too."""
    monkeypatch.setattr(train, "Checkpointer", lambda *arguments: Checkpointer(*arguments[:5], True))
    typed = (*SMALL, "tasks=2", "checkpoint_every=0.001", "stack=2")
    runs = [prepared_of(*typed, f"seed={seed}") for seed in range(2)]
    train.train_runs(runs, quiet=True, trainer=SHORT_BLOCKS)
    whole = [(run.directory / "accuracy_matrix.csv").read_bytes() for run in runs]
    for run in runs:
        shutil.rmtree(run.directory)
    with pytest.raises(Killed):
        train.train_runs(runs, progress=InterruptingProgress(lives, Killed), trainer=SHORT_BLOCKS)
    assert all((run.directory / checkpoint.NAME).is_file() for run in runs) or lives == 1
    train.train_runs(runs, quiet=True, trainer=SHORT_BLOCKS)
    assert [(run.directory / "accuracy_matrix.csv").read_bytes() for run in runs] == whole
