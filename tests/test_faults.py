"""What goes wrong around a run: full disks, signals, other processes. One paragraph, nothing half-written."""

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from clrun import checkpoint, cli, engine, lock, plots, results, run, terminal
from clrun.errors import RunsFailed, UsageError

SMALL = ("model.widths=[12,8]", "device=cpu", "iterations=20", "tasks=2")
TABLES = ("accuracy_matrix", "forgetting", "accuracy", "confusion", "health")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Short blocks, and no pictures."""
    monkeypatch.setattr(engine, "BLOCK", 7)
    monkeypatch.setattr(plots, "draw", lambda directory: None)


def tables(directory: Path) -> list[bytes]:
    return [(directory / f"{name}.csv").read_bytes() for name in TABLES]


def uninterrupted(prepared: run.Prepared) -> list[bytes]:
    run.train(prepared, quiet=True)
    whole = tables(prepared.directory)
    shutil.rmtree(prepared.directory)
    return whole


def files(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def one_paragraph(text: str) -> bool:
    return bool(text) and "\n" not in text and "Traceback" not in text


# ---------------------------------------------------------------- the disk


def failing(monkeypatch, number: int, refuse=lambda path: True) -> None:
    """Every write of a file that `refuse` names fails before its rename, as on a full disk: half of it is there."""
    replacing = results.os.replace

    def full(temporary, path):
        if refuse(Path(path)):
            raise OSError(number, os.strerror(number), str(path))
        replacing(temporary, path)

    monkeypatch.setattr(results.os, "replace", full)


@pytest.mark.parametrize("name", ["accuracy_matrix.csv", "health.csv", "config.yaml", "confusion.csv", "summary.csv"])
def test_a_full_disk_is_one_paragraph_and_nothing_half_written(prepared_of, monkeypatch, name):
    prepared = prepared_of(*SMALL)
    whole = uninterrupted(prepared)
    with monkeypatch.context() as patch:
        failing(patch, errno.ENOSPC, lambda path: path.name == name)
        with pytest.raises(RunsFailed, match="No space left on device") as caught:
            run.train(prepared, quiet=True)
    assert one_paragraph(str(caught.value)) and name in str(caught.value)
    assert not [path for path in prepared.directory.iterdir() if path.suffix == ".tmp" or path.name == "lock.json"]
    assert not prepared.finished
    assert "OSError" in (prepared.directory / "failed.txt").read_text()
    assert run.train(prepared, quiet=True) == "done"
    assert tables(prepared.directory) == whole
    assert "failed.txt" not in files(prepared.directory)


def test_halves_that_a_killed_process_left_go(prepared_of):
    prepared = prepared_of(*SMALL)
    prepared.directory.mkdir(parents=True)
    (prepared.directory / ".checkpoint.safetensors.0123456789ab.tmp").write_bytes(b"half")
    assert run.train(prepared, quiet=True) == "done"
    assert not [name for name in files(prepared.directory) if name.endswith(".tmp")]


def test_a_disk_on_which_not_even_the_reason_can_be_written(prepared_of, monkeypatch):
    prepared = prepared_of(*SMALL)
    failing(monkeypatch, errno.ENOSPC, lambda path: path.name != "lock.json")
    with pytest.raises(RunsFailed) as caught:
        run.train(prepared, quiet=True)
    assert "failed.txt could not be written" in "".join(caught.value.__cause__.__notes__)
    assert not prepared.directory.exists()  # it would be empty


def test_a_checkpoint_that_cannot_be_written_does_not_end_the_run(prepared_of, monkeypatch, capsys):
    prepared = prepared_of(*SMALL)
    whole = uninterrupted(prepared)
    failing(monkeypatch, errno.ENOSPC, lambda path: path.name == checkpoint.NAME)
    assert run.train(prepared, quiet=True) == "done"
    assert tables(prepared.directory) == whole
    assert capsys.readouterr().err.count("no checkpoint could be written") == 2


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_outputs_that_nobody_may_write_to(prepared_of, monkeypatch, number):
    prepared = prepared_of(*SMALL)
    failing(monkeypatch, number)
    with pytest.raises(UsageError, match="outputs=") as caught:
        run.train(prepared, quiet=True)
    assert one_paragraph(str(caught.value)) and os.strerror(number) in str(caught.value)
    assert not prepared.directory.exists()


@pytest.mark.parametrize("number, code", [(errno.ENOSPC, 1), (errno.EROFS, 2)])
def test_the_command_line_says_it_in_one_paragraph(tmp_path, monkeypatch, capfd, number, code):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["clrun", *SMALL])
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    failing(monkeypatch, number, lambda path: path.name != "lock.json")
    with pytest.raises(SystemExit) as caught:
        cli.cli()
    err = capfd.readouterr().err
    assert caught.value.code == code
    said = [line for line in err.splitlines() if os.strerror(number) in line]
    assert len(said) == 1 and "Traceback" not in err


def test_a_data_folder_that_vanishes(settings_of, tmp_path):
    (tmp_path / "gone").mkdir()
    settings = settings_of("dataset=mnist", f"data_dir={tmp_path / 'gone'}", f"outputs={tmp_path / 'out'}")
    (tmp_path / "gone").rmdir()
    with pytest.raises(UsageError, match="gone") as caught:
        run.prepare(settings)
    assert one_paragraph(str(caught.value)) and not (tmp_path / "out").exists()


# ---------------------------------------------------------------- signals


class Interrupting(terminal.Progress):
    """Ctrl-C after so many reports of progress."""

    def __init__(self, lives: int):
        super().__init__(terminal.make_console(quiet=True), 1)
        self.lives = lives

    def live(self, *_, **__) -> None:
        self.lives -= 1
        if self.lives == 0:
            raise KeyboardInterrupt

    advance = task = end_task = live


@pytest.mark.parametrize("lives", [4, 5, 10, 11])
def test_ctrl_c_saves_what_the_last_block_reached(prepared_of, capsys, lives):
    """Without checkpoint_every: what is saved is saved because of the signal."""
    prepared = prepared_of(*SMALL)
    whole = uninterrupted(prepared)
    with pytest.raises(KeyboardInterrupt):
        run.train_stack([prepared], progress=Interrupting(lives))
    place = run.reached(prepared)
    assert place.step > 0 and place.passes
    assert f"saved after {place}; the same command continues from there." in capsys.readouterr().err
    assert run.train(prepared, quiet=True) == "done"
    assert tables(prepared.directory) == whole


def test_ctrl_c_before_the_first_block_saves_nothing(prepared_of, capsys):
    prepared = prepared_of(*SMALL)
    with pytest.raises(KeyboardInterrupt):
        run.train_stack([prepared], progress=Interrupting(1))
    assert not (prepared.directory / checkpoint.NAME).exists()
    assert "saved" not in capsys.readouterr().err


def test_ctrl_c_while_it_saves_ends_at_once(prepared_of, monkeypatch):
    """The checkpoint before it stays, and no half of the new one."""
    prepared = prepared_of(*SMALL)
    write = checkpoint.write
    calls = []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            return write(*arguments)
        monkeypatch.setattr(results.os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        try:
            return write(*arguments)
        finally:
            monkeypatch.undo()

    monkeypatch.setattr(checkpoint, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.train_stack([prepared], progress=Interrupting(11))
    assert len(calls) == 2
    assert run.reached(prepared) == checkpoint.Place(1, (), 20)
    assert not [name for name in files(prepared.directory) if name.endswith(".tmp")]


def test_a_stack_is_saved_run_by_run(prepared_of):
    stack = [prepared_of(*SMALL, f"seed={seed}") for seed in range(3)]
    with pytest.raises(KeyboardInterrupt):
        run.train_stack(stack, progress=Interrupting(5))
    assert len({run.reached(one) for one in stack}) == 1
    assert run.reached(stack[0]).step > 0
    assert run.train_stack(stack, quiet=True) == ["done"] * 3


# ---------------------------------------------------------------- locks


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "runs" / "ewc" / "one").mkdir(parents=True)
    return tmp_path / "runs" / "ewc" / "one"


def hold(directory: Path, age: float = 0.0, **changes) -> lock.Owner:
    """Somebody else's lock, `age` seconds after its last heartbeat."""
    owner = replace(lock.myself(), **changes)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / lock.NAME).write_text(json.dumps(asdict(owner)))
    then = time.time() - age
    os.utime(directory / lock.NAME, (then, then))
    return owner


@pytest.fixture
def neighbour():
    """A living process."""
    process = subprocess.Popen(["sleep", "60"])
    yield process.pid
    process.kill()
    process.wait()


def test_a_living_process_keeps_its_lock_however_silent(folder, neighbour):
    owner = hold(folder, age=3600, pid=neighbour, started=lock.started(neighbour))
    assert lock.holder(folder) == owner
    with lock.claimed([folder]) as claim:
        assert claim.mine == [] and claim.others == {folder: owner}
    assert lock.holder(folder) == owner  # nor is it given back


def test_a_dead_process_loses_it(folder):
    process = subprocess.Popen(["true"])
    process.wait()
    hold(folder, pid=process.pid, started="1")
    with lock.claimed([folder]) as claim:
        assert claim.mine == [folder]


def test_a_number_that_another_process_has_now_is_a_dead_process(folder, neighbour):
    hold(folder, pid=neighbour, started="1")
    assert lock.holder(folder) is None


@pytest.mark.parametrize("where", [{"host": "elsewhere"}, {"space": "another boot"}])
def test_on_another_host_the_heartbeat_decides(folder, where):
    owner = hold(folder, age=30, **where)
    assert lock.holder(folder) == owner
    hold(folder, age=90, **where)
    with lock.claimed([folder]) as claim:
        assert claim.mine == [folder]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": "x"}', "null", '{"a": 1, "host": 2}'])
def test_a_lock_that_says_nothing_is_nobodys(folder, text):
    (folder / lock.NAME).write_text(text)
    assert lock.claim(folder) is None


def test_the_heart_beats(folder, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.02)
    with lock.claimed([folder]):
        os.utime(folder / lock.NAME, (0, 0))
        deadline = time.monotonic() + 20
        while (folder / lock.NAME).stat().st_mtime == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_what_was_taken_over_meanwhile_is_not_given_back(folder, neighbour):
    with lock.claimed([folder]):
        owner = hold(folder, pid=neighbour, started=lock.started(neighbour))
    assert lock.holder(folder) == owner


def test_an_empty_folder_goes_with_its_lock(folder):
    with lock.claimed([folder]):
        pass
    assert not folder.exists()


def test_only_one_of_many_gets_it(folder):
    """Eight processes at once want the same three runs: each run has one owner."""
    names = [str(folder.parent / name) for name in "abc"]
    code = (
        "import sys, time; from pathlib import Path; from clrun import lock\n"
        "with lock.claimed([Path(name) for name in sys.argv[1:]]) as claim:\n"
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
    hold(prepared.directory, pid=neighbour, started=lock.started(neighbour))
    with pytest.raises(UsageError, match="is being trained by another process"):
        run.train(prepared, quiet=True)
    assert f"process {neighbour} on {socket.gethostname()} is training it" in capsys.readouterr().err
    assert files(prepared.directory) == {lock.NAME}


def test_a_stack_goes_on_with_what_is_free(prepared_of, neighbour):
    stack = [prepared_of(*SMALL, f"seed={seed}") for seed in range(3)]
    hold(stack[1].directory, pid=neighbour, started=lock.started(neighbour))
    assert run.train_stack(stack, quiet=True) == ["done", "held", "done"]
    assert [one.finished for one in stack] == [True, False, True]


def test_a_crash_gives_the_lock_back(prepared_of, monkeypatch):
    prepared = prepared_of(*SMALL)
    monkeypatch.setattr(run, "build", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.train(prepared, quiet=True)
    assert files(prepared.directory) == {"failed.txt"}
