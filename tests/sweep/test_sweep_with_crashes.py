"""A sweep of 30 in which 5 diverge, 2 crash and a worker is killed: nothing is lost, and nothing goes unsaid."""

import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from helpers import python_path

from clrun.results.run_files import read_summary

STATED = """
name: fragile
about: plain training; what becomes of a run follows from its number
_target_: fragile_of_the_user.Fragile
knobs:
  number: {default: 0, type: int, min: 0, about: which run this is}
  strength: {default: 1.0e+30, type: float, min: 0, about: of the pull that makes some runs diverge}
"""
FRAGILE = """
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from clrun.strategies.finetune import Finetune

DIVERGE, CRASH, KILL = (5, 11, 17, 23, 29), (3, 16), (8,)


@dataclass(frozen=True)
class Fragile(Finetune):
    number: int = 0

    class Hyper(NamedTuple):
        strength: Tensor

    class Own(NamedTuple):
        anchor: Tensor

    def init(self, theta):
        return self.Own(theta)

    def loss(self, theta, own, hp, batch):
        fit, aux = super().loss(theta, own, hp, batch)
        pull = hp.strength * (theta - own.anchor).square().sum() * (batch.stage > 0)
        return (fit + pull if self.number in DIVERGE else fit), aux

    def after_phase(self, phase, theta, own, hp, pool):
        flag = Path(f"tried_{self.number}")
        if self.number in CRASH + KILL and pool.stage == 1 and not flag.exists():
            flag.touch()
            if self.number in KILL:
                os.kill(os.getpid(), signal.SIGKILL)
            raise ArithmeticError(f"number {self.number} is unlucky")
        return theta, self.Own(theta)
"""
DIVERGE, CRASH, KILL = (5, 11, 17, 23, 29), (3, 16), (8,)
SWEEP = ("-m", "strategy=fragile", "seed=range(30)", "number=${seed}", "optimizer=sgd", "lr=0.05", "iterations=20")


@pytest.fixture
def clrun(tmp_path, monkeypatch):
    """clrun("-m", ...) in a process and an empty folder of its own, where the user's strategy lies."""
    (tmp_path / "my" / "strategy").mkdir(parents=True)
    (tmp_path / "my" / "strategy" / "fragile.yaml").write_text(STATED)
    (tmp_path / "fragile_of_the_user.py").write_text(FRAGILE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", python_path())

    def run(*typed: str) -> subprocess.CompletedProcess:
        line = [sys.executable, "-m", "clrun.commands.run", "--config-dir", "my", *typed]
        small = ["model.widths=[8]", "tasks=2", "device=cpu", "workers=2"]
        return subprocess.run([*line, *small], capture_output=True, text=True, timeout=600, check=False)

    return run


def summaries() -> dict[int, pd.Series]:
    rows = [read_summary(path).iloc[0] for path in Path("outputs").glob("runs/*/*/summary.csv")]
    return {int(row["number"]): row for row in rows}


def tables() -> dict[str, bytes]:
    """All tables of the runs that are over."""
    over = [path.parent for path in Path("outputs").glob("runs/*/*/summary.csv")]
    return {str(path): path.read_bytes() for folder in over for path in folder.glob("*.csv")}


@pytest.mark.slow
def test_a_sweep_of_thirty(clrun):
    first = clrun(*SWEEP)
    assert first.returncode == 1, first.stderr
    assert "Traceback" not in first.stdout + first.stderr
    assert "30 runs: 22 done, 5 diverged, 3 crashed or killed." in first.stdout
    ended = summaries()
    assert set(range(30)) - ended.keys() == {*CRASH, *KILL}
    assert {number for number, row in ended.items() if row["status"] == "diverged"} == set(DIVERGE)
    check_named(first)
    check_diverged(ended)

    before = tables()
    again = clrun(*SWEEP)
    assert again.returncode == 0, again.stderr
    assert "30 runs: 3 to train, 27 done already." in again.stdout
    assert "30 runs: 25 done, 5 diverged." in again.stdout
    assert again.stderr.count(" continues after task 1 (20 steps so far)") == 3  # so fewer than the whole
    assert tables() | before == tables()  # what was done is as it was
    assert summaries().keys() == set(range(30)) and not list(Path("outputs").rglob("failed.txt"))
    assert len(pd.read_csv("outputs/results.csv")) == 30


def check_named(done: subprocess.CompletedProcess) -> None:
    """Each of the eight by its name: the three at the end with their reasons, the five in the table."""
    assert "3 of 30 runs crashed; the same command again tries only these:" in done.stderr
    for number in CRASH:
        assert re.search(
            rf"ArithmeticError: number {number} is unlucky \(\S+-seed={number}-\w+/failed.txt\)", done.stderr
        )
    assert re.search(rf"Killed: [^\n]*SIGKILL[^\n]*-seed={KILL[0]}-\w+/failed.txt\)", done.stderr)
    named = re.findall(r"^ *fragile +(\d+) +(?:\d+ +)?.*diverged at task 2 step \d+", done.stdout, re.M)
    assert sorted(map(int, named)) == list(DIVERGE)


def check_diverged(ended: dict[int, pd.Series]) -> None:
    """What was measured before stays, and none of it is in a mean."""
    for number in DIVERGE:
        (matrix,) = Path("outputs").glob(f"runs/fragile/*-seed={number}-*/accuracy_matrix.csv")
        assert pd.read_csv(matrix).notna().all(axis=1).tolist() == [True, True, False]
        assert pd.isna(ended[number]["average_accuracy"])
    line = [sys.executable, "-m", "clrun.report", "outputs"]
    subprocess.run(line, capture_output=True, timeout=200, check=True)
    report = pd.read_csv("outputs/report.csv")
    assert set(report[(report.metric == "diverged") & (report["mean"] == 1)].number) == set(DIVERGE)
    assert set(report[report.metric == "average_accuracy"].number) == ended.keys() - set(DIVERGE)
