"""measure=task_aware: answers by a task's own outputs alone, against a loop over samples."""

import pandas as pd
import pytest
import torch
from conftest import live
from interrupting import SHORT_BLOCKS, InterruptingProgress, Killed

from clrun.runs import train
from clrun.system.errors import UsageError

SMALL = ("strategy=er", "memory_size=4", "scenario=class", "tasks=5", "iterations=6", "batch_size=8")
AWARE = (*SMALL, "measure=task_aware")


@pytest.mark.parametrize("active", ["seen", "all"])
@pytest.mark.parametrize("split", ["classes", "permuted"])
def test_a_stack_equals_a_loop_over_samples(stack_of, active, split):
    """With drawn orders of classes, so that tasks of different runs have different outputs."""
    wanted = (*AWARE, f"active={active}", f"split={split}")
    together = stack_of(*wanted, seeds=(0, 1))
    ends, reports = live(together)
    found = reports[-1].task_aware
    for r, stream in enumerate(together.streams):
        data, labels = together.strategy.data, stream.labels
        for task, pool in enumerate(stream.test):
            z = together.strategy.net(ends.theta[r], data.inputs(stream.tables, pool, torch.full_like(pool, task)))
            own = sorted(labels[task].values())
            right = [
                max(own, key=lambda o, row=row: float(row[o])) == labels[task][int(data.labels[image])]
                for row, image in zip(z, pool.tolist(), strict=True)
            ]
            assert found[r, task] == sum(right)
    assert (found >= reports[-1].correct).all() and (found > reports[-1].correct).any()


def test_the_files_of_a_run(prepared_of):
    """Training is as without it, and a run that is killed writes the same file."""
    common = ("plots=false", "device=cpu", "checkpoint_every=1e-9")
    prepared, plain = prepared_of(*AWARE, *common), prepared_of(*SMALL, *common)
    with pytest.raises(Killed):
        train.train_runs([prepared], progress=InterruptingProgress(20, Killed), trainer=SHORT_BLOCKS)
    for one in (prepared, plain):
        train.train_run(one, quiet=True, trainer=SHORT_BLOCKS)
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
