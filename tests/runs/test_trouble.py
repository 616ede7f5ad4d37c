"""Runs that diverge, answer with NaN, stop learning, do nothing or crash: what is kept of them, and what is said."""

from dataclasses import dataclass, replace

import pandas as pd
import pytest
import torch

from clrun.results import run_files
from clrun.runs import show, train
from clrun.strategies.ewc import EWC
from clrun.strategies.finetune import Finetune

SHORT = ("iterations=6", "model.widths=[12,8]", "device=cpu")


@pytest.fixture
def trained(prepared_of):
    """trained(*overrides) -> (Prepared, its summary row)."""

    def train_it(*overrides):
        prepared = prepared_of(*SHORT, *overrides)
        train.train_run(prepared, quiet=True)
        return prepared, run_files.read_summary(prepared.directory / "summary.csv").iloc[0]

    return train_it


def test_divergence_keeps_what_was_measured(trained):
    prepared, summary = trained("strategy=ewc", "lambda=1e30", "optimizer=sgd", "lr=0.05", "iterations=30")
    assert summary["status"] == "diverged"
    assert summary["diverged_at"].startswith("task 2 step ")
    matrix = pd.read_csv(prepared.directory / "accuracy_matrix.csv")
    assert matrix.notna().all(axis=1).tolist() == [True, True, False, False, False, False]
    assert pd.isna(summary["average_accuracy"])
    assert "diverged" in summary["warnings"]


def test_divergence_keeps_what_was_measured_within_its_task(trained):
    """Up to the step before; what a network of nan answers is no accuracy."""
    options = ("lambda=1e5", "optimizer=sgd", "lr=0.05", "iterations=30", "evaluate_every=1")
    prepared, summary = trained("strategy=ewc", *options)
    step = int(summary["diverged_at"].removeprefix("task 2 step "))
    within = pd.read_csv(prepared.directory / "accuracy_over_training.csv")
    assert sorted(set(within[within.stage == 1].step)) == list(range(1, 31))
    assert sorted(set(within[within.stage == 2].step)) == list(range(31, 30 + step)) and step > 1
    assert within.accuracy.between(0, 1).all()


class HasNoScores(Finetune):
    """Once a task was learnt, it divides by zero for the samples of the second task."""

    def init(self, theta):
        return theta.new_zeros(())

    def after_phase(self, phase, theta, state, hp, pool):
        return theta, state + 1

    def scores(self, theta, state, hp, x, t):
        return torch.where((state > 0) & (t[:, None] == 1), torch.nan, self.net(theta, x))


@pytest.mark.parametrize("together", [False, True])
def test_scores_that_are_no_numbers_are_counted_once(prepared_of, together):
    """Alone and in a stack."""
    runs = [prepared_of(*SHORT, "tasks=5", "strategy=finetune", f"seed={seed}") for seed in range(1 + together)]
    runs = [replace(run, strategy=HasNoScores) for run in runs]
    train.train_runs(runs, quiet=True)
    for run in runs:
        counts = pd.read_csv(run.directory / "accuracy.csv").query("after_task == 1")["n"].tolist()
        warned = str(run_files.summary_of(run.directory)["warnings"])
        said = f"after task 1, {counts[1]} of {sum(counts)} test samples had a score that is no number (NaN)"
        assert said in warned and warned.count("NaN") == 1


def test_scores_that_are_numbers_are_not_mentioned(trained):
    _, summary = trained("strategy=finetune")
    assert "NaN" not in str(summary["warnings"])


def test_a_frozen_run_is_named(trained):
    _, summary = trained("strategy=ewc", "lambda=1e30", "tasks=2", "iterations=30")
    assert summary["status"] == "done"
    assert "this run stopped learning at task 2 step" in summary["warnings"]


@dataclass(frozen=True)
class WithoutFisher(EWC):
    """EWC whose Fisher information is zero."""

    def after_phase(self, phase, theta, state, hp, pool):
        return theta, state.absorb(theta, torch.zeros_like(theta))


@pytest.mark.parametrize("cause", ["zero Fisher", "tiny lambda"])
def test_a_method_that_does_nothing_says_so(prepared_of, capsys, cause):
    prepared = prepared_of(*SHORT, "strategy=ewc", "lambda=1e-20" if cause == "tiny lambda" else "lambda=400")
    if cause == "zero Fisher":
        prepared = replace(prepared, strategy=WithoutFisher)
    train.train_run(prepared, quiet=True)
    summary = run_files.summary_of(prepared.directory)
    assert "this is finetuning" in summary["warnings"]
    show.show(prepared)
    assert "this is finetuning" in capsys.readouterr().out


def test_lambda_0_is_finetuning_on_purpose(trained):
    _, summary = trained("strategy=ewc", "lambda=0")
    assert pd.isna(summary["warnings"]) or not summary["warnings"]


def test_a_method_that_acts_is_not_accused(trained):
    _, summary = trained("strategy=ewc", "lambda=400")
    assert pd.isna(summary["warnings"]) or not summary["warnings"]


@dataclass(frozen=True)
class Broken(EWC):
    """EWC that fails after its first task."""

    def after_phase(self, phase, theta, state, hp, pool):
        raise RuntimeError("the disk is on fire")


def test_a_crash_leaves_a_reason_that_the_next_try_removes(prepared_of):
    prepared = prepared_of(*SHORT, "strategy=ewc")
    with pytest.raises(RuntimeError):
        train.train_run(replace(prepared, strategy=Broken), quiet=True)
    assert "the disk is on fire" in (prepared.directory / "failed.txt").read_text()
    assert not prepared.finished
    train.train_run(prepared, quiet=True)
    assert not (prepared.directory / "failed.txt").exists()
    assert prepared.finished
