"""A process that was killed after it had written summary.csv leaves nothing behind once its command is repeated."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import summaries

from clrun.results import drawing
from clrun.results.reading import UnreadableFile
from clrun.runs import checkpoint
from clrun.runs.ending import drawing_processes
from clrun.runs.train import train_runs, train_stack
from clrun.system import locks

SMALL = ("model.widths=[8]", "tasks=2", "iterations=5", "device=cpu", "plots=false", "strategy=finetune")
KILLED = """
import os, signal
from clrun.runs import checkpoint
from clrun.system import locks

def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)

{what} = killed
from clrun.commands.run import cli
cli()
"""
MOMENTS = {"before the checkpoint goes": "checkpoint.remove", "before the lock goes": "locks.release_all"}


def killed(what: str, *arguments: str) -> Path:
    """Train a run in a process that is killed where it would call a function -> the folder of the run."""
    line = [sys.executable, "-c", KILLED.format(what=what), *SMALL, *arguments]
    done = subprocess.run(line, stdout=subprocess.DEVNULL)
    assert done.returncode == -9
    (directory,) = {path.parent for path in summaries()}
    assert (directory / locks.NAME).is_file()
    (directory / ".tmp12345678").write_text("half")
    return directory


def left(directory: Path) -> set[str]:
    names = {path.name for path in directory.iterdir()}
    return {name for name in names if name.startswith(".") or name in (locks.NAME, checkpoint.NAME)}


@pytest.mark.usefixtures("empty_folder")
@pytest.mark.parametrize("typed", [(), ("-m", "seed=0,1", "workers=1")], ids=["single", "sweep"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_the_same_command_tidies_up(clrun, moment, typed):
    directory = killed(MOMENTS[moment])
    code, out, err = clrun(*SMALL, *typed)
    assert code == 0 and "one already" in out, err
    assert not left(directory)


@pytest.mark.usefixtures("empty_folder")
def test_a_checkpoint_that_was_to_be_kept_stays(clrun):
    directory = killed(MOMENTS["before the lock goes"], "keep_checkpoint=true")
    assert clrun(*SMALL)[0] == 0
    assert left(directory) == {checkpoint.NAME}


@pytest.mark.usefixtures("empty_folder")
def test_a_training_again_that_was_killed_keeps_its_checkpoint(clrun):
    directory = killed(MOMENTS["before the checkpoint goes"])
    later = (directory / "summary.csv").stat().st_mtime + 10
    os.utime(directory / checkpoint.NAME, (later, later))
    assert clrun(*SMALL)[0] == 0
    assert left(directory) == {checkpoint.NAME}


@pytest.mark.usefixtures("empty_folder")
def test_a_lock_of_a_living_process_stays(clrun, neighbour):
    assert clrun(*SMALL)[0] == 0
    (directory,) = (path.parent for path in summaries())
    me = locks.this_process()
    owner = locks.Owner(me.host, me.space, neighbour.pid, locks.start_time(neighbour.pid), "0" * 32)
    (directory / locks.NAME).write_text(json.dumps(asdict(owner)))
    assert clrun(*SMALL)[0] == 0
    assert left(directory) == {locks.NAME}


PLOTTED = ("strategy=finetune", "model.widths=[8]", "tasks=2", "iterations=5", "device=cpu")


def files(runs):
    """The files of runs, but for those that say how long it took."""
    tables = {"summary.csv", "costs.csv"}
    return [
        {path.name: path.read_bytes() for path in run.directory.iterdir() if path.name not in tables} for run in runs
    ]


KILLED_WHILE_DRAWING = """
import os, signal, sys
from functools import partial
from clrun.config.composition import compose
from clrun.results import drawing
from clrun.runs.prepare import prepare
from clrun.runs.train import train_runs, train_stack

drawing.wait_for = lambda processes: os.kill(os.getpid(), signal.SIGKILL)
runs = [prepare(compose(*sys.argv[1:], f"seed={seed}", "rerun=true")) for seed in range(2)]
train_runs(runs, quiet=True, trainer=partial(train_stack, drawers=lambda device, runs: 2))
"""


@pytest.mark.slow
def test_killed_while_other_processes_draw_plots(prepared_of, tmp_path):
    """The same files come from training again after SIGKILL, whatever the orphans still do."""
    runs = [prepared_of(*PLOTTED, f"seed={seed}", "rerun=true") for seed in range(2)]
    train_runs(runs, quiet=True)
    expected = files(runs)
    (tmp_path / "temporary").mkdir()
    environment = {**os.environ, "TMPDIR": str(tmp_path / "temporary")}
    line = [sys.executable, "-c", KILLED_WHILE_DRAWING, *PLOTTED, f"outputs={tmp_path}"]
    assert subprocess.run(line, env=environment).returncode == -9
    assert all((run.directory / checkpoint.NAME).is_file() for run in runs)
    train_runs(runs, quiet=True)
    assert files(runs) == expected


@pytest.mark.slow
def test_plots_that_other_processes_have_drawn(prepared_of):
    """A stack whose plots are drawn by two processes, interrupted before they were started, and continued: the files
    are those of runs whose plots are drawn in this process."""

    def interrupted(device, runs):
        raise KeyboardInterrupt

    runs = [prepared_of(*PLOTTED, f"seed={seed}", "rerun=true") for seed in range(2)]
    train_runs(runs, quiet=True)
    expected = files(runs)
    with pytest.raises(KeyboardInterrupt):
        train_runs(runs, quiet=True, trainer=partial(train_stack, drawers=interrupted))
    assert all((run.directory / checkpoint.NAME).is_file() for run in runs)
    train_runs(runs, quiet=True, trainer=partial(train_stack, drawers=lambda device, runs: 2))
    assert files(runs) == expected and "confusion.png" in expected[0]


def test_plots_that_no_process_could_draw_are_drawn_here(prepared_of):
    run = prepared_of(*PLOTTED, "plots=false")
    train_runs([run], quiet=True)
    lost = run.directory.parent / "no run"
    with drawing.drawn_ahead([lost, run.directory], 2) as ahead:
        assert [*ahead] == [run.directory]
        drawing.take_or_draw(run.directory, ahead)
    assert (run.directory / "accuracy_over_tasks.png").is_file()
    with pytest.raises(UnreadableFile):
        drawing.take_or_draw(lost, {})


@pytest.mark.parametrize(("device", "runs", "cores", "expected"), [
    ("cuda", 64, 16, 15), ("cuda", 64, 32, 16), ("cuda", 8, 16, 2), ("cuda", 7, 16, 0), ("cuda", 64, 2, 0),
    ("cpu", 64, 16, 0),
])  # fmt: skip
def test_how_many_processes_draw(device, runs, cores, expected):
    assert drawing_processes(torch.device(device), runs, cores) == expected
