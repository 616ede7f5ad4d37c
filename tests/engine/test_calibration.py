"""measure=calibration: the confidence of the answers, by bins, against a loop over samples."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import live
from interrupting import SHORT_BLOCKS, InterruptingProgress, Killed

from clrun.engine.evaluation import binned
from clrun.runs import train

SMALL = ("strategy=finetune", "scenario=class", "tasks=2", "iterations=20", "batch_size=8", "measure=calibration")


def test_bins_by_hand():
    """Bin m is (m/15, (m+1)/15]: 0 and 1/15 are in the first, 1 in the last; those not there count nowhere."""
    confidence = torch.tensor([[0.0, 1 / 15, 0.0667, 1.0, 0.5, math.nan]], dtype=torch.float64)
    correct = torch.tensor([[True, False, True, True, True, True]])
    valid = torch.tensor([[True, True, True, True, False, True]])
    found = binned(confidence, correct, valid)[0]
    assert found[0].tolist() == pytest.approx([3, 1 / 15, 2]) and found[1].tolist() == pytest.approx([1, 0.0667, 1])
    assert found[14].tolist() == [1, 1, 1] and found.sum(0)[0] == 5


def test_a_stack_equals_a_loop_over_samples(stack_of):
    together = stack_of(*SMALL, seeds=(0, 1))
    _, reports = live(together)
    found = reports[1].calibration
    for r in range(2):
        alone = stack_of(*SMALL, seeds=[r])
        one, of_one = live(alone)
        torch.testing.assert_close(found[r], of_one[1].calibration[0])
        data, stream = alone.strategy.data, alone.streams[0]
        for task, pool in enumerate(stream.test):
            x = data.inputs(alone.tables, pool, torch.full_like(pool, task))
            p = alone.strategy.net(one.theta, x).softmax(-1).double().numpy()
            bins = np.zeros((15, 3))
            for row, image in zip(p, pool.tolist(), strict=True):
                label = alone.tables.label[task, data.labels[image]]
                bins[math.ceil(row.max() * 15) - 1] += 1, row.max(), row.argmax() == int(label)
            np.testing.assert_allclose(found[r, task].numpy(), bins, rtol=1e-9)


def test_the_file_of_a_run(prepared_of):
    """Accuracies are those of accuracy.csv, and a run that is killed writes the same file."""
    prepared = prepared_of(*SMALL, "plots=false", "device=cpu", "checkpoint_every=1e-9")
    with pytest.raises(Killed):
        train.train_runs([prepared], progress=InterruptingProgress(8, Killed), trainer=SHORT_BLOCKS)
    train.train_run(prepared, quiet=True, trainer=SHORT_BLOCKS)
    table = pd.read_csv(prepared.directory / "calibration.csv", dtype={"eval_task": str})
    cells = table[["after_task", "eval_task"]].to_numpy().tolist()
    assert cells == [[1, "1"], [1, "all"], [2, "1"], [2, "2"], [2, "all"]]
    matrix = pd.read_csv(prepared.directory / "accuracy_matrix.csv")
    assert table["accuracy"].tolist()[2:] == pytest.approx(matrix[["task_1", "task_2", "overall"]].iloc[-1].tolist())
    assert ((table["ece"] > 0) & (table["ece"] <= 1)).all()
    assert (table["ece"] >= (table["accuracy"] - table["confidence"]).abs() - 1e-12).all()
