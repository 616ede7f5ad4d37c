"""A run that is interrupted anywhere goes on from there, and ends with the bytes of one that never was."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path

import pandas as pd
import pytest
import safetensors.torch
import torch
from conftest import STRATEGIES
from interrupting import SHORT_BLOCKS, InterruptingProgress, Killed, NoTraining

from clrun.results import run_files
from clrun.runs import checkpoint, checkpointer, train
from clrun.runs.build import build
from clrun.runs.checkpointer import Checkpointer
from clrun.runs.prepared import Prepared
from clrun.runs.recording import new_outcome
from clrun.strategies.ewc import EWC
from clrun.system.errors import UsageError

SMALL = ("model.widths=[12,8]", "device=cpu", "iterations=20", "tasks=2", "plots=false")
TABLES = (
    "accuracy_matrix", "forgetting", "accuracy", "confusion", "confusion_over_tasks", "health",
    "accuracy_over_training",
)  # fmt: skip
SCRIPT = Path(__file__).parents[2] / "scripts" / "kill_and_resume.py"


def tables(prepared: Prepared) -> dict[str, bytes]:
    names = [*TABLES, *(["validation_matrix"] if prepared.settings["validation"] else [])]
    return {name: (prepared.directory / f"{name}.csv").read_bytes() for name in names}


def uninterrupted(prepared: Prepared) -> dict[str, bytes]:
    """The tables of the whole run; nothing of it is left."""
    train.train_run(prepared, quiet=True, trainer=SHORT_BLOCKS)
    whole = tables(prepared)
    shutil.rmtree(prepared.directory)
    return whole


def kill(runs: list[Prepared], lives: int, end: type[BaseException] = Killed) -> None:
    with pytest.raises(end):
        train.train_runs(runs, progress=InterruptingProgress(lives, end), trainer=SHORT_BLOCKS)


def continued_from(told: str) -> list[str]:
    return [line.split(" continues after ")[1] for line in told.splitlines() if " continues after " in line]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_ends_with_the_same_bytes(prepared_of, capsys, strategy):
    """Killed within a task, then at a task's end, then in another one's middle."""
    options = (f"strategy={strategy}", *SMALL, "checkpoint_every=1e-9", "evaluate_every=5", "validation=0.1")
    prepared = prepared_of(*options)
    whole = uninterrupted(prepared)
    steps = pd.read_csv(BytesIO(whole["health"]))["steps"].sum()
    for lives in (5, 7, 3) if steps else (1,):  # without steps a task has one report, at its end
        try:
            train.train_runs([prepared], progress=InterruptingProgress(lives, Killed), trainer=SHORT_BLOCKS)
        except Killed:
            assert not prepared.finished
    train.train_run(prepared, quiet=True, trainer=SHORT_BLOCKS)
    assert tables(prepared) == whole
    assert continued_from(capsys.readouterr().err)
    assert not (prepared.directory / checkpoint.NAME).exists()
    assert not (prepared.directory / "lock.json").exists()


@pytest.mark.parametrize(
    "options",
    [
        ("optimizer=sgd", "optimizer.momentum=0.9", "optimizer.nesterov=true"),
        ("optimizer.reset=true",),
        ("augment=crop_flip", "scenario=class"),
        ("split=permuted", "scenario=domain"),
        ("strategy=packnet",),
        ("average=ema", "strategy=er"),
        ("average=ema", "strategy=bic", "scenario=class", "memory_size=20"),
        ("strategy=derpp", "scenario=class", "memory_size=20"),
        ("strategy=derpp", "scenario=class", "memory_size=20", "augment=crop_flip"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("lives", [3, 7, 14])
def test_wherever_it_is_killed(prepared_of, options, lives):
    prepared = prepared_of(*SMALL, "checkpoint_every=1e-9", "evaluate_every=4", *options)
    whole = uninterrupted(prepared)
    kill([prepared], lives)
    train.train_run(prepared, quiet=True, trainer=SHORT_BLOCKS)
    assert tables(prepared) == whole


def test_batch_norm_goes_on(prepared_of, capsys):
    net = ("model=resnet18", "model.norm=batch", "model.width=4")
    prepared = prepared_of(*net, *SMALL[1:], "evaluate_every=10", "checkpoint_every=1e-9", "strategy=finetune")
    whole = uninterrupted(prepared)
    kill([prepared], 6)
    train.train_run(prepared, quiet=True, trainer=SHORT_BLOCKS)
    assert tables(prepared) == whole
    assert continued_from(capsys.readouterr().err) == ["task 0 and 14 steps of task 1 (14 steps so far)."]


@pytest.mark.parametrize("strategy", ["ewc", "er", "lwf"])
def test_a_module_with_batch_norm_and_dropout_goes_on(prepared_of, strategy):
    net = ("model=module", "model.target=user_networks.ConvNormDrop")
    prepared = prepared_of(*net, *SMALL[1:], "checkpoint_every=1e-9", "evaluate_every=5", f"strategy={strategy}")
    whole = uninterrupted(prepared)
    kill([prepared], 6)
    train.train_run(prepared, quiet=True, trainer=SHORT_BLOCKS)
    assert tables(prepared) == whole


def test_without_checkpoint_every_it_goes_on_at_the_last_finished_task(prepared_of, capsys):
    prepared = prepared_of(*SMALL, "evaluate_every=5")
    whole = uninterrupted(prepared)
    kill([prepared], 11)
    train.train_run(prepared, quiet=True, trainer=SHORT_BLOCKS)
    assert tables(prepared) == whole
    assert continued_from(capsys.readouterr().err) == ["task 1 (20 steps so far)."]


def test_killed_after_the_last_task(prepared_of, capsys, monkeypatch):
    """What is left is to write the results."""
    prepared = prepared_of(*SMALL, "evaluate_every=5")
    whole = uninterrupted(prepared)
    replacing = os.replace

    def killed_at_the_last_tables(temporary, path):
        if Path(path).name == "confusion.csv":
            raise Killed
        replacing(temporary, path)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "replace", killed_at_the_last_tables)
        train.train_run(prepared, quiet=True, trainer=SHORT_BLOCKS)
    train.train_runs([prepared], progress=NoTraining(), trainer=SHORT_BLOCKS)
    assert tables(prepared) == whole
    assert continued_from(capsys.readouterr().err) == ["task 2 (40 steps so far)."]


def test_times_add_up(prepared_of):
    prepared = prepared_of(*SMALL, "drop_last=true")
    kill([prepared], 11)
    notes = checkpoint.read(prepared.directory, prepared.id).notes
    train.train_run(prepared, quiet=True, trainer=SHORT_BLOCKS)
    summary = run_files.read_summary(prepared.directory / "summary.csv").iloc[0]
    assert 0 < notes["costs"]["train_seconds"] < summary["train_seconds"] < summary["wall_seconds"]
    assert notes["costs"]["samples"] == 20 * 32


def test_a_diverged_run_goes_on_as_it_would_have(prepared_of):
    sgd = ("strategy=ewc", "optimizer=sgd", "lr=0.05", "lambda=1e30", *SMALL, "iterations=30", "evaluate_every=5")
    prepared = prepared_of(*sgd, "checkpoint_every=1e-9")
    assert train.train_run(prepared, quiet=True, trainer=SHORT_BLOCKS) == "diverged"
    whole = tables(prepared)
    for lives in (9, 12, 13):
        shutil.rmtree(prepared.directory)
        kill([prepared], lives)
        assert train.train_run(prepared, quiet=True, trainer=SHORT_BLOCKS) == "diverged"
        assert tables(prepared) == whole


# ---------------------------------------------------------------- stacks


def test_a_stack_goes_on_as_a_stack(prepared_of, capsys):
    options = (*SMALL, "evaluate_every=5", "checkpoint_every=1e-9", "iterations=null", "epochs=2")
    stack = [prepared_of(*options, f"seed={seed}") for seed in range(3)]
    assert len({len(one.stream.train[0]) for one in stack}) > 1  # tasks of different lengths
    train.train_runs(stack, quiet=True, trainer=SHORT_BLOCKS)
    whole = [tables(one) for one in stack]
    for one in stack:
        shutil.rmtree(one.directory)
    kill(stack, 13)
    assert train.by_position(stack) == [stack]
    train.train_runs(stack, quiet=True, trainer=SHORT_BLOCKS)
    assert [tables(one) for one in stack] == whole
    assert len(set(continued_from(capsys.readouterr().err))) == 1


def test_runs_at_different_places_are_trained_apart(prepared_of, capsys):
    stack = [prepared_of(*SMALL, "tasks=5", "evaluate_every=5", f"seed={seed}") for seed in range(4)]
    whole = [uninterrupted(one) for one in stack]
    kill([stack[1]], 11)
    kill([stack[2]], 21)
    ids = [[one.id for one in group] for group in train.by_position(stack)]
    assert ids == [[stack[0].id, stack[3].id], [stack[1].id], [stack[2].id]]
    assert train.train_runs(stack, quiet=True, trainer=SHORT_BLOCKS) == ["done"] * 4
    assert [tables(one)["accuracy"] for one in stack] == [one["accuracy"] for one in whole]
    assert [tables(one) for one in stack[1:3]] == whole[1:3]  # alone before and after, so equal in every last bit
    places = ["task 1 (20 steps so far).", "task 2 (40 steps so far)."]
    assert continued_from(capsys.readouterr().err) == places


def test_grouped():
    early, late = checkpoint.Position(1, (), 20), checkpoint.Position(1, (7,), 27)
    assert checkpoint.indices_by_position([late, early, late]) == [[1], [0, 2]]
    assert checkpoint.indices_by_position([]) == []


# ---------------------------------------------------------------- what cannot be continued from


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))


def retold(**changes):
    def change(path: Path) -> None:
        with safetensors.safe_open(path, "pt") as file:
            head = json.loads(file.metadata()["clrun"]) | changes
        safetensors.torch.save_file(safetensors.torch.load_file(path), path, {"clrun": json.dumps(head)})

    return change


def headed(text: str):
    return lambda path: safetensors.torch.save_file(safetensors.torch.load_file(path), path, {"clrun": text})


def somebody_elses(path: Path) -> None:
    safetensors.torch.save_file({"weights": torch.zeros(3)}, path)


DAMAGE = {
    "torn": (torn, "cut short"),
    "empty": (emptied, "cut short"),
    "a bit flipped": (flipped, "checksum"),
    "another format": (retold(format=99), "another version"),
    "another configuration": (retold(identity="0123456789"), "another configuration"),
    "not ours": (somebody_elses, "another version"),
    "a head that is no JSON": (headed("{"), "another version"),
    "a head of nothing": (headed("[]"), "another version"),
    "a head without a place": (headed('{"format": 1}'), "another version"),
    "a pickle": (lambda path: torch.save({"theta": torch.zeros(3)}, path), "cut short"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_checkpoint_that_cannot_be_used_is_set_aside(prepared_of, capsys, case):
    damage, said = DAMAGE[case]
    prepared = prepared_of(*SMALL, "evaluate_every=5")
    whole = uninterrupted(prepared)
    kill([prepared], 11)
    damage(prepared.directory / checkpoint.NAME)
    train.train_run(prepared, quiet=True, trainer=SHORT_BLOCKS)
    told = capsys.readouterr().err
    assert said in told
    assert "the run starts again" in told
    assert tables(prepared) == whole
    assert (prepared.directory / f"{checkpoint.NAME}.bad").exists()


def test_one_bad_checkpoint_of_a_stack_leaves_the_others(prepared_of, capsys):
    stack = [prepared_of(*SMALL, "evaluate_every=5", f"seed={seed}") for seed in range(3)]
    whole = [uninterrupted(one) for one in stack]
    kill(stack, 11)
    flipped(stack[1].directory / checkpoint.NAME)
    train.train_runs(stack, quiet=True, trainer=SHORT_BLOCKS)
    assert [tables(one)["accuracy_matrix"] for one in stack] == [one["accuracy_matrix"] for one in whole]
    assert len(continued_from(capsys.readouterr().err)) == 2


@dataclass(frozen=True)
class OtherState(EWC):
    """EWC with a state of other shapes and another type."""

    def init(self, theta):
        return super().init(theta[:-1].double())


def test_a_strategy_whose_state_has_changed_starts_again(prepared_of, capsys):
    prepared = prepared_of(*SMALL, "strategy=ewc")
    kill([prepared], 11)
    prepared = replace(prepared, strategy=OtherState)
    with pytest.raises(UsageError, match=r"OtherState\.quadratic returned"):  # so spoilt it cannot train
        train.train_run(prepared, quiet=True, trainer=SHORT_BLOCKS)
    assert "has the strategy or the network been changed?" in capsys.readouterr().err
    assert (prepared.directory / f"{checkpoint.NAME}.bad").exists()


# ---------------------------------------------------------------- a finished run's


def test_a_kept_checkpoint_is_not_continued_from(prepared_of, capsys):
    prepared = prepared_of(*SMALL, "keep_checkpoint=true", "evaluate_every=5")
    train.train_run(prepared, quiet=True, trainer=SHORT_BLOCKS)
    whole = tables(prepared)
    assert checkpoint.read(prepared.directory, prepared.id).position == checkpoint.Position(2, (), 40)
    train.train_run(prepared, quiet=True, trainer=SHORT_BLOCKS)  # as with rerun=true
    assert continued_from(capsys.readouterr().err) == []
    assert tables(prepared) == whole


def test_checkpoint_knobs_are_not_part_of_a_run(prepared_of):
    assert prepared_of("checkpoint_every=5", "keep_checkpoint=true").id == prepared_of().id


# ---------------------------------------------------------------- blocks


@pytest.mark.parametrize("block", [1, 3, 512])
def test_the_size_of_blocks_changes_no_byte(prepared_of, block):
    prepared = prepared_of(*SMALL, "evaluate_every=6")
    whole = uninterrupted(prepared)
    train.train_run(prepared, quiet=True, trainer=partial(train.train_stack, block_steps=block))
    assert tables(prepared) == whole


# ---------------------------------------------------------------- real processes


def command(outputs: Path, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "clrun.commands.run", f"outputs={outputs}", "device=cpu", *overrides]


@pytest.mark.parametrize("how, code", [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_the_same_command_goes_on(tmp_path, how, code):
    line = command(tmp_path, "epochs=60", "evaluate_every=20", "tasks=2", "checkpoint_every=0.01")
    process = subprocess.Popen(line, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(f"runs/*/*/{checkpoint.NAME}")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(how)
    _, told = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in told
    assert "saved after task" in told or list(tmp_path.glob(f"runs/*/*/{checkpoint.NAME}"))
    assert not list(tmp_path.glob("runs/*/*/*.tmp")) and not list(tmp_path.glob("runs/*/*/lock.json"))
    again = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
    assert again.returncode == 0
    assert "continues after" in again.stderr


@pytest.mark.slow
def test_kill_and_resume_fast(tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPT, "--kills", "2", "--data", "digits", "--fast"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 equal" in done.stdout


def test_checkpoints_after_short_tasks_take_a_tenth_of_the_time_at_most(prepared_of, monkeypatch):
    """The clock stands at 0 when the run begins, and a checkpoint takes a second. The last task always has one."""
    prepared = prepared_of("strategy=finetune", "model.widths=[4]")
    stack = build([prepared])
    clock, written = [0.0], []

    def write(directory, run, content, guard):
        clock[0] += 1
        written.append(content.position.stage)

    monkeypatch.setattr(checkpointer, "CHECKPOINT_SHARE", 0.1)
    monkeypatch.setattr(checkpointer, "monotonic", lambda: clock[0])
    monkeypatch.setattr(checkpoint, "write", write)
    kept = Checkpointer(stack, [new_outcome(prepared, stack)], 0, print, dict)
    current = stack.initialize()
    kept.start(current, 0, None)
    for stage, now in ((1, 2.0), (2, 12.9), (3, 13.0), (4, 14.0), (5, 15.0)):
        clock[0] = now
        kept.end_task(current, stage)
    assert written == [1, 3, 5]
    assert kept.latest.position == kept.written
