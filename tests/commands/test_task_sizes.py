"""Runs from the command line: what is warned of, and what their files say of tasks that differ in size."""

import numpy as np
import pandas as pd
import pytest
from helpers import summaries

UNEQUAL = ("split.classes=[[0,1,2,3,4,5],[6,7],[8,9]]", "epochs=2", "strategy=finetune")


def test_unequal_tasks_are_warned_of_and_scored_by_both_definitions(clrun, tmp_path):
    """overall_accuracy is sum(correct) / sum(n) of accuracy.csv, and the mean over the tasks is another number."""
    _, out, _ = clrun(*UNEQUAL, "scenario=class", f"outputs={tmp_path}")
    said = "Warning: the tasks differ in size (2 to 6 classes,"
    assert out.count(said) == 1 and "overall accuracy" in out
    (folder,) = [path.parent for path in summaries("finetune", outputs=tmp_path)]
    cells = pd.read_csv(folder / "accuracy.csv")
    last = cells[cells["after_task"] == 3]
    summary = pd.read_csv(folder / "summary.csv").iloc[0]
    assert summary["overall_accuracy"] == pytest.approx(last["correct"].sum() / last["n"].sum())
    assert abs(summary["overall_accuracy"] - summary["average_accuracy"]) > 0.01
    assert "the tasks differ in size" in summary["warnings"]
    assert "overall: over all test samples" in out and "overall incremental accuracy" in out
    so_far = cells[(cells["after_task"] >= cells["eval_task"])].groupby("after_task")[["correct", "n"]].sum()
    assert summary["overall_incremental_accuracy"] == pytest.approx((so_far["correct"] / so_far["n"]).mean())


@pytest.mark.parametrize("typed", [("scenario=class", "epochs=1"), (*UNEQUAL, "scenario=task")])
def test_equal_tasks_and_other_scenarios_are_not_warned_of(clrun, tmp_path, typed):
    assert "differ in size" not in "".join(clrun(*typed, f"outputs={tmp_path}")[1:])


@pytest.mark.parametrize("validation", [0, 0.2])
def test_what_may_not_be_answered_is_empty(clrun, tmp_path, validation):
    """scenario=class active=seen: a later task scores 0 by construction; row 0, of the untrained network, is there."""
    typed = ("scenario=class", "active=seen", "epochs=1", "evaluate_every=5", f"validation={validation}")
    clrun(*typed, f"outputs={tmp_path}")
    (folder,) = [path.parent for path in summaries(outputs=tmp_path)]
    for name in ["accuracy_matrix.csv", *(["validation_matrix.csv"] if validation else [])]:
        matrix = pd.read_csv(folder / name).drop(columns=["after_task", "average", "overall"]).to_numpy()
        later = np.triu(np.ones((5, 5), bool), 1)
        assert np.isnan(matrix[1:][later]).all()
        assert np.isfinite(matrix[0]).all() and np.isfinite(matrix[1:][~later]).all()
    assert len(pd.read_csv(folder / "accuracy.csv")) == 5 + 15
    within = pd.read_csv(folder / "accuracy_over_training.csv")
    barred = (within["stage"] >= 1) & (within["eval_task"] > within["stage"])
    assert (within["accuracy"].isna() == barred).all() and barred.sum() > 10 and (within["stage"] == 0).sum() == 5
    assert (folder / "accuracy_matrix.png").is_file()
    forgetting = pd.read_csv(folder / "summary.csv").iloc[0]["forgetting"]
    assert forgetting == pytest.approx(pd.read_csv(folder / "forgetting.csv")["forgetting"].iloc[-1])


@pytest.mark.parametrize("typed", [["active=all"], ["active=seen", "strategy=joint"]])
def test_what_may_be_answered_is_there(clrun, tmp_path, typed):
    """All outputs may answer from the start, and joint training has seen all tasks at its first evaluation."""
    clrun("scenario=class", "epochs=1", "evaluate_every=5", *typed, f"outputs={tmp_path}")
    (file,) = tmp_path.glob("runs/*/*/accuracy_over_training.csv")
    assert pd.read_csv(file)["accuracy"].notna().all()
