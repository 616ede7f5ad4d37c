"""What goes wrong around a run: full disks, signals, other processes. One paragraph, nothing half-written."""

import errno
import os
import resource
import shutil
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from interrupting import SHORT_BLOCKS, InterruptingProgress

from clrun.commands import run
from clrun.runs import checkpoint, prepare, train
from clrun.runs.prepared import Prepared
from clrun.strategies.ewc import EWC
from clrun.system.errors import RunsFailed, UsageError
from clrun.system.signals import graceful_termination

SMALL = ("model.widths=[12,8]", "device=cpu", "iterations=20", "tasks=2", "plots=false")
TABLES = ("accuracy_matrix", "forgetting", "accuracy", "confusion", "health")


def tables(directory: Path) -> list[bytes]:
    return [(directory / f"{name}.csv").read_bytes() for name in TABLES]


def uninterrupted(prepared: Prepared) -> list[bytes]:
    train.train_run(prepared, quiet=True, trainer=SHORT_BLOCKS)
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
    replacing = os.replace

    def full(temporary, path):
        if refuse(Path(path)):
            raise OSError(number, os.strerror(number), str(path))
        replacing(temporary, path)

    monkeypatch.setattr(os, "replace", full)


@pytest.mark.parametrize("name", ["accuracy_matrix.csv", "health.csv", "config.yaml", "confusion.csv", "summary.csv"])
def test_a_full_disk_is_one_paragraph_and_nothing_half_written(prepared_of, monkeypatch, name):
    prepared = prepared_of(*SMALL)
    whole = uninterrupted(prepared)
    with monkeypatch.context() as patch:
        failing(patch, errno.ENOSPC, lambda path: path.name == name)
        with pytest.raises(RunsFailed, match="No space left on device") as caught:
            train.train_run(prepared, quiet=True, trainer=SHORT_BLOCKS)
    assert one_paragraph(str(caught.value)) and name in str(caught.value)
    assert not [path for path in prepared.directory.iterdir() if path.suffix == ".tmp" or path.name == "lock.json"]
    assert not prepared.finished
    assert "OSError" in (prepared.directory / "failed.txt").read_text()
    assert train.train_run(prepared, quiet=True, trainer=SHORT_BLOCKS) == "done"
    assert tables(prepared.directory) == whole
    assert "failed.txt" not in files(prepared.directory)


@pytest.mark.parametrize("name", [".checkpoint.safetensors.0123456789ab.tmp", ".tmpH2vyE8"])
def test_halves_that_a_killed_process_left_go(prepared_of, name):
    prepared = prepared_of(*SMALL)
    prepared.directory.mkdir(parents=True)
    (prepared.directory / name).write_bytes(b"half")
    assert train.train_run(prepared, quiet=True, trainer=SHORT_BLOCKS) == "done"
    assert name not in files(prepared.directory)


def test_a_checkpoint_that_does_not_fit_on_the_disk(prepared_of, capsys):
    """The system itself refuses files as large as that."""
    prepared = prepared_of(*SMALL, "model.widths=[600]")
    whole = uninterrupted(prepared)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        assert train.train_run(prepared, quiet=True, trainer=SHORT_BLOCKS) == "done"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert tables(prepared.directory) == whole
    assert capsys.readouterr().err.count("no checkpoint could be written") == 2
    assert not [name for name in files(prepared.directory) if ".tmp" in name]


def test_a_checkpoint_is_for_all_to_read_as_other_files_are(prepared_of):
    prepared = prepared_of(*SMALL, "keep_checkpoint=true")
    train.train_run(prepared, quiet=True, trainer=SHORT_BLOCKS)
    modes = {path.name: path.stat().st_mode for path in prepared.directory.iterdir()}
    assert modes[checkpoint.NAME] == modes["config.yaml"]


def test_a_disk_on_which_not_even_the_reason_can_be_written(prepared_of, monkeypatch):
    prepared = prepared_of(*SMALL)
    failing(monkeypatch, errno.ENOSPC, lambda path: path.name != "lock.json")
    with pytest.raises(RunsFailed) as caught:
        train.train_run(prepared, quiet=True, trainer=SHORT_BLOCKS)
    assert "failed.txt could not be written" in "".join(caught.value.__cause__.__notes__)
    assert not prepared.directory.exists()  # it would be empty


def test_a_checkpoint_that_cannot_be_written_does_not_end_the_run(prepared_of, monkeypatch, capsys):
    prepared = prepared_of(*SMALL)
    whole = uninterrupted(prepared)
    failing(monkeypatch, errno.ENOSPC, lambda path: path.name == checkpoint.NAME)
    assert train.train_run(prepared, quiet=True, trainer=SHORT_BLOCKS) == "done"
    assert tables(prepared.directory) == whole
    assert capsys.readouterr().err.count("no checkpoint could be written") == 2


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_outputs_that_nobody_may_write_to(prepared_of, monkeypatch, number):
    prepared = prepared_of(*SMALL)
    failing(monkeypatch, number)
    with pytest.raises(UsageError, match="outputs=") as caught:
        train.train_run(prepared, quiet=True, trainer=SHORT_BLOCKS)
    assert one_paragraph(str(caught.value)) and os.strerror(number) in str(caught.value)
    assert not prepared.directory.exists()


@pytest.mark.parametrize("number, code", [(errno.ENOSPC, 1), (errno.EROFS, 2)])
def test_the_command_line_says_it_in_one_paragraph(tmp_path, monkeypatch, capfd, number, code):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["clrun", *SMALL])
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    failing(monkeypatch, number, lambda path: path.name != "lock.json")
    with pytest.raises(SystemExit) as caught:
        run.cli()
    err = capfd.readouterr().err
    assert caught.value.code == code
    said = [line for line in err.splitlines() if os.strerror(number) in line]
    assert len(said) == 1 and "Traceback" not in err


@pytest.mark.parametrize("typed", [(), ("-m", "seed=0,1", "workers=1")])
def test_results_that_cannot_be_collected_hide_no_result(tmp_path, monkeypatch, capfd, typed):
    """results.csv alone does not fit on the disk: the tables are shown, and it is said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["clrun", *SMALL, *typed])
    with monkeypatch.context() as patch:
        failing(patch, errno.ENOSPC, lambda path: path.name == "results.csv")
        with pytest.raises(SystemExit) as caught:
            run.cli()
    out, err = capfd.readouterr()
    assert caught.value.code == 1 and "Traceback" not in err
    assert "average accuracy" in out or "average_accuracy" in out
    assert one_paragraph(err.splitlines()[-1]) and "results.csv could not be written: No space left" in err
    with pytest.raises(SystemExit) as caught:
        run.cli()
    assert caught.value.code == 0 and Path("outputs/results.csv").is_file()


def test_what_a_killed_process_had_written_half_goes(prepared_of):
    prepared = prepared_of(*SMALL)
    prepared.directory.mkdir(parents=True)
    (prepared.directory / ".summary.csv.0123456789ab.tmp").write_text("run,gro")
    train.train_run(prepared, quiet=True, trainer=SHORT_BLOCKS)
    assert not [name for name in files(prepared.directory) if name.endswith(".tmp")]


def test_a_data_folder_that_vanishes(settings_of, tmp_path):
    (tmp_path / "gone").mkdir()
    settings = settings_of("dataset=mnist", f"data_dir={tmp_path / 'gone'}", f"outputs={tmp_path / 'out'}")
    (tmp_path / "gone").rmdir()
    with pytest.raises(UsageError, match="gone") as caught:
        prepare.prepare(settings)
    assert one_paragraph(str(caught.value)) and not (tmp_path / "out").exists()


# ---------------------------------------------------------------- signals


@pytest.mark.parametrize("reports", [4, 5, 10, 11])
def test_ctrl_c_saves_what_the_last_block_reached(prepared_of, capsys, reports):
    """Without checkpoint_every: what is saved is saved because of the signal."""
    prepared = prepared_of(*SMALL)
    whole = uninterrupted(prepared)
    with pytest.raises(KeyboardInterrupt):
        train.train_runs([prepared], progress=InterruptingProgress(reports), trainer=SHORT_BLOCKS)
    place = train.position_of(prepared)
    assert place.step > 0 and place.passes
    assert f"saved after {place}; the same command continues from there." in capsys.readouterr().err
    assert train.train_run(prepared, quiet=True, trainer=SHORT_BLOCKS) == "done"
    assert tables(prepared.directory) == whole


@dataclass(frozen=True)
class InterruptedAtOnce(EWC):
    """Ctrl-C while its state is made."""

    def init(self, theta):
        raise KeyboardInterrupt


def test_ctrl_c_before_anything_is_trained_is_no_crash(prepared_of, capsys):
    prepared = replace(prepared_of(*SMALL, "strategy=ewc"), strategy=InterruptedAtOnce)
    with pytest.raises(KeyboardInterrupt):
        train.train_runs([prepared], quiet=True, trainer=SHORT_BLOCKS)
    assert "saved" not in capsys.readouterr().err and not (prepared.directory / "failed.txt").exists()


@pytest.fixture
def signals():
    """Restored afterwards: a process that was told to end stays deaf to a second signal until it has ended."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_second_sigterm_is_ignored_and_a_second_ctrl_c_is_not(signals):
    saved = []
    with pytest.raises(SystemExit) as caught, graceful_termination():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except SystemExit:
            os.kill(os.getpid(), signal.SIGTERM)
            saved.append("all")
            raise
    assert caught.value.code == 143 and saved == ["all"]
    with pytest.raises(KeyboardInterrupt), graceful_termination():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except SystemExit:
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN


def test_what_ends_by_itself_leaves_the_signals_as_they_were():
    before = signal.getsignal(signal.SIGTERM)
    with graceful_termination():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_hangup_that_is_ignored_stays_so():
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with graceful_termination():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGHUP)  # would end this test
    finally:
        signal.signal(signal.SIGHUP, before)


def test_ctrl_c_before_the_first_block_saves_nothing(prepared_of, capsys):
    prepared = prepared_of(*SMALL)
    with pytest.raises(KeyboardInterrupt):
        train.train_runs([prepared], progress=InterruptingProgress(1), trainer=SHORT_BLOCKS)
    assert not (prepared.directory / checkpoint.NAME).exists()
    assert "saved" not in capsys.readouterr().err


def test_ctrl_c_while_it_saves_ends_at_once(prepared_of, monkeypatch):
    """The checkpoint before it stays, and no half of the new one."""
    prepared = prepared_of(*SMALL)
    replacing, writes = os.replace, []

    def interrupted_at_the_second(temporary, path):
        writes.extend([path] if Path(path).name == checkpoint.NAME else [])
        if len(writes) == 2:
            raise KeyboardInterrupt
        replacing(temporary, path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            train.train_runs([prepared], progress=InterruptingProgress(11), trainer=SHORT_BLOCKS)
    assert len(writes) == 2
    assert train.position_of(prepared) == checkpoint.Position(1, (), 20)
    assert not [name for name in files(prepared.directory) if name.endswith(".tmp")]


def test_a_stack_is_saved_run_by_run(prepared_of):
    stack = [prepared_of(*SMALL, f"seed={seed}") for seed in range(3)]
    with pytest.raises(KeyboardInterrupt):
        train.train_runs(stack, progress=InterruptingProgress(5), trainer=SHORT_BLOCKS)
    assert len({train.position_of(one) for one in stack}) == 1
    assert train.position_of(stack[0]).step > 0
    assert train.train_runs(stack, quiet=True, trainer=SHORT_BLOCKS) == ["done"] * 3
