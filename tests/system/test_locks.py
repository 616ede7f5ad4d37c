"""Two processes, one run: a living owner keeps it, a dead one loses it, on this host and on others."""

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from interrupting import SHORT_BLOCKS, InterruptingProgress
from test_full_disks_and_signals import SMALL, files, tables, uninterrupted

from clrun.runs import train
from clrun.system import locks
from clrun.system.errors import UsageError


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "runs" / "ewc" / "one").mkdir(parents=True)
    return tmp_path / "runs" / "ewc" / "one"


def hold(directory: Path, age: float = 0.0, **changes) -> locks.Owner:
    """Somebody else's lock, `age` seconds after its last heartbeat."""
    owner = replace(locks.this_process(), **changes)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / locks.NAME).write_text(json.dumps(asdict(owner)))
    then = time.time() - age
    os.utime(directory / locks.NAME, (then, then))
    return owner


@pytest.fixture
def neighbour():
    """A living process."""
    process = subprocess.Popen(["sleep", "60"])
    yield process.pid
    process.kill()
    process.wait()


def test_a_living_process_keeps_its_lock_however_silent(folder, neighbour):
    owner = hold(folder, age=3600, pid=neighbour, started=locks.start_time(neighbour))
    assert locks.holder(folder) == owner
    with locks.claimed([folder]) as claim:
        assert claim.mine == {} and claim.others == {folder: owner}
    assert locks.holder(folder) == owner  # nor is it given back


def test_a_dead_process_loses_it(folder):
    process = subprocess.Popen(["true"])
    process.wait()
    hold(folder, pid=process.pid, started="1")
    with locks.claimed([folder]) as claim:
        assert list(claim.mine) == [folder]


def test_a_number_that_another_process_has_now_is_a_dead_process(folder, neighbour):
    hold(folder, pid=neighbour, started="1")
    assert locks.holder(folder) is None


@pytest.mark.parametrize("where", [{"host": "elsewhere"}, {"space": "another boot"}])
def test_on_another_host_the_heartbeat_decides(folder, where):
    owner = hold(folder, age=30, **where)
    assert locks.holder(folder) == owner
    hold(folder, age=90, **where)
    with locks.claimed([folder]) as claim:
        assert list(claim.mine) == [folder]


def test_a_run_of_a_host_that_died_is_continued_and_one_that_lives_is_left(prepared_of, capsys):
    """On a shared disk, where no process of the other host can be seen."""
    prepared = prepared_of(*SMALL)
    whole = uninterrupted(prepared)
    with pytest.raises(KeyboardInterrupt):
        train.train_runs([prepared], progress=InterruptingProgress(10), trainer=SHORT_BLOCKS)
    hold(prepared.directory, age=locks.STALE_SECONDS - 20, host="elsewhere", pid=1)
    with pytest.raises(UsageError, match="another process"):
        train.train_run(prepared, quiet=True)
    assert "process 1 on elsewhere is training it" in capsys.readouterr().err
    hold(prepared.directory, age=locks.STALE_SECONDS + 20, host="elsewhere", pid=1)
    assert train.train_run(prepared, quiet=True) == "done"
    assert "continues after task 1 " in capsys.readouterr().err
    assert tables(prepared.directory) == whole


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": "x"}', "null", '{"a": 1, "host": 2}'])
def test_a_lock_that_says_nothing_is_nobodys(folder, text):
    (folder / locks.NAME).write_text(text)
    assert locks.claim(folder, "token") is None


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="this system does not state what processes do")
def test_a_process_that_has_ended_and_was_not_asked_how_holds_nothing(folder):
    """Its number is taken until its parent asks, which the first process of some containers never does."""
    ended = subprocess.Popen(["sleep", "600"])
    hold(folder, pid=ended.pid, started=locks.start_time(ended.pid))
    assert locks.holder(folder).pid == ended.pid
    ended.kill()
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)  # waits, and does not ask
    assert locks.start_time(ended.pid) and locks.holder(folder) is None
    ended.wait()


def test_the_heartbeat_is_renewed(folder):
    with locks.claimed([folder], heartbeat_seconds=0.02):
        os.utime(folder / locks.NAME, (0, 0))
        deadline = time.monotonic() + 20
        while (folder / locks.NAME).stat().st_mtime == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_what_was_taken_over_meanwhile_is_not_given_back(folder, neighbour):
    with locks.claimed([folder]):
        owner = hold(folder, pid=neighbour, started=locks.start_time(neighbour))
    assert locks.holder(folder) == owner


def test_an_empty_folder_goes_with_its_lock(folder):
    with locks.claimed([folder]):
        pass
    assert not folder.exists()


def test_only_one_of_many_gets_it(folder):
    """Eight processes at once want the same three runs: each run has one owner."""
    names = [str(folder.parent / name) for name in "abc"]
    code = (
        "import sys, time; from pathlib import Path; from clrun.system import locks\n"
        "with locks.claimed([Path(name) for name in sys.argv[1:]]) as claim:\n"
        "    print(len(claim.mine), len(claim.others), flush=True); sys.stdin.read()"
    )
    line = [sys.executable, "-c", code, *names]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(line, **pipes) for _ in range(4)]
    said = [process.stdout.readline().split() for process in processes]
    for process in processes:
        process.communicate("")
    assert sum(int(mine) for mine, _ in said) == 3
    assert sum(int(others) for _, others in said) == 3 * 3


def test_a_run_that_another_process_trains_is_left_to_it(prepared_of, neighbour, capsys):
    prepared = prepared_of(*SMALL)
    hold(prepared.directory, pid=neighbour, started=locks.start_time(neighbour))
    with pytest.raises(UsageError, match="is being trained by another process"):
        train.train_run(prepared, quiet=True)
    assert f"process {neighbour} on {socket.gethostname()} is training it" in capsys.readouterr().err
    assert files(prepared.directory) == {locks.NAME}


def test_a_stack_goes_on_with_what_is_free(prepared_of, neighbour):
    stack = [prepared_of(*SMALL, f"seed={seed}") for seed in range(3)]
    hold(stack[1].directory, pid=neighbour, started=locks.start_time(neighbour))
    assert train.train_runs(stack, quiet=True) == ["done", "held", "done"]
    assert [one.finished for one in stack] == [True, False, True]


def test_a_crash_gives_the_lock_back(prepared_of):
    prepared = prepared_of(*SMALL)
    with pytest.raises(ZeroDivisionError):
        train.train_runs([prepared], quiet=True, trainer=lambda group, progress: 1 / 0)
    assert files(prepared.directory) == {"failed.txt"}


WHOLE = {"host": "another", "space": "s", "pid": 1, "started": "1"}


@pytest.mark.parametrize(
    "content",
    ["", "7", "[]", '["host"]', "null", '"host"', "{}", "\x00\x80", "[" * 100_000]
    + [json.dumps(WHOLE | changed) for changed in (
        {"pid": "1"}, {"pid": -1}, {"pid": 0}, {"pid": 10**30}, {"pid": True}, {"pid": 1.5}, {"pid": None},
        {"host": None}, {"space": 3}, {"started": []}, {"token": 5})]
    + [json.dumps({key: value for key, value in WHOLE.items() if key != gone}) for gone in WHOLE],
)  # fmt: skip
def test_a_lock_that_clrun_did_not_write_names_no_owner(tmp_path, content):
    """It is taken over, whatever it holds; a number of a process that is a text was a traceback."""
    directory = tmp_path / "run"
    directory.mkdir()
    (directory / locks.NAME).write_text(json.dumps(WHOLE))
    assert locks.read(directory)[0] == locks.Owner(**WHOLE)
    (directory / locks.NAME).write_bytes(content.encode("latin-1"))
    assert locks.read(directory) == (None, 0.0) and locks.holder(directory) is None
    with locks.claimed([directory]) as claim:
        assert list(claim.mine) == [directory]
    assert not directory.exists()
