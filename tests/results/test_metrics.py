"""metrics.py against matrices worked by hand and against an independent loop over random ones."""

import math
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from clrun.results import columns, metrics

NAN = math.nan

# rows: untrained, after task 1, 2, 3; columns: tasks
THREE = np.array(
    [
        [0.10, 0.20, 0.30],
        [0.90, 0.25, 0.20],
        [0.95, 0.80, 0.40],
        [0.60, 0.85, 0.70],
    ]
)
TWO = np.array([[0.5, 0.5], [0.9, 0.6], [0.4, 1.0]])
ONE = np.array([[0.5], [0.75]])


@pytest.fixture(autouse=True)
def no_warnings():
    """A nan from 0/0 or from the mean of nothing comes with a RuntimeWarning: none of these may warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def same(found, expected) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12, equal_nan=True)


def test_three_tasks_by_hand():
    same(metrics.averages_so_far(THREE), [0.2, 0.9, 0.875, 2.15 / 3])
    assert metrics.average_accuracy(THREE) == pytest.approx(2.15 / 3)
    assert metrics.average_incremental_accuracy(THREE) == pytest.approx((0.9 + 0.875 + 2.15 / 3) / 3)
    assert metrics.learning_accuracy(THREE) == pytest.approx((0.9 + 0.8 + 0.7) / 3)
    same(metrics.best_accuracy(THREE), [0.95, 0.80, 0.70])  # task 1 was best after task 2
    same(metrics.forgetting(THREE), [0.35, -0.05, NAN])  # the second task improved: negative, not clamped
    same(metrics.backward_transfer(THREE), [-0.30, 0.05, NAN])
    same(metrics.forward_transfer(THREE), [NAN, 0.05, 0.10])
    found = metrics.summary_metrics(THREE)
    same([found["forgetting"], found["backward_transfer"], found["forward_transfer"]], [0.15, -0.125, 0.075])
    assert tuple(found) == columns.SUMMARY_METRICS


def test_two_tasks_by_hand():
    """The newest old task counts: with two tasks it is the only one (two public libraries report 0 here)."""
    same(metrics.forgetting(TWO), [0.5, NAN])
    same(metrics.backward_transfer(TWO), [-0.5, NAN])
    same(metrics.forward_transfer(TWO), [NAN, 0.1])
    assert metrics.summary_metrics(TWO)["forgetting"] == pytest.approx(0.5)


def test_one_task_has_nothing_to_forget():
    found = metrics.summary_metrics(ONE)
    assert found["average_accuracy"] == found["average_incremental_accuracy"] == found["learning_accuracy"] == 0.75
    assert all(math.isnan(found[name]) for name in ("forgetting", "backward_transfer", "forward_transfer"))
    table = metrics.forgetting_table(ONE)
    assert list(table["task"]) == [1, "average"]
    same(table.iloc[:, 1:].to_numpy(float), [[0.5, 0.75, 0.75, 0.75, NAN, NAN, NAN]] * 2)


@pytest.mark.parametrize("tasks", [2, 3, 5, 10])
def test_every_old_task_counts_once(tasks):
    """peers.md: all old tasks 90 -> 40 must be 50 whatever T; LibContinual and Continuum said 0, 25, 37.5, 44.4."""
    accuracy = np.full((tasks + 1, tasks), 0.9)
    accuracy[-1, :-1] = 0.4
    found = metrics.summary_metrics(accuracy)
    assert found["forgetting"] == pytest.approx(0.5)
    assert found["backward_transfer"] == pytest.approx(-0.5)


def test_improvement_is_negative_forgetting():
    """peers.md: [[50], [60, 50], [70, 60, 50]] is forgetting 0 in Mammoth, whose maximum includes the final row."""
    accuracy = np.array([[0.0, 0.0, 0.0], [0.5, 0.0, 0.0], [0.6, 0.5, 0.0], [0.7, 0.6, 0.5]])
    same(metrics.forgetting(accuracy), [-0.1, -0.1, NAN])
    assert metrics.summary_metrics(accuracy)["backward_transfer"] == pytest.approx(0.15)


def test_untrained_row_is_never_the_best():
    accuracy = np.array([[1.0, 1.0], [0.5, 0.2], [0.6, 0.5]])
    same(metrics.forgetting(accuracy), [-0.1, NAN])


def test_forgetting_table():
    table = metrics.forgetting_table(THREE)
    assert list(table.columns) == [
        "task",
        "accuracy_untrained",
        "accuracy_when_learned",
        "best_accuracy",
        "final_accuracy",
        "forgetting",
        "backward_transfer",
        "forward_transfer",
    ]
    assert list(table["task"]) == [1, 2, 3, "average"]
    same(list(table["forgetting"]), [0.35, -0.05, NAN, 0.15])
    same(list(table["forward_transfer"]), [NAN, 0.05, 0.10, 0.075])
    same(list(table["best_accuracy"]), [0.95, 0.8, 0.7, 2.45 / 3])


def test_undefined_transfers_are_empty():
    no_forward = metrics.forgetting_table(THREE, forward_transfer_defined=False)
    assert no_forward["forward_transfer"].isna().all()
    assert no_forward["forgetting"].notna().sum() == 3
    joint = metrics.forgetting_table(THREE, forgetting_defined=False)
    assert joint[["forgetting", "backward_transfer", "forward_transfer"]].isna().all(axis=None)
    assert joint["final_accuracy"].notna().all()
    assert math.isnan(metrics.summary_metrics(THREE, forward_transfer_defined=False)["forward_transfer"])
    assert math.isnan(metrics.summary_metrics(THREE, forgetting_defined=False)["backward_transfer"])


def test_unmeasured_rows_leave_what_needs_them_empty():
    """A run that diverged in its last task: nothing final, but what it had learnt before stands."""
    accuracy = THREE.copy()
    accuracy[3] = NAN
    assert all(math.isnan(value) for name, value in metrics.summary_metrics(accuracy).items() if "forward" not in name)
    same(metrics.forward_transfer(accuracy), [NAN, 0.05, 0.10])
    table = metrics.forgetting_table(accuracy)
    same(list(table["accuracy_when_learned"]), [0.9, 0.8, NAN, NAN])  # as in summary.csv
    assert table["forgetting"].isna().all()


def test_accuracy_of_counts():
    correct = np.array([[0, 3], [5, -1]])
    same(metrics.accuracy_matrix(correct, np.array([5, 12])), [[0, 0.25], [1, NAN]])
    same(metrics.accuracy_matrix(correct, np.array([5, 0])), [[0, NAN], [1, NAN]])


def brute_force(accuracy: list[list[float]]) -> dict[str, float]:
    """The definitions again, task by task in plain loops: no numpy, no shared code."""
    last = len(accuracy) - 1
    drops, changes, gains, increments, learnt = [], [], [], [], []
    for task in range(1, last + 1):
        learnt.append(accuracy[task][task - 1])
        increments.append(sum(accuracy[task][:task]) / task)
        if task < last:
            history = [accuracy[row][task - 1] for row in range(1, last)]
            drops.append(sorted(history)[-1] - accuracy[last][task - 1])
            changes.append(accuracy[last][task - 1] - accuracy[task][task - 1])
        if task > 1:
            gains.append(accuracy[task - 1][task - 1] - accuracy[0][task - 1])
    lists = [accuracy[last], increments, learnt, drops, changes, gains]
    return {
        name: sum(values) / len(values) if values else NAN
        for name, values in zip(columns.SUMMARY_METRICS, lists, strict=True)
    }


fractions = st.floats(0, 1, allow_subnormal=False)
matrices = st.integers(1, 6).flatmap(lambda tasks: arrays(float, (tasks + 1, tasks), elements=fractions))


@settings(deadline=None, max_examples=150)
@given(matrices)
def test_against_a_loop(accuracy):
    before = accuracy.copy()
    found, expected = metrics.summary_metrics(accuracy), brute_force(accuracy.tolist())
    assert found.keys() == expected.keys()
    same(list(found.values()), list(expected.values()))
    average = metrics.forgetting_table(accuracy).iloc[-1]
    for name in ("forgetting", "backward_transfer", "forward_transfer"):
        same(average[name], expected[name])
    same(accuracy, before)


# Continual evaluation


def curve(*rows: tuple[int, int, int, float]) -> list[dict]:
    return [dict(zip(("step", "stage", "eval_task", "accuracy"), row, strict=True)) for row in rows]


def test_continual_evaluation_by_hand():
    rows = curve(
        (0, 0, 1, 0.00),  # the untrained network: counts nowhere
        (0, 0, 2, 0.00),
        (5, 1, 1, 0.05),  # task 1 while it is itself being learnt: counts nowhere
        (15, 2, 1, 0.50),
        (15, 2, 2, 0.10),
        (25, 3, 1, 0.70),
        (25, 3, 2, 0.30),
        (25, 3, 3, 0.00),
    )
    minimum = (0.50 + 0.30) / 2
    assert metrics.min_accuracy(THREE, rows) == pytest.approx(minimum)
    assert metrics.worst_case_accuracy(THREE, rows) == pytest.approx(0.70 / 3 + 2 / 3 * minimum)
    gaps = metrics.stability_gaps(THREE, pd.DataFrame(rows))
    same(gaps, [[NAN, NAN, NAN], [0.90 - 0.50, NAN, NAN], [0.95 - 0.60, 0.80 - 0.30, NAN]])
    assert metrics.stability_gap(THREE, rows) == pytest.approx((0.40 + (0.35 + 0.50) / 2) / 2)


def test_task_ends_count_as_evaluations():
    """Without a row within the tasks the minima are those of the matrix; old task 2 is first seen in the final row."""
    assert metrics.min_accuracy(THREE, []) == pytest.approx((0.60 + 0.85) / 2)
    assert metrics.stability_gap(THREE, []) == pytest.approx((-0.05 + (0.35 - 0.05) / 2) / 2)


def test_continual_evaluation_of_one_task():
    found = metrics.continual_metrics(ONE, curve((1, 1, 1, 0.1)))
    assert tuple(found) == columns.CONTINUAL_METRICS
    same(list(found.values()), [NAN, 0.75, NAN])


def test_continual_evaluation_of_an_unmeasured_end():
    accuracy = THREE.copy()
    accuracy[3] = NAN
    assert all(math.isnan(value) for value in metrics.continual_metrics(accuracy, curve((15, 2, 1, 0.5))).values())


@settings(deadline=None, max_examples=60)
@given(matrices, st.data())
def test_continual_evaluation_against_a_loop(accuracy, data):
    tasks = accuracy.shape[1]
    measured = data.draw(arrays(float, (tasks, 3, tasks), elements=fractions))
    rows = [(3 * s + i, s + 1, j + 1, measured[s, i, j]) for s, i, j in np.ndindex(tasks, 3, tasks)]
    worst, drops = [], []
    for old in range(tasks - 1):
        worst.append(min([min(*measured[s, :, old], accuracy[s + 1, old]) for s in range(old + 1, tasks)]))
    for new in range(1, tasks):
        low = [min(*measured[new, :, old], accuracy[new + 1, old]) for old in range(new)]
        drops.append(sum(accuracy[new, old] - low[old] for old in range(new)) / new)
    minimum = sum(worst) / len(worst) if worst else NAN
    total = accuracy[-1, -1] / tasks + (minimum * (tasks - 1) / tasks if worst else 0)
    expected = [minimum, total, sum(drops) / len(drops) if drops else NAN]
    same(list(metrics.continual_metrics(accuracy, curve(*rows)).values()), expected)


@pytest.mark.parametrize(
    ("accuracy", "joint", "finetune", "share"),
    [
        (0.7, 0.9, 0.5, 0.5),
        (0.4, 0.9, 0.5, -0.25),
        (0.7, 0.5, 0.5, NAN),
        (0.7, 0.4, 0.5, NAN),
        (NAN, 0.9, 0.5, NAN),
        (0.7, NAN, 0.5, NAN),
    ],
)
def test_gap_closed(accuracy, joint, finetune, share):
    assert metrics.gap_closed(accuracy, finetune, gap=joint - finetune) == pytest.approx(share, nan_ok=True)


def test_overall_accuracy_by_hand():
    """Six samples of two tasks: 1 of 4 and 2 of 2 are 3 of 6, and 0.625 as the mean over the tasks."""
    correct, counts = np.array([[0, 0], [4, 0], [1, 2]]), np.array([4, 2])
    assert metrics.overall_accuracy(correct, counts) == 0.5
    assert metrics.average_accuracy(metrics.accuracy_matrix(correct, counts)) == 0.625
    assert math.isnan(metrics.overall_accuracy(np.array([[0, 0], [4, 0], [-1, -1]]), counts))


@given(st.data())
def test_both_definitions_agree_where_tasks_are_equal(data):
    """For any counts of equal tasks, also of a run that goes on from some of them; and with unequal ones, over a loop
    through all samples."""
    tasks = data.draw(st.integers(1, 5))
    learnt = data.draw(st.integers(0, tasks - 1))
    equal = data.draw(st.booleans())
    counts = (
        np.full(tasks, 12)
        if equal
        else np.array(data.draw(st.lists(st.integers(1, 12), min_size=tasks, max_size=tasks)))
    )
    correct = np.array([[data.draw(st.integers(0, int(n))) for n in counts] for _ in range(tasks + 1)])
    correct[:learnt] = -1
    found = metrics.overall_metrics(correct, counts, True, learnt)
    stages = range(max(1, learnt), tasks + 1)
    samples = [
        [right for j in range(k) for right in [1] * correct[k, j] + [0] * (counts[j] - correct[k, j])] for k in stages
    ]
    assert found["overall_incremental_accuracy"] == pytest.approx(np.mean([np.mean(one) for one in samples]))
    if equal:
        accuracy = metrics.from_start(metrics.accuracy_matrix(correct, counts), learnt)
        assert found["overall_accuracy"] == pytest.approx(metrics.average_accuracy(accuracy))
        mean = metrics.average_incremental_accuracy(accuracy, learnt)
        assert found["overall_incremental_accuracy"] == pytest.approx(mean)


def test_calibration_by_hand():
    """Four samples of confidence 0.9, three of them right, and one of 0.5 that is wrong: 4/5 |0.75 - 0.9| + 1/5 0.5."""
    bins = np.zeros((2, 15, 3))
    bins[0, 13] = 4, 3.6, 3
    bins[1, 7] = 1, 0.5, 0
    assert metrics.expected_calibration_error(bins.sum(0)) == pytest.approx(0.8 * 0.15 + 0.2 * 0.5)
    rows = metrics.calibration_rows(2, bins)
    assert [(row["eval_task"], row["n"]) for row in rows] == [("1", 4), ("2", 1), ("all", 5)]
    assert [row["ece"] for row in rows] == pytest.approx([0.15, 0.5, 0.22])
    assert rows[2]["accuracy"] == 0.6 and rows[2]["confidence"] == pytest.approx(0.82)
    assert math.isnan(metrics.expected_calibration_error(np.zeros((15, 3))))
    assert metrics.calibration_rows(1, np.zeros((1, 15, 3))) == []


def test_learning_accuracy_is_the_same_in_both_files_after_a_divergence():
    accuracy = np.array([[0.5, 0.5, 0.5], [0.9, 0.4, 0.3], [0.8, 0.7, 0.2], [np.nan] * 3])
    table = metrics.forgetting_table(accuracy)
    assert math.isnan(metrics.summary_metrics(accuracy)["learning_accuracy"])
    assert math.isnan(table["accuracy_when_learned"].iloc[-1])


def test_joint_has_no_average_incremental_accuracy():
    accuracy = np.array([[0.5, 0.5], [0.9, 0.8], [0.9, 0.8]])
    assert math.isnan(metrics.summary_metrics(accuracy, forgetting_defined=False)["average_incremental_accuracy"])
    assert metrics.summary_metrics(accuracy)["average_incremental_accuracy"] == pytest.approx((0.9 + 0.85) / 2)
