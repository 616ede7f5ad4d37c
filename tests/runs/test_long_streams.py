"""Many short tasks: how they are drawn, what is shown of them, and that no task costs more than another."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import live
from outcomes import outcome

from clrun.results import plots, run_files
from clrun.results.thinning import ALL_TASKS, SOME_TASKS, remark, shown_tasks
from clrun.runs import train
from clrun.runs.checkpointer import outcome_arrays, outcome_notes
from clrun.system.errors import UsageError
from clrun.terminal import run_tables

LONG = ("split=permuted", "scenario=domain", "stream=online", "split.period=20", "batch_size=10")


def test_each_task_has_samples_of_its_own(prepared_of):
    stream = prepared_of("strategy=finetune", *LONG, "tasks=6").stream
    assert [len(pool.unique()) for pool in stream.train] == [20] * 6
    assert len(torch.cat(stream.train).unique()) > 80  # drawn for each task
    again = prepared_of("strategy=er", *LONG, "tasks=6").stream
    assert all(torch.equal(a, b) for a, b in zip(stream.train, again.train, strict=True))
    with pytest.raises(UsageError, match="a task has 1347 training samples"):
        prepared_of("strategy=finetune", *LONG[:-2], "split.period=2000")


def test_relabelled_tasks_exchange_all_labels(prepared_of):
    prepared = prepared_of("strategy=finetune", "split=relabelled", "scenario=domain", "tasks=30", "split.period=9")
    labels = prepared.stream.tables.label
    assert labels[0].tolist() == [*range(10)]
    assert torch.equal(labels.sort(1).values, torch.arange(10).expand(30, 10))
    assert len(labels.unique(dim=0)) > 25
    assert prepared.stream.names == [f"label {i}" for i in range(10)]
    with pytest.raises(UsageError, match="type scenario=domain"):
        prepared_of("strategy=finetune", "split=relabelled", "scenario=class")


@pytest.mark.parametrize("chunk", [50, 10_000])
def test_tasks_are_answered_together_as_they_are_alone(stack_of, chunk):
    """Two runs with tasks of unequal size: whatever fits into one forward pass, the counts are the same."""
    stack = stack_of("strategy=er", "scenario=class", seeds=(0, 1))
    run, _ = stack.learn(stack.initialize(), 0)
    whole = stack.evaluator.evaluate(run, 0, "test")
    parts = replace(stack.evaluator, chunk_size=chunk).evaluate(run, 0, "test")
    assert torch.equal(parts.correct, whole.correct)
    assert np.array_equal(parts.pairs, whole.pairs)
    alone = replace(stack.evaluator, chunk_size=90).together("test")
    assert sorted(task for tasks in alone for task in tasks) == [*range(5)]
    assert stack.evaluator.together("test") == [[*range(5)]]


@pytest.mark.parametrize("strategy", ["packnet", "hat", "xdg", "separate"])
def test_a_strategy_with_answers_of_its_own_is_asked_one_task_at_a_time(stack_of, strategy):
    """packnet answers a batch by the weights of the first sample's task, and a strategy of a user's may do so."""
    stack = stack_of(f"strategy={strategy}", "scenario=task")
    assert stack.evaluator.together("test") == [[task] for task in range(5)]


def test_tables_that_take_long_are_written_less_often(tmp_path, monkeypatch):
    made = outcome(tmp_path)
    times = iter([0.0, 1.0, 40.0, 60.0, 60.5])  # the first writing takes a second, so the next one is due after 50
    written = []
    for _ in range(3):
        before = made.written_at
        run_files.write_progress_if_due([made], clock=lambda: next(times))
        written.append(made.written_at != before)
    assert written == [True, False, True]


def test_the_notes_of_a_checkpoint_do_not_grow_with_the_square_of_tasks(tmp_path):
    made = outcome(tmp_path)
    made.correct = np.zeros((801, 800), int)
    assert len(str(outcome_notes(made))) < 5000
    arrays = outcome_arrays(made)
    made.correct[0, 0] = 7
    assert arrays["outcome.correct"][0, 0] == 0  # a copy


# ---------------------------------------------------------------- what is shown


@pytest.mark.parametrize("tasks", [1, 5, ALL_TASKS, ALL_TASKS + 1, 800])
def test_some_tasks_of_many_are_shown(tasks):
    shown = shown_tasks(tasks)
    assert shown[0] == 1
    assert shown[-1] == tasks
    assert shown == sorted({*shown})
    assert len(shown) == (tasks if tasks <= ALL_TASKS else SOME_TASKS)
    assert remark(tasks) == ("" if tasks <= ALL_TASKS else f"{SOME_TASKS} of {tasks} tasks")


def test_a_terminal_shows_some_of_many_tasks_and_says_so():
    tasks = 100
    matrix = pd.DataFrame(np.full((tasks + 1, tasks), 0.5), columns=[f"task_{k}" for k in range(1, tasks + 1)])
    matrix.insert(0, "after_task", range(tasks + 1))
    cells = run_tables.matrix_table(matrix.assign(average=0.5), {})
    assert cells.title == "accuracy in percent (12 of 100 tasks; accuracy_matrix.csv has all)"
    assert len(cells.columns) == 1 + SOME_TASKS + 1
    assert [row[0] for row in cells.rows] == ["untrained", *(f"task {k}" for k in shown_tasks(tasks))]
    forgetting = pd.DataFrame({"task": [*range(1, tasks + 1), "average"], "forgetting": 0.1})
    table = run_tables.forgetting_table(forgetting, {})
    assert [row[0] for row in table.rows] == [*map(str, shown_tasks(tasks)), "average"]
    assert "forgetting.csv has all" in table.title
    figure = plots.tasks_figure(matrix.assign(average=0.5))
    (axes,) = figure.axes
    assert len(axes.lines) == SOME_TASKS + 1  # and the average
    assert axes.get_legend().get_title().get_text() == "12 of 100 tasks"


@pytest.mark.slow  # 110 tasks
def test_the_files_of_a_long_run_are_whole(prepared_of, tmp_path):
    random = np.random.RandomState(0)
    parts = {f"{kind}_{part}": random.rand(n, 4) for part, n in (("train", 60), ("test", 4)) for kind in "x"}
    np.savez(tmp_path / "tiny.npz", **parts, y_train=np.arange(60) % 2, y_test=np.arange(4) % 2)
    tiny = ("dataset=arrays", f"dataset.file={tmp_path / 'tiny.npz'}", "model.widths=[4]", "device=cpu")
    prepared = prepared_of("strategy=finetune", *LONG, *tiny, "tasks=110")
    train.train_run(prepared, quiet=True)
    matrix = pd.read_csv(prepared.directory / "accuracy_matrix.csv")
    assert matrix.filter(regex=r"^task_\d+$").shape == (111, 110)
    online = pd.read_csv(prepared.directory / "online_accuracy.csv")
    assert online["samples"].tolist() == [20] * 110 + [2200]
    assert (prepared.directory / "online_accuracy.png").is_file()
    assert not (prepared.directory / "confusion_over_tasks.csv").exists()  # it would have a row per pair, task and task


def test_state_does_not_grow_with_the_tasks_behind(stack_of):
    sizes = [stack_of("strategy=er", *LONG, f"tasks={tasks}", "epochs=null") for tasks in (3, 12)]
    found = [stack.state_bytes(live(stack)[0]) for stack in sizes]
    assert found[0] == found[1]
