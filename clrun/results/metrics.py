"""The metrics of a run, one formula per function.

Everything starts from the accuracy matrix R, shape (T+1, T): R[k, j] is the accuracy, a fraction in [0, 1], on task j+1
after k tasks have been learnt; row 0 belongs to the untrained network; nan means "not measured". A metric that needs a
cell that was not measured is nan, and so is one that its definition leaves open (forgetting of the newest task, say);
nan becomes an empty cell in the files. Nothing is clamped: a task that improved has negative forgetting.

Sources
    Lopez-Paz & Ranzato 2017  Gradient Episodic Memory for Continual Learning, equations 2 to 4: ACC, BWT, FWT
    Rebuffi et al. 2017       iCaRL, experiments: average incremental accuracy (theirs is over all samples)
    Chaudhry et al. 2018      Riemannian Walk for Incremental Learning, "Forgetting Measure" (also in A-GEM, 2019)
    Riemer et al. 2019        Learning to Learn without Forgetting, experiments: learning accuracy
    Guo et al. 2017           On calibration of modern neural networks, equation 3: expected calibration error
    De Lange et al. 2023      Continual evaluation for lifelong learning (2205.13452): min-ACC, WC-ACC, stability gap
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from clrun.results.columns import FORGETTING_MEANINGS

FORGETTING_COLUMNS = tuple(FORGETTING_MEANINGS)

Accuracy = TypeVar("Accuracy", float, "pd.Series[float]")  # one, or one per run


def mean(values: np.ndarray) -> float:
    """Return the arithmetic mean; nan of an empty array, without NumPy's warning, and nan where any value is nan."""
    return float(values.mean()) if values.size else float("nan")


def accuracy_matrix(correct: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return R (T+1, T) from the numbers of correctly classified samples (T+1, T), -1 where not measured, and of all
    samples per task (T,); nan where not measured."""
    correct, counts = np.asarray(correct), np.asarray(counts)
    measured = (correct >= 0) & (counts > 0)
    return np.divide(correct, counts, out=np.full(correct.shape, np.nan), where=measured)


def from_start(accuracy: np.ndarray, learnt: int) -> np.ndarray:
    """Return R of a run that goes on from an earlier one, with the rows before its beginning as at its beginning.

    learnt: the tasks, the first ones, that the earlier run has learnt. R[learnt] is before any training by the run. So
    these tasks count as learnt there, and their forgetting is what the run itself has forgotten.
    """
    filled = accuracy.copy()
    filled[:learnt] = accuracy[learnt]
    return filled


def of_tasks(accuracy: np.ndarray, tasks: np.ndarray) -> np.ndarray:
    """Return R of some tasks alone; tasks: a mask (T,) bool. The rows after other tasks are left out, too, and the last
    row is the end of the run, which may lie after the last of these tasks."""
    kept = accuracy[np.concatenate([[True], tasks])][:, tasks]
    kept[-1] = accuracy[-1, tasks]
    return kept


def averages_so_far(accuracy: np.ndarray, at_once: bool = False, counted: np.ndarray | None = None) -> np.ndarray:
    """Return (T+1,): A_k = 1/k sum_{j<=k} R[k, j], the mean over the tasks learnt so far; A_0 is over all tasks.

    at_once: the first stage learns all tasks (joint training), so that every A_k is a mean over all tasks. counted: a
    mask (T,) bool of the tasks that count; None: all.
    """
    counted = np.ones(accuracy.shape[1], bool) if counted is None else counted
    learnt = [mean(row[counted] if at_once else row[:k][counted[:k]]) for k, row in enumerate(accuracy[1:], 1)]
    return np.array([mean(accuracy[0][counted]), *learnt])


def average_accuracy(accuracy: np.ndarray) -> float:
    """Return A_T = 1/T sum_j R[T, j]: every task counts the same, whatever its size (Lopez-Paz 2017, eq. 2)."""
    return mean(accuracy[-1])


def overall_so_far(correct: np.ndarray, counts: np.ndarray, at_once: bool = False) -> np.ndarray:
    """Return (T+1,): O_k = sum_{j<=k} correct[k, j] / sum_{j<=k} n_j, the accuracy over all samples of the tasks learnt
    so far, in which a task counts by its size; O_0 is over all tasks. It equals A_k where all sizes are equal.

    correct: numbers of samples (T+1, T), -1 where not measured; counts: n (T,), 0 for a task that does not count.
    at_once: as of `averages_so_far`.
    """
    correct, counts = np.asarray(correct), np.asarray(counts)
    tasks = len(counts)
    ends = [tasks if at_once or k == 0 else k for k in range(tasks + 1)]
    return np.array([overall_of(row[:end], counts[:end]) for row, end in zip(correct, ends, strict=True)])


def overall_of(correct: np.ndarray, counts: np.ndarray) -> float:
    """Return the share of correct ones in all samples of some tasks; nan where a task that has any was not measured, or
    where there are none."""
    there = counts > 0
    measured = there.any() and (correct[there] >= 0).all()
    return float(correct[there].sum() / counts[there].sum()) if measured else math.nan


def overall_accuracy(correct: np.ndarray, counts: np.ndarray) -> float:
    """Return O_T = sum_j correct[T, j] / sum_j n_j: the accuracy over all test samples, as of `overall_so_far`."""
    return overall_of(np.asarray(correct)[-1], np.asarray(counts))


def overall_incremental_accuracy(correct: np.ndarray, counts: np.ndarray, learnt: int = 0) -> float:
    """Return 1/T sum_k O_k, with O_k of `overall_so_far`: the average incremental accuracy of Rebuffi 2017, who take
    the accuracy over all test samples of the classes seen so far. The rows that count are those of
    `average_incremental_accuracy`. learnt: tasks that an earlier run has learnt; nothing was measured before them."""
    correct, tasks = np.asarray(correct), np.asarray(counts) > 0
    of_some = of_tasks(from_start(correct, learnt), tasks)
    return mean(overall_so_far(of_some, np.asarray(counts)[tasks])[max(1, int(tasks[:learnt].sum())) :])


def overall_metrics(
    correct: np.ndarray, counts: np.ndarray, forgetting_defined: bool = True, learnt: int = 0
) -> dict[str, float]:
    """Return the columns OVERALL_METRICS by name, from numbers of samples. The incremental one is nan where forgetting
    is not defined, as that of `summary_metrics`."""
    incremental = overall_incremental_accuracy(correct, counts, learnt) if forgetting_defined else math.nan
    return {"overall_accuracy": overall_accuracy(correct, counts), "overall_incremental_accuracy": incremental}


def average_incremental_accuracy(accuracy: np.ndarray, learnt: int = 0) -> float:
    """Return 1/T sum_k A_k with A_k = 1/k sum_{j<=k} R[k, j] (Rebuffi 2017). Row 0 does not count, and neither do the
    rows before a run's beginning; learnt: as of `from_start`."""
    return mean(averages_so_far(accuracy)[max(1, learnt) :])


def learning_accuracy(accuracy: np.ndarray) -> float:
    """Return 1/T sum_j R[j, j]: the accuracy on each task just after learning it (Riemer 2019)."""
    return mean(accuracy_when_learned(accuracy))


def accuracy_when_learned(accuracy: np.ndarray) -> np.ndarray:
    """Return (T,): R[j, j], the accuracy on each task just after it was learnt."""
    return np.diagonal(accuracy, offset=-1).copy()


def best_accuracy(accuracy: np.ndarray) -> np.ndarray:
    """Return (T,): max over rows 1 ... T-1 of R[k, j]; of the last task R[T, T].

    The rows before task j was learnt count too, as in Chaudhry 2018 (l in 1 ... k-1); the untrained network and
    the final row do not, else forgetting could never be negative.
    """
    best = accuracy[-1].copy()
    if len(best) > 1:
        best[:-1] = accuracy[1:-1, :-1].max(axis=0)
    return best


def forgetting(accuracy: np.ndarray) -> np.ndarray:
    """Return (T,): f_j = max_{1<=k<T} R[k, j] - R[T, j], signed (Chaudhry 2018). Undefined for the last task."""
    drop = best_accuracy(accuracy) - accuracy[-1]
    drop[-1] = np.nan
    return drop


def forgotten_since(accuracy: np.ndarray) -> np.ndarray:
    """Return (T+1, T): at [k, j] the best accuracy on task j+1 after j+1 ... k-1 tasks minus that after k tasks; nan in
    the rows up to k = j+1, after which there is nothing to forget, and where one of the two was not measured."""
    away = np.full(accuracy.shape, np.nan)
    for k, j in np.argwhere(np.tri(len(accuracy), accuracy.shape[1], k=-2)):
        before = accuracy[j + 1 : k, j]
        away[k, j] = before.max() - accuracy[k, j]
    return away


def backward_transfer(accuracy: np.ndarray) -> np.ndarray:
    """Return (T,): R[T, j] - R[j, j] (Lopez-Paz 2017, eq. 3, before its mean). Undefined for the last task."""
    change = accuracy[-1] - accuracy_when_learned(accuracy)
    change[-1] = np.nan
    return change


def forward_transfer(accuracy: np.ndarray, defined: bool = True) -> np.ndarray:
    """Return (T,): R[j-1, j] - R[0, j], just before learning minus untrained (Lopez-Paz 2017, eq. 4, before its mean).

    Undefined for the first task, and everywhere if not `defined`: with the softmax over the classes seen so far, a task
    that has not been learnt scores 0 by construction.
    """
    gain = np.diagonal(accuracy) - accuracy[0]
    if not defined:
        return np.full_like(gain, np.nan)
    gain[0] = np.nan
    return gain


def forgetting_table(
    accuracy: np.ndarray, forgetting_defined: bool = True, forward_transfer_defined: bool = True
) -> pd.DataFrame:
    """Return forgetting.csv: a row per task, and a row `average`, the means of the defined cells of the columns.

    `forgetting_defined=False` (joint training has no order in which to forget) leaves forgetting and both transfers
    empty. The average of `accuracy_when_learned` is that of summary.csv: empty where a task was not measured, as after
    a divergence.
    """
    tasks = accuracy.shape[1]
    nothing = np.full(tasks, np.nan)
    columns = [
        accuracy[0],
        accuracy_when_learned(accuracy),
        best_accuracy(accuracy),
        accuracy[-1],
        forgetting(accuracy) if forgetting_defined else nothing,
        backward_transfer(accuracy) if forgetting_defined else nothing,
        forward_transfer(accuracy, forward_transfer_defined and forgetting_defined),
    ]
    table = pd.DataFrame(dict(zip(FORGETTING_COLUMNS[1:], columns, strict=True)), dtype=float)
    table.loc[tasks] = table.mean()
    table.loc[tasks, "accuracy_when_learned"] = learning_accuracy(accuracy)
    table.insert(0, "task", [*range(1, tasks + 1), "average"])
    return table


def summary_metrics(
    accuracy: np.ndarray, forgetting_defined: bool = True, forward_transfer_defined: bool = True, learnt: int = 0
) -> dict[str, float]:
    """Return the columns SUMMARY_METRICS by name. learnt: as of `from_start`, which has filled the matrix.

    Forgetting and backward transfer are means over all tasks but the last, forward transfer over all but the first; a
    mean is nan where one of its cells was not measured. Where forgetting is not defined (joint training, of one stage),
    neither is the average incremental accuracy, which would stand beside those of many stages.
    """
    nan = float("nan")
    return {
        "average_accuracy": average_accuracy(accuracy),
        "average_incremental_accuracy": average_incremental_accuracy(accuracy, learnt) if forgetting_defined else nan,
        "learning_accuracy": learning_accuracy(accuracy),
        "forgetting": mean(forgetting(accuracy)[:-1]) if forgetting_defined else nan,
        "backward_transfer": mean(backward_transfer(accuracy)[:-1]) if forgetting_defined else nan,
        "forward_transfer": mean(forward_transfer(accuracy, forward_transfer_defined and forgetting_defined)[1:]),
    }


def expected_calibration_error(bins: np.ndarray) -> float:
    """Return ECE = sum_m n_m / n |acc_m - conf_m| over the bins of the confidence (Guo et al. 2017, eq. 3), with acc_m
    and conf_m the shares of correct ones and the mean confidence of the n_m samples in bin m. nan without any sample.

    bins (M, 3): n_m, the sum of their confidences, and the number of correct ones.
    """
    count, confidence, correct = bins.T
    return float(np.abs(correct - confidence).sum() / count.sum()) if count.sum() > 0 else math.nan


def calibration_rows(after: int, bins: np.ndarray) -> list[dict[str, Any]]:
    """Return rows of calibration.csv, after so many tasks, from the bins (T, M, 3) of the tasks learnt so far: one for
    each task that has samples, and one for all of them."""
    named = {str(task): of_task for task, of_task in enumerate(bins, start=1)} | {"all": bins.sum(0)}
    rows = []
    for name, of_task in named.items():
        count, confidence, correct = of_task.sum(0).tolist()
        if count > 0:
            measured = {"n": round(count), "accuracy": correct / count, "confidence": confidence / count}
            error = expected_calibration_error(of_task)
            rows.append({"after_task": after, "eval_task": name} | measured | {"ece": error})
    return rows


def task_aware_rows(after: int, correct: Sequence[int], counts: np.ndarray) -> list[dict[str, Any]]:
    """Return rows of task_aware.csv, after so many tasks, one for each task that has test samples and several outputs.

    correct: of each of the first tasks, the answers that are correct where its own outputs alone may answer; -1: not
    measured. counts (T,): of each task, the number of its test samples.
    """
    found = enumerate(zip(correct, counts.tolist(), strict=False), start=1)
    return [
        {"after_task": after, "eval_task": task, "correct": right, "n": n, "accuracy": right / n}
        for task, (right, n) in found
        if right >= 0 and n > 0
    ]


def task_aware_accuracy(rows: Sequence[Mapping[str, Any]], tasks: int) -> float:
    """Return the accuracy after the last of so many tasks, mean over the tasks, from the rows of task_aware.csv; nan
    where there are no such rows, as of a run that has diverged before."""
    return mean(np.array([row["accuracy"] for row in rows if row["after_task"] == tasks]))


def gap_closed(accuracy: Accuracy, finetune: Accuracy, gap: Accuracy) -> Accuracy:
    """Return (accuracy - finetune) / gap: the share of the gap between finetune and joint training that is closed.

    gap: joint's accuracy minus finetune's, of a run or the mean over the seeds. The share is nan unless it is positive.
    """
    if isinstance(gap, pd.Series):
        return (accuracy - finetune) / gap.where(gap > 0)
    return (accuracy - finetune) / (gap if gap > 0 else math.nan)


# ---------------------------------------------------------------- one pass over the stream


def online_accuracy(rows: Sequence[Mapping[str, int]]) -> float:
    """Return sum_t c_t / sum_t n_t, from rows with the keys samples (n_t) and correct (c_t): of all training samples,
    the part that was answered correctly just before it was learnt (prequential accuracy; Cai et al. 2021)."""
    samples = sum(row["samples"] for row in rows)
    return sum(row["correct"] for row in rows) / samples if samples else math.nan


# ---------------------------------------------------------------- continual evaluation

# Accuracies that are also measured within tasks: rows with the keys, or columns, step (optimizer steps since the start
# of the run), stage (the task that is being learnt, 1 ... T), eval_task (1 ... T) and accuracy. Rows of stage 0, of the
# untrained network, do not count.

OverTraining = pd.DataFrame | Sequence[Mapping[str, float]]


def stage_minima(accuracy: np.ndarray, over_training: OverTraining) -> np.ndarray:
    """Return (T, T): the lowest accuracy on each task (column) while each task (row) was learnt, the end of that task
    included."""
    table = pd.DataFrame(over_training, columns=["step", "stage", "eval_task", "accuracy"])
    minima = accuracy[1:].copy()
    trained = table[table["stage"] >= 1]
    for stage, task, value in zip(trained["stage"], trained["eval_task"], trained["accuracy"], strict=True):
        cell = (int(stage) - 1, int(task) - 1)
        minima[cell] = np.minimum(minima[cell], value)  # nan where any of the values is
    return minima


def min_accuracy(accuracy: np.ndarray, over_training: OverTraining) -> float:
    """Return min-ACC = 1/(T-1) sum_{j<T} min_{n > t_j} A(E_j, f_n): the lowest accuracy on each earlier task at any
    evaluation after the end t_j of its own training (De Lange 2023). Undefined for T = 1."""
    minima = stage_minima(accuracy, over_training)
    return mean(np.array([minima[j + 1 :, j].min() for j in range(len(minima) - 1)]))


def worst_case_accuracy(accuracy: np.ndarray, over_training: OverTraining) -> float:
    """Return WC-ACC = 1/T R[T, T] + (1 - 1/T) min-ACC (De Lange 2023). For T = 1 the final accuracy."""
    tasks = accuracy.shape[1]
    if tasks == 1:
        return float(accuracy[-1, -1])
    return float(accuracy[-1, -1] / tasks + (1 - 1 / tasks) * min_accuracy(accuracy, over_training))


def stability_gaps(accuracy: np.ndarray, over_training: OverTraining) -> np.ndarray:
    """Return (T, T): [k, j] = R[k-1, j] - the lowest accuracy on an earlier task j < k while task k was learnt.

    De Lange 2023 describes the gap without a formula; this one is clrun's: the drop below the accuracy before the
    change of task, signed, whether or not it is recovered by the end of task k. nan where j >= k.
    """
    gaps = accuracy[:-1] - stage_minima(accuracy, over_training)
    gaps[np.triu_indices(len(gaps))] = np.nan
    return gaps


def stability_gap(accuracy: np.ndarray, over_training: OverTraining, learnt: int = 0) -> float:
    """Return the mean over the T-1 switches of the mean over the old tasks of `stability_gaps`. Undefined for T = 1.
    learnt: as of `from_start`; the switches between those tasks do not count."""
    gaps = stability_gaps(accuracy, over_training)
    return mean(np.array([mean(gaps[k, :k]) for k in range(max(1, learnt), len(gaps))]))


def accuracy_auc(over_training: OverTraining, counts: np.ndarray, seen_from: Sequence[int] = ()) -> float:
    """Return A_AUC = sum_i a_i (s_i - s_{i-1}) / s_n (Koh et al. 2022, in which s_i - s_{i-1} is constant).

    s_i is the step of evaluation i = 1 ... n within and at the end of tasks, s_0 = 0, and a_i the accuracy then over
    all test samples of the tasks seen so far, the one that is being learnt included. counts (T,) are the numbers of
    test samples; seen_from: the stage [task] in which the last class of a task comes first, by default its own. When
    it comes within the stage is not known, so that a task that is not the stage's own counts from its end on. nan where
    nothing, or not everything, was measured.
    """
    table = pd.DataFrame(over_training, columns=["step", "stage", "eval_task", "accuracy"])
    first = np.array(seen_from or range(1, len(counts) + 1))[table["eval_task"].astype(int) - 1]
    stage, ends = table["stage"], table.groupby("stage")["step"].transform("max")
    come = (first < stage) | ((first == stage) & ((table["eval_task"] == stage) | (table["step"] == ends)))
    seen = table[(stage >= 1) & come]
    n = np.asarray(counts)[seen["eval_task"].astype(int) - 1]
    sums = pd.DataFrame({"step": seen["step"], "correct": seen["accuracy"] * n, "n": n})
    at = sums.groupby("step")[["correct", "n"]].sum(min_count=1)
    if at.empty or at.index[-1] == 0:
        return math.nan
    steps = np.diff([0, *at.index])
    return float((at["correct"] / at["n"] * steps).sum(skipna=False) / at.index[-1])


def continual_metrics(accuracy: np.ndarray, over_training: OverTraining, learnt: int = 0) -> dict[str, float]:
    """Return the columns CONTINUAL_METRICS by name. learnt: as of `from_start`, which has filled the matrix."""
    return {
        "min_accuracy": min_accuracy(accuracy, over_training),
        "worst_case_accuracy": worst_case_accuracy(accuracy, over_training),
        "stability_gap": stability_gap(accuracy, over_training, learnt),
    }
