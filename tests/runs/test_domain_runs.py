"""Runs whose tasks are domains: what their files say of the tasks, where domains have classes of their own."""

import numpy as np
import pandas as pd
import pytest

from clrun.report.runs import guessing_accuracy
from clrun.results.reading import task_names
from clrun.runs.train import train_run

# Class numbers of each place: two, three and two classes of their own, of which "0" is in two places.
PLACES = {"sea": [0, 1], "hill": [0, 2, 3], "lab": [4, 5]}


@pytest.fixture
def unequal(tmp_path, monkeypatch, prepared_of):
    """unequal("scenario=class") -> a trained run on three places with their own classes."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    cells = [(place, k) for place, classes in PLACES.items() for k in classes for _ in range(4)]
    arrays = {
        "x": random.normal(size=(len(cells), 5)), "y": np.array([k for _, k in cells]),
        "task": np.array([place for place, _ in cells]),
    }  # fmt: skip
    np.savez("my.npz", **{f"{name}_{part}": v for name, v in arrays.items() for part in ("train", "test")})
    small = ("iterations=2", "model.widths=[4]", "device=cpu", "pictures=false")

    def trained(*typed):
        run = prepared_of("dataset=arrays", "dataset.file=my.npz", "split=domains", *small, *typed)
        train_run(run, quiet=True)
        return run

    return trained


@pytest.mark.parametrize("typed", [("scenario=class",), ("scenario=task",), ("scenario=class", "first_tasks=2")])
def test_tasks_are_named_and_guessing_is_as_among_their_own_classes(unequal, typed):
    run = unequal(*typed)
    table = pd.read_csv(run.directory / "tasks.csv", dtype=str)
    names = ["hill", "lab", "sea"][: 2 if len(typed) > 1 else 3]
    assert list(map(tuple, table.to_numpy())) == [
        (str(t), str(k), place) for t, place in enumerate(names, 1) for k in PLACES[place]
    ]
    assert task_names(run.directory) == dict(enumerate(names, 1))
    assert guessing_accuracy(run.directory) == pytest.approx(run.chance)
    summary = pd.read_csv(run.directory / "summary.csv")
    said = "the tasks differ in size (2 to 3 classes, 8 to 12 test samples a task)" in str(summary.at[0, "warnings"])
    assert said == ("scenario=class" in typed)


def test_runs_of_an_earlier_version_have_no_such_file(unequal):
    run = unequal("scenario=class")
    (run.directory / "tasks.csv").unlink()
    assert guessing_accuracy(run.directory) == pytest.approx(1 / 7) and task_names(run.directory) == {}


def test_the_tasks_of_a_run_in_the_order_of_the_seed(unequal):
    run = unequal("scenario=task", "split.order=seed", "seed=3")
    domains = pd.read_csv(run.directory / "tasks.csv").drop_duplicates("task")["domain"].tolist()
    first = {run.images.domains[k] for k in run.images.domain[run.stream.train[0]].tolist()}
    assert sorted(domains) == ["hill", "lab", "sea"] and first == {domains[0]}
