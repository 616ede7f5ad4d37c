"""The workers of a sweep: what they write, and that none outlives it."""

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing import active_children
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from processes import NAMES, SHORT, children, ended, living, tables, until
from rich.console import Console

from clrun.sweep import execution, summary, workers
from clrun.terminal.progress import View

pytestmark = pytest.mark.usefixtures("empty_folder")


def test_workers_write_what_single_runs_write(clrun):
    typed = ("-m", "strategy=finetune,ewc", "seed=0,1", *SHORT)
    code, out, _ = clrun(*typed, "workers=2", "outputs=parallel")
    assert code == 0 and sorted(re.findall(r"^\[(\d)/4\] \S+: done$", out, re.M)) == list("1234")
    assert active_children() == []
    for strategy in ("finetune", "ewc"):
        for seed in (0, 1):
            assert clrun(f"strategy={strategy}", f"seed={seed}", *SHORT, "outputs=alone")[0] == 0
    assert len(tables("alone")) == 4 * len(NAMES) and tables("parallel") == tables("alone")
    assert clrun("-m", "seed=1,0", "strategy=ewc,finetune", *SHORT, "workers=1", "outputs=backwards")[0] == 0
    assert tables("backwards") == tables("alone")


def test_a_forced_stack_writes_the_accuracies_of_single_runs(clrun):
    typed = ("-m", "strategy=ewc", "lambda=1,50", "seed=0,1", *SHORT, "workers=1")
    assert clrun(*typed, "stack=4", "outputs=stacked")[0] == 0
    assert clrun(*typed, "outputs=alone")[0] == 0
    stacked, alone = tables("stacked"), tables("alone")
    matrices = [name for name in alone if name.endswith(("accuracy_matrix.csv", "confusion.csv"))]
    assert len(matrices) == 8 and [stacked[name] for name in matrices] == [alone[name] for name in matrices]


class Deadly(View):
    """A live view that kills the worker which is given seed 1."""

    def begin(self, worker, line):
        super().begin(worker, line)
        if line.name.endswith("seed=1"):
            os.kill(next(child.pid for child in active_children() if child.name == worker), signal.SIGKILL)


def test_a_worker_that_is_killed_loses_its_group_alone(prepared_of, clrun, tmp_path):
    runs = [prepared_of(*SHORT, f"seed={seed}", "workers=2") for seed in range(4)]
    errors = execution.train_sweep(runs, Deadly(Console(), len(runs)))
    (failed,) = tmp_path.rglob("failed.txt")
    told = summary.failures([run for run in runs if run.id in errors], errors, len(runs))
    assert "1 of 4 runs crashed" in told and "killed by SIGKILL" in told and str(failed) in told
    assert "seed=1-" in failed.parent.name and "SIGKILL" in failed.read_text()
    assert len(list(tmp_path.rglob("summary.csv"))) == 3 and active_children() == []
    code, out, _ = clrun("-m", "seed=0,1,2,3", *SHORT, "workers=2", f"outputs={tmp_path}")
    assert code == 0 and "1 to train, 3 done already" in out and not list(tmp_path.rglob("failed.txt"))


def test_data_that_vanish_under_a_sweep(prepared_of, tmp_path):
    """Between the sweep's look at them and the worker's."""
    for part, name in itertools.product(("train", "test"), "ab"):
        Path("pictures", part, name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(f"pictures/{part}/{name}/1.png")
    options = ("dataset=image_folder", "dataset.root=pictures", "dataset.size=8", "tasks=1", *SHORT, "workers=2")
    runs = [prepared_of(*options, f"seed={seed}") for seed in range(2)]
    shutil.rmtree("pictures")
    errors = execution.train_sweep(runs)
    told = summary.failures(runs, errors, len(runs))
    assert errors.keys() == {run.id for run in runs} and "2 of 2 runs crashed" in told and "Traceback" not in told
    assert told.count("dataset.root=pictures does not exist") == 2
    assert len(list(tmp_path.rglob("failed.txt"))) == 2 and active_children() == []


def test_interrupted_while_it_waits_for_workers_it_kills_them():
    """A second Ctrl-C."""
    told = []

    class Saving:
        def __init__(self, name):
            self.process = SimpleNamespace(is_alive=lambda: True, kill=lambda: told.append(f"kill {name}"))
            self.name = name

        def stop(self):
            told.append(f"stop {self.name}")

        def await_end(self):
            raise KeyboardInterrupt

    pool = workers.WorkerPool([], 0)
    pool.workers = [Saving("1"), Saving("2")]
    with pytest.raises(KeyboardInterrupt):
        pool.end()
    assert told == ["stop 1", "stop 2", "kill 1", "kill 2"]


@pytest.mark.slow  # minutes on a busy machine, and asks for a block of steps before the signal
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_to_every_process_and_again_saves_every_run(number, code):
    """As a cluster sends it to all processes of a job, and a terminal when it goes: nothing breaks off the saving."""
    line = [sys.executable, "-m", "clrun.commands.run", "-m", "seed=range(4)", "epochs=3000", "device=cpu", "workers=2"]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    heard = lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL)  # noqa: E731 (also where these tests run under nohup)
    with ended(subprocess.Popen(line, **pipes, start_new_session=True, preexec_fn=heard)) as process:
        began = time.monotonic()
        assert until(lambda: len(list(Path("outputs").rglob("accuracy_matrix.csv"))) == 2)
        time.sleep(2 + (time.monotonic() - began) / 2)  # for a block of steps, however slow the machine is
        for _ in range(3):
            os.killpg(process.pid, number)
            time.sleep(0.01)
        _, told = process.communicate(timeout=240)
    assert process.returncode == code and "Traceback" not in told
    assert told.count("saved after task 0 and ") == 2
    assert len(list(Path("outputs").rglob("checkpoint.safetensors"))) == 2
    assert not list(Path("outputs").rglob("*.tmp")) and not list(Path("outputs").rglob("lock.json"))


@pytest.mark.parametrize(
    "number, code",
    [
        (signal.SIGINT, 130),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in ((signal.SIGTERM, 143), (signal.SIGKILL, -9))),
    ],
)
def test_no_worker_outlives_its_sweep(number, code):
    line = [sys.executable, "-m", "clrun.commands.run", "-m", "seed=range(4)", "epochs=2000", "device=cpu", "workers=2"]
    with ended(subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)) as process:
        assert until(lambda: len(list(Path("outputs").rglob("config.yaml"))) == 2)
        started = children(process.pid)
        assert len(started) >= 3  # two workers and what started them
        process.send_signal(number)
        _, told = process.communicate(timeout=60)
    assert process.returncode == code and until(lambda: not living(started)) and "Traceback" not in told
    assert not list(Path("outputs").rglob("*.tmp")) or number == signal.SIGKILL
