"""Sweeps beside other processes, which train, finish or hold some of the runs, and workers that are killed."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, fields

import pytest
from helpers import hold
from processes import SHORT
from rich.console import Console

from clrun.runs import train
from clrun.runs.prepared import Prepared
from clrun.sweep import execution, workers
from clrun.sweep.messages import Event, StackBegan, WorkerDied
from clrun.system import locks
from clrun.terminal.progress import View

pytestmark = pytest.mark.usefixtures("empty_folder")


def test_what_another_process_has_finished_is_not_trained_again(prepared_of):
    runs = [prepared_of(*SHORT, f"seed={seed}") for seed in range(3)]
    train.train_run(runs[1], quiet=True)
    before = (runs[1].directory / "summary.csv").stat().st_mtime_ns
    ended = workers.train_unfinished(runs, workers.Relay(lambda message: None))
    assert [one.status for one in ended.results] == ["done", "done by another process", "done"]
    assert (runs[1].directory / "summary.csv").stat().st_mtime_ns == before


class FinishedAfterTheLook(Prepared):
    """A run that another process finishes between the first look at it and the claim of its lock."""

    @property
    def finished(self):
        answer = super().finished
        if not answer:
            own = {field.name: getattr(self, field.name) for field in fields(Prepared)}
            train.train_run(Prepared(**own), quiet=True)
        return answer


def test_what_another_process_finishes_after_the_look_was_done_by_that_one(prepared_of):
    prepared = prepared_of(*SHORT)
    late = FinishedAfterTheLook(**{field.name: getattr(prepared, field.name) for field in fields(Prepared)})
    assert workers.train_unfinished([late], workers.Relay(lambda message: None)).results == [
        ("done by another process", None)
    ]


def told_of(capsys) -> list[tuple[str, str]]:
    """The seed of each run of which a sweep tells the end, and how it has ended."""
    return re.findall(r"seed=(\d)-\S+: (.*)$", capsys.readouterr().out, re.M)


def dead_of(runs: list[Prepared]) -> execution.Sweep:
    """A sweep of one stack, whose worker is killed."""
    sweep = execution.Sweep([runs], View(Console(width=200), len(runs)), {})
    sweep.handle(Event("1", 0, StackBegan()))
    sweep.handle(Event("1", 0, WorkerDied("SIGKILL")))
    return sweep


@pytest.mark.parametrize("rerun", [False, True])
def test_a_worker_that_is_killed_after_its_run_was_done(prepared_of, capsys, rerun):
    """The results are whole, and no crash is told. With rerun=true they may be the earlier ones."""
    runs = [prepared_of(*SHORT, f"seed={seed}", f"rerun={rerun}") for seed in range(2)]
    train.train_run(runs[0], quiet=True)
    (runs[0].directory / "checkpoint.safetensors").write_text("left")
    os.utime(runs[0].directory / "checkpoint.safetensors", (0, 0))
    died = {"pid": 2**22 + 1, "started": "1"}  # no process has this number
    for run in runs:
        run.directory.mkdir(exist_ok=True)
        (run.directory / locks.NAME).write_text(json.dumps(asdict(locks.this_process()) | died))
    sweep = dead_of(runs)
    assert told_of(capsys) == [
        ("0", "crashed: Killed: SIGKILL" if rerun else "done"),
        ("1", "crashed: Killed: SIGKILL"),
    ]
    assert [run.id in sweep.errors for run in runs] == [rerun, True]
    assert [(run.directory / "failed.txt").is_file() for run in runs] == [rerun, True]
    assert (runs[0].directory / "checkpoint.safetensors").is_file() == rerun
    assert not [run for run in runs if (run.directory / locks.NAME).exists()]


def test_a_run_that_diverged_before_its_worker_was_killed(prepared_of, capsys):
    diverging = prepared_of(*SHORT, "strategy=finetune", "optimizer=sgd", "lr=1e30")
    assert train.train_run(diverging, quiet=True) == "diverged"
    assert dead_of([diverging]).errors == {} and told_of(capsys) == [("0", "diverged")]


def test_of_a_stack_that_crashes_what_another_process_holds_is_left_to_that_one(prepared_of, neighbour, capsys):
    runs = [prepared_of(*SHORT, f"seed={seed}", "stack=2", "workers=1") for seed in range(2)]
    hold(runs[0].directory, neighbour)
    sweep = execution.Sweep([runs], View(Console(width=200), 2), {}, trainer=lambda stack, progress: 1 / 0)
    for event in sweep.train_here():
        sweep.handle(event)
    ((seed, end),) = told_of(capsys)
    assert seed == "1" and end.startswith("crashed: ") and end.endswith("ZeroDivisionError: division by zero")
    assert sweep.held == runs[:1] and [*sweep.errors] == [runs[1].id]
    assert not (runs[0].directory / "failed.txt").exists()


def test_what_crashed_here_and_was_then_trained_by_another_process_is_no_crash(prepared_of, monkeypatch):
    runs = [prepared_of(*SHORT, f"seed={seed}") for seed in range(2)]

    def crashed_at_first(todo, view, errors):
        errors |= {run.id: "Killed: SIGKILL" for run in todo}
        train.train_run(runs[0], quiet=True)  # elsewhere
        return []

    monkeypatch.setattr(execution, "train_free", crashed_at_first)
    assert execution.train_sweep(runs) == {runs[1].id: "Killed: SIGKILL"}


def test_of_a_stack_that_crashes_what_has_ended_has_not_failed(prepared_of):
    runs = [prepared_of(*SHORT, f"seed={seed}") for seed in range(2)]

    def ends_one(stack, progress):
        train.train_stack(stack[:1], progress)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train.train_runs(runs, quiet=True, trainer=ends_one)
    assert [run.finished for run in runs] == [True, False]
    assert [(run.directory / "failed.txt").is_file() for run in runs] == [False, True]


def test_what_another_process_is_training_is_looked_at_again(prepared_of, neighbour, capsys):
    """Seed 0 is held by a process that finishes it, seed 1 by one that dies, while seed 2 is trained."""
    runs = [prepared_of(*SHORT, f"seed={seed}", "workers=1") for seed in range(3)]
    for run in runs[:2]:
        hold(run.directory, neighbour)
    waits = []

    def another_ends(seconds):
        waits.append(seconds)
        assert runs[2].finished
        if len(waits) == 2:
            shutil.rmtree(runs[0].directory)
            line = [
                sys.executable,
                "-m",
                "clrun.commands.run",
                "seed=0",
                *SHORT,
                f"outputs={runs[0].settings['outputs']}",
            ]
            assert subprocess.call(line) == 0 and runs[0].finished
            neighbour.kill()
            neighbour.wait()

    assert execution.train_sweep(runs, sleep=another_ends) == {} and waits == [execution.POLL_SECONDS] * 2
    ends = re.findall(r"^\[\d/3\] ewc/\S+-seed=(\d)-\S+: (.*)$", capsys.readouterr().out, re.M)
    assert ends[0] == ("2", "done")
    assert sorted(ends[1:]) == [("0", "done by another process"), ("1", "done")]
