"""Sweeps that are killed, doubled or widened: what was done is not trained again, and what was begun goes on."""

import os
import re
import signal
import subprocess
import sys
from multiprocessing import get_all_start_methods
from pathlib import Path

import pytest
from helpers import summaries
from processes import SHORT, children, tables, until

from clrun.results import run_files
from clrun.results.columns import COSTS
from clrun.runs import prepare, train
from clrun.sweep import plan, workers
from clrun.terminal.console import make_console
from clrun.terminal.progress import TerminalProgress

pytestmark = pytest.mark.usefixtures("empty_folder")


def started(*arguments: str) -> subprocess.Popen:
    line = [sys.executable, "-m", "clrun.commands.run", *arguments, "device=cpu"]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(outputs: str) -> dict[Path, int]:
    """Every file of the finished runs -> when it was changed."""
    ended = [path.parent for path in summaries(outputs=outputs)]
    return {path: path.stat().st_mtime_ns for directory in ended for path in directory.iterdir()}


def seeds_in(said: str, words: str) -> list[int]:
    """Of the runs of which something is said."""
    return sorted(int(seed) for seed in re.findall(rf"seed=(\d+)-\w+{words}", said))


def comparable(outputs: str) -> dict[str, bytes]:
    """All tables of all runs but costs.csv; summary.csv without what says how long it took and where."""
    found = {}
    for path in sorted(set(Path(outputs).glob("runs/*/*/*.csv")) - set(Path(outputs).glob("runs/*/*/costs.csv"))):
        table = path.read_bytes()
        if path.name == "summary.csv":
            own = {*COSTS, "outputs", "workers", "stack", "checkpoint_every"}
            table = run_files.read_summary(path).drop(columns=list(own), errors="ignore").to_csv().encode()
        found[f"{path.parent.name}/{path.name}"] = table
    return found


@pytest.mark.slow  # twenty seconds; workers that are killed one by one, and runs that are, are in the quick suite
def test_a_sweep_killed_in_the_middle_is_finished_by_the_same_command(clrun):
    """SIGKILL of the parent and of all workers: what was done is not touched, what was begun goes on."""
    typed = ("-m", "strategy=ewc", "seed=range(6)", "epochs=12", "validation=0.1", "evaluate_every=20", "workers=2")
    with started(*typed, "checkpoint_every=0.01", "outputs=killed") as process:
        assert until(lambda: len(summaries(outputs="killed")) == 2)
        assert until(lambda: len(list(Path("killed").glob("runs/*/*/checkpoint.safetensors"))) >= 1)
        everybody = [process.pid, *children(process.pid)]
        for pid in everybody:
            os.kill(pid, signal.SIGSTOP)  # so that none sees another's death
        for pid in everybody:
            os.kill(pid, signal.SIGKILL)
    before = finished("killed")
    done = seeds_in(" ".join(path.parent.name + ":" for path in before if path.name == "summary.csv"), ":")
    begun = seeds_in(" ".join(path.parent.name + ":" for path in Path("killed").glob("runs/*/*/checkpoint.*")), ":")
    begun = [seed for seed in begun if seed not in done]  # killed between its summary and its checkpoint's removal
    assert 2 <= len(done) < 6 and begun
    again = started(*typed, "outputs=killed")
    out, err = again.communicate(timeout=300)
    assert again.returncode == 0
    assert f"6 runs: {6 - len(done)} to train, {len(done)} done already." in out
    assert seeds_in(err, " continues after") == begun
    assert seeds_in(out, ": done") == [seed for seed in range(6) if seed not in done]
    assert finished("killed").items() >= before.items()
    assert not [path for path in Path("killed").rglob("*.tmp") if path not in before]
    assert clrun(*typed, "outputs=whole", "device=cpu")[0] == 0
    assert len(comparable("whole")) == 6 * 11 and comparable("killed") == comparable("whole")


def test_two_sweeps_at_once_train_each_run_once():
    """Both want seeds 2 to 5; no run is trained twice, no file is torn, and neither waits for ever."""
    common = ("-m", "strategy=ewc", "epochs=4", "workers=2", "outputs=shared")
    both = [started(*common, f"seed=range({first},{first + 6})") for first in (0, 2)]
    said = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    trained = [seed for out, _ in said for seed in seeds_in(out, r": done\n")]
    assert sorted(trained) == list(range(8))
    shown = [re.findall(r"^ +ewc +\d .* done *$", out, re.M) for out, _ in said]
    assert list(map(len, shown)) == [6, 6]  # each shows all of its own
    assert len(run_files.read_summary(Path("shared/results.csv"))) == 8
    assert not [path for path in Path("shared").rglob("*") if path.name.endswith(".tmp") or path.name == "lock.json"]


def report_imports(pipe):
    """Send which heavy modules a process has imported before it does anything; runs in a worker."""
    pipe.send([name for name in ("torch", "matplotlib", "clrun.runs.train") if name in sys.modules])


@pytest.mark.skipif("forkserver" not in get_all_start_methods(), reason="workers are forked from a server alone here")
def test_a_fresh_worker_has_imported_everything_already():
    context = workers.process_context()
    ours, theirs = context.Pipe()
    process = context.Process(target=report_imports, args=(theirs,))
    process.start()
    assert ours.poll(60) and ours.recv() == ["torch", "matplotlib", "clrun.runs.train"]
    process.join()


class CutOff(TerminalProgress):
    """A progress that ends training when a task begins."""

    def __init__(self, stage: int) -> None:
        super().__init__(make_console(quiet=True), 5)
        self.last = stage

    def begin_task(self, stage, steps):
        if stage == self.last:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_a_widened_sweep_is_regrouped_by_the_tasks_that_remain(clrun, settings_of):
    """Stacks of four; a run is finished, two are after task 1, one is after task 3, five are new."""
    typed = ("-m", "strategy=ewc", *SHORT, "workers=1", "stack=4")
    runs = [prepare.prepare(settings_of(*typed[1:], f"seed={seed}")) for seed in range(9)]
    assert clrun(*typed, "seed=8")[0] == 0
    for stage, seeds in ((2, (0, 5)), (4, (3,))):
        with pytest.raises(KeyboardInterrupt):
            train.train_runs([runs[seed] for seed in seeds], progress=CutOff(stage))
    stacks = plan.stacks([run for run in runs if not run.finished])
    planned = [([run.settings["seed"] for run in stack], train.position_of(stack[0]).stage) for stack in stacks]
    code, out, err = clrun(*typed, "seed=range(9)")
    assert code == 0 and "8 to train, 1 done already" in out
    assert sorted(seed for seeds, _ in planned for seed in seeds) == list(range(8))
    assert seeds_in(out, ": done") == list(range(8))
    assert {stage: sorted(seeds) for seeds, stage in planned if stage} == {1: [0, 5], 3: [3]}
    assert [sorted(seeds) for seeds, stage in planned if stage == 0] == [[1, 2], [4, 6, 7]]
    trained = {run.settings["seed"]: run_files.summary_of(run.directory)["stack_size"] for run in runs[:8]}
    assert trained == {seed: len(seeds) for seeds, _ in planned for seed in seeds}
    assert seeds_in(err, r" continues after task 1 ") == [0, 5] and seeds_in(err, r" continues after task 3 ") == [3]
    assert clrun(*typed[:-1], "seed=range(9)", "outputs=alone")[0] == 0
    regrouped, alone = tables("outputs"), tables("alone")
    matrices = [name for name in alone if name.endswith(("accuracy_matrix.csv", "confusion.csv"))]
    assert len(matrices) == 18 and [regrouped[name] for name in matrices] == [alone[name] for name in matrices]
