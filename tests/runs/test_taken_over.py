"""A process that stood still while another host took its run over writes nothing more of it."""

import errno
import fcntl
import json
import os
import shutil
import time
from pathlib import Path

import pytest
from interrupting import SHORT_BLOCKS, InterruptingProgress
from test_full_disks_and_signals import SMALL

from clrun.runs import train
from clrun.system import locks
from clrun.system.errors import RunsFailed
from clrun.system.locks import LockLost


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def put_to_sleep(directory: Path) -> None:
    """Make the lock of this process that of one on another host, without a heartbeat for two minutes."""
    path = directory / locks.NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | {"host": "sleeper"}))
    then = time.time() - 2 * locks.STALE_SECONDS
    os.utime(path, (then, then))


class Sleeper(InterruptingProgress):
    """A progress whose report number `reports` sleeps, while `elsewhere` happens to some runs."""

    def __init__(self, reports: int, directories: list[Path], elsewhere) -> None:
        super().__init__(reports)
        self.directories, self.elsewhere = directories, elsewhere

    def report(self, *_: object, **__: object) -> None:
        self.reports -= 1
        if self.reports == 0:
            for directory in self.directories:
                put_to_sleep(directory)
            self.elsewhere()

    advance = begin_task = end_task = report


@pytest.mark.parametrize("reports", [1, 3, 5, 8, 10])
@pytest.mark.parametrize("plots", ["false", "true"])
def test_the_tables_of_a_finished_run_stay(prepared_of, capsys, reports, plots):
    prepared = prepared_of(*SMALL, f"plots={plots}")
    after = {}

    def elsewhere() -> None:
        assert train.train_run(prepared, quiet=True, trainer=SHORT_BLOCKS) == "done"
        after.update(contents(prepared.directory))

    sleeper = Sleeper(reports, [prepared.directory], elsewhere)
    assert train.train_runs([prepared], progress=sleeper, trainer=SHORT_BLOCKS) == ["taken over"]
    assert after and contents(prepared.directory) == after
    assert capsys.readouterr().err.count("took the run over") == 1


def test_a_run_that_is_still_trained_elsewhere_is_left_to_it(prepared_of, capsys):
    prepared, after = prepared_of(*SMALL), {}

    def elsewhere() -> None:
        path = prepared.directory / locks.NAME
        path.write_text(json.dumps(json.loads(path.read_text()) | {"host": "elsewhere", "pid": 7, "token": "another"}))
        after.update(contents(prepared.directory))

    sleeper = Sleeper(3, [prepared.directory], elsewhere)
    assert train.train_runs([prepared], progress=sleeper, trainer=SHORT_BLOCKS) == ["taken over"]
    assert contents(prepared.directory) == after  # the lock of the other one, too
    assert "process 7 on elsewhere took the run over" in capsys.readouterr().err


@pytest.mark.parametrize("end", [KeyboardInterrupt, ZeroDivisionError])
def test_it_saves_no_checkpoint_and_no_reason_either(prepared_of, end):
    prepared, after = prepared_of(*SMALL), {}

    def elsewhere() -> None:
        train.train_run(prepared, quiet=True, trainer=SHORT_BLOCKS)
        after.update(contents(prepared.directory))
        raise end

    with pytest.raises(end):
        train.train_runs([prepared], progress=Sleeper(5, [prepared.directory], elsewhere), trainer=SHORT_BLOCKS)
    assert contents(prepared.directory) == after


@pytest.mark.parametrize("reports", [3, 8, 10])
def test_the_others_of_its_stack_go_on(prepared_of, reports):
    alone = {}
    for seed in range(3):
        prepared = prepared_of(*SMALL, f"seed={seed}")
        train.train_run(prepared, quiet=True, trainer=SHORT_BLOCKS)
        alone[seed] = (prepared.directory / "accuracy_matrix.csv").read_bytes()
        for path in prepared.directory.iterdir():
            path.unlink()
    stack, after = [prepared_of(*SMALL, f"seed={seed}") for seed in range(3)], {}

    def elsewhere() -> None:
        train.train_run(stack[1], quiet=True, trainer=SHORT_BLOCKS)
        after.update(contents(stack[1].directory))

    sleeper = Sleeper(reports, [stack[1].directory], elsewhere)
    assert train.train_runs(stack, progress=sleeper, trainer=SHORT_BLOCKS) == ["done", "taken over", "done"]
    assert contents(stack[1].directory) == after
    assert [(run.directory / "accuracy_matrix.csv").read_bytes() for run in stack] == [alone[seed] for seed in range(3)]
    assert not [path for run in stack for path in run.directory.glob("lock.json")]


def taken(stack, progress):
    (stack[0].directory / "config.yaml").write_text("of the other process")
    raise LockLost(stack[0].directory, None)


def test_the_command_ends_with_a_sentence(prepared_of):
    prepared = prepared_of(*SMALL)
    with pytest.raises(RunsFailed, match="took it over has not finished it yet"):
        train.train_run(prepared, quiet=True, trainer=taken)


def test_a_run_whose_folder_is_removed_while_it_is_trained(prepared_of, capsys):
    prepared = prepared_of(*SMALL)
    sleeper = Sleeper(5, [], lambda: shutil.rmtree(prepared.directory))
    with pytest.raises(RunsFailed, match="it was removed while it was trained; the same command trains it anew"):
        train.train_run(prepared, quiet=True, trainer=lambda stack, progress: SHORT_BLOCKS(stack, sleeper))
    said = capsys.readouterr().err
    assert "its folder was removed meanwhile" in said and "took the run over" not in said
    assert not prepared.directory.exists()


def test_a_run_that_another_process_trains_again_too(prepared_of):
    """With rerun=true, the summary.csv that is there is of an earlier training."""
    train.train_run(prepared_of(*SMALL), quiet=True)
    prepared = prepared_of(*SMALL, "rerun=true")
    with pytest.raises(RunsFailed, match="another process has taken it over; wait for that one"):
        train.train_run(prepared, quiet=True, trainer=taken)


def test_two_hosts_by_a_short_time(tmp_path):
    """A claim that is renewed is kept; one whose heartbeat is older than the time that is given is taken over."""
    folder = tmp_path / "runs" / "ewc" / "one"
    with locks.claimed([folder], heartbeat_seconds=60) as first:
        put_to_sleep(folder)
        with locks.claimed([folder], stale_seconds=3600) as second:
            assert list(second.others) == [folder]
        with locks.claimed([folder], stale_seconds=1) as second:
            with pytest.raises(LockLost), first.mine[folder].held():
                raise AssertionError("it is written")
            with second.mine[folder].held():
                pass
        with pytest.raises(LockLost, match="nothing more of it is written here"):
            first.mine[folder].check()
    assert not folder.exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES])
def test_a_disk_without_flock(prepared_of, monkeypatch, number):
    def refused(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    prepared = prepared_of(*SMALL, "seed=3")
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", refused)
        began = time.monotonic()
        assert train.train_run(prepared, quiet=True, trainer=SHORT_BLOCKS) == "done"
        assert time.monotonic() - began < 20  # not the time to wait for a gate that is held
    assert not list(prepared.directory.parent.glob(".lock*"))
    locks.has_flock.cache_clear()
