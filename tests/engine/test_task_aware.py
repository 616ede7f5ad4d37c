"""measure=task_aware: answers by a task's own outputs alone, against a loop over samples."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from interrupting import SHORT_BLOCKS, InterruptingProgress, Killed
from torch.utils._pytree import tree_map

from clrun.results import metrics
from clrun.runs import train
from clrun.system.errors import UsageError

SMALL = ("strategy=er", "memory_size=4", "scenario=class", "tasks=5", "iterations=6", "batch_size=8")
AWARE = (*SMALL, "measure=task_aware")


@pytest.mark.parametrize("strategy", ["er", "ncm", "icarl", "imm"])
@pytest.mark.parametrize("active", ["seen", "all"])
@pytest.mark.parametrize("split", ["classes", "permuted"])
def test_a_stack_equals_a_loop_over_samples(stack_of, strategy, active, split):
    """With drawn orders of classes, so that tasks of different runs have different outputs, and after every task."""
    own = [one for one in AWARE if not one.startswith(("strategy", "memory"))]
    wanted = (*own, f"strategy={strategy}", f"active={active}", f"split={split}")
    together = stack_of(*wanted, seeds=(0, 1))
    current = together.initialize()
    for stage in range(5):
        current, report = together.learn(current, stage)
        for r in range(2):
            found = [right_by_own_outputs(together, current, r, task) for task in range(5)]
            assert report.task_aware[r].tolist() == found
        assert (report.task_aware >= report.correct).all()
    if (strategy, split) != ("ncm", "permuted"):  # where no sample is taken for one of another task
        assert (report.task_aware > report.correct).any()


def right_by_own_outputs(stack, current, r, task):
    """How many test samples of a task have their largest score, among the outputs of the task, at the right one."""
    strategy, stream, state = stack.strategy, stack.streams[r], stack.states(current)[r]
    data, labels = strategy.data, stream.labels[task]
    pool = stream.test[task]
    hp = tree_map(lambda v: v[r], stack.hp)
    t = torch.full_like(pool, task)
    theta = strategy.deploy(current.evaluated[r], state, hp)
    z = strategy.scores(theta, state, hp, data.inputs(stream.tables, pool, t), t)
    own = sorted(labels.values())
    pairs = zip(z, pool.tolist(), strict=True)
    return sum(max(own, key=lambda o, row=row: float(row[o])) == labels[int(data.labels[i])] for row, i in pairs)


def test_the_files_of_a_run(prepared_of):
    """Training is as without it, and a run that is killed writes the same file."""
    common = ("plots=false", "device=cpu", "checkpoint_every=1e-9")
    prepared, plain = prepared_of(*AWARE, *common), prepared_of(*SMALL, *common)
    with pytest.raises(Killed):
        train.train_runs([prepared], progress=InterruptingProgress(20, Killed), trainer=SHORT_BLOCKS)
    for one in (prepared, plain):
        train.train_run(one, quiet=True, trainer=SHORT_BLOCKS)
    interrupted = (prepared.directory / "task_aware.csv").read_bytes()
    shutil.rmtree(prepared.directory)
    train.train_run(prepared, quiet=True, trainer=SHORT_BLOCKS)
    assert (prepared.directory / "task_aware.csv").read_bytes() == interrupted
    table = pd.read_csv(prepared.directory / "task_aware.csv")
    assert table[["after_task", "eval_task"]].to_numpy().tolist() == [
        [k, t] for k in range(1, 6) for t in range(1, k + 1)
    ]
    matrices = [pd.read_csv(one.directory / "accuracy_matrix.csv") for one in (prepared, plain)]
    pd.testing.assert_frame_equal(*matrices)
    assert table["accuracy"][0] == matrices[0]["task_1"][1]  # where the outputs of task 1 are all that have been seen
    summary = pd.read_csv(prepared.directory / "summary.csv").iloc[0]
    last = table[table["after_task"] == 5]
    assert summary["task_aware_accuracy"] == pytest.approx((last["correct"] / last["n"]).mean())
    assert summary["task_aware_accuracy"] > summary["average_accuracy"] + 0.2
    assert pd.isna(pd.read_csv(plain.directory / "summary.csv").iloc[0]["task_aware_accuracy"])


def test_joint_training_has_all_tasks(prepared_of):
    prepared = prepared_of(*AWARE[2:], "strategy=joint", "plots=false", "device=cpu")
    train.train_run(prepared, quiet=True)
    table = pd.read_csv(prepared.directory / "task_aware.csv")
    matrix = pd.read_csv(prepared.directory / "accuracy_matrix.csv")
    assert table["eval_task"].tolist() == [1, 2, 3, 4, 5] * (len(matrix) - 1)
    assert (table["accuracy"].to_numpy() >= matrix.filter(regex="task_").to_numpy()[1:].ravel()).all()


@pytest.mark.parametrize(("scenario", "reason"), [("task", "own outputs alone"), ("domain", "share their outputs")])
def test_other_scenarios_are_refused(settings_of, scenario, reason):
    with pytest.raises(UsageError, match=f"measure=task_aware: with scenario={scenario} .*{reason}.*scenario=class"):
        settings_of("measure=task_aware", f"scenario={scenario}")


def test_streams_whose_classes_come_back_are_refused(settings_of):
    with pytest.raises(UsageError, match="measure=task_aware: classes come back"):
        settings_of("measure=task_aware", "scenario=class", "stream=online", "split.circle=3", "tasks=3")


def test_a_task_of_one_class_is_left_out(prepared_of):
    """It would be right by itself; tasks 2 and 4 have one class."""
    sizes = ("split.sizes=[2,1,2,1,4]", "scenario=class", "strategy=finetune", "iterations=4", "measure=task_aware")
    prepared = prepared_of(*sizes, "plots=false", "device=cpu")
    train.train_run(prepared, quiet=True)
    table = pd.read_csv(prepared.directory / "task_aware.csv")
    assert table[table["after_task"] == 5]["eval_task"].tolist() == [1, 3, 5]
    summary = pd.read_csv(prepared.directory / "summary.csv").iloc[0]
    assert summary["task_aware_accuracy"] == pytest.approx(table["accuracy"][-3:].mean())


def test_rows_by_hand():
    """Tasks 2 (one output) and 3 (no samples) have no row; a run that has not come to the last task has no mean."""
    rows = metrics.task_aware_rows(4, [3, -1, 0, 1], np.array([4, 5, 0, 2]))
    assert [(row["eval_task"], row["accuracy"]) for row in rows] == [(1, 0.75), (4, 0.5)]
    assert metrics.task_aware_accuracy(rows, 4) == 0.625
    assert np.isnan(metrics.task_aware_accuracy(rows, 5))
