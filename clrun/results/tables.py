"""The tables of a run: from an Outcome to data frames. Their columns are described in clrun/results/columns.py."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from clrun.results import metrics
from clrun.results.columns import FILES, SUMMARY_HEAD, SUMMARY_TAIL, WARNING_SEPARATOR
from clrun.results.outcome import Outcome
from clrun.results.provenance import provenance


def objects(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Return rows as a table that leaves every cell as it is: integers beside empty cells stay integers."""
    return pd.DataFrame(list(rows), columns=None if columns is None else list(columns), dtype=object)


def unanswerable(outcome: Outcome) -> np.ndarray:
    """Return a mask (T+1, T) bool of the cells whose answer is barred by construction: tasks of which a class has not
    come yet, where only the outputs of classes seen so far may answer. The untrained network may answer for each."""
    tasks = len(outcome.counts)
    if outcome.forward_transfer_defined or not outcome.forgetting_defined:  # joint training has seen all from the start
        return np.zeros((tasks + 1, tasks), bool)
    after, task = np.indices((tasks + 1, tasks))
    seen_from = np.array(outcome.seen_from or range(1, tasks + 1))
    return np.asarray((after > 0) & (after < seen_from[task]))


def matrix_table(
    correct: np.ndarray, counts: np.ndarray, at_once: bool = False, empty: np.ndarray | None = None
) -> pd.DataFrame:
    """Return accuracy_matrix.csv from numbers of samples: correct (T+1, T), -1 where not measured, and counts (T,); a
    task without samples is in no average. at_once: the first stage learns all tasks (joint training), so that every
    average is over all tasks. empty: a mask (T+1, T) of the cells that stay empty."""
    accuracy = metrics.accuracy_matrix(correct, counts)
    cells = accuracy if empty is None else np.where(empty, np.nan, accuracy)
    table = pd.DataFrame(cells, columns=[f"task_{j + 1}" for j in range(len(counts))])
    table.insert(0, "after_task", range(len(cells)))
    average = metrics.averages_so_far(accuracy, at_once, np.asarray(counts) > 0)
    return table.assign(average=average, overall=metrics.overall_so_far(correct, counts, at_once))


def accuracy_matrix_table(outcome: Outcome) -> pd.DataFrame:
    """Return accuracy_matrix.csv of a run."""
    return matrix_table(outcome.correct, outcome.counts, not outcome.forgetting_defined, unanswerable(outcome))


def accuracy_table(outcome: Outcome) -> pd.DataFrame:
    """Return accuracy.csv: one row for each cell of the accuracy matrix that was measured and is not `unanswerable`."""
    there = (np.asarray(outcome.correct) >= 0) & (np.asarray(outcome.counts) > 0)
    after, task = np.nonzero(there & ~unanswerable(outcome))
    identity = {"run": outcome.run, "strategy": outcome.values["strategy"], "seed": outcome.values["seed"]}
    measured = {
        "after_task": after,
        "eval_task": task + 1,
        "correct": np.asarray(outcome.correct)[after, task],
        "n": np.asarray(outcome.counts)[task],
        "accuracy": outcome.accuracy[after, task],
    }
    return pd.DataFrame(measured).assign(**identity)[list(FILES["accuracy.csv"])]


def forgetting_table(outcome: Outcome) -> pd.DataFrame:
    """Return forgetting.csv. Tasks that an earlier run has learnt count as learnt at the beginning of this one, for
    which no accuracy of an untrained network and no forward transfer is known."""
    forward = outcome.forward_transfer_defined and outcome.learnt == 0
    accuracy = metrics.from_start(outcome.accuracy, outcome.learnt)
    table = metrics.forgetting_table(accuracy, outcome.forgetting_defined, forward)
    measured = metrics.of_tasks(accuracy, np.asarray(outcome.counts) > 0)
    table.loc[len(table) - 1, "accuracy_when_learned"] = metrics.learning_accuracy(measured)
    if outcome.learnt:
        table["accuracy_untrained"] = np.nan
    return table


def confusion_table(class_names: Sequence[str], confusion: np.ndarray) -> pd.DataFrame:
    """Return confusion.csv from counts (C, C) [true, predicted]: one row for every pair of classes, also of count 0."""
    names = np.array(class_names, dtype=object)
    columns = {"true_class": names.repeat(len(names)), "predicted_class": np.tile(names, len(names))}
    return pd.DataFrame(columns).assign(count=np.asarray(confusion).ravel())


def confusion_over_tasks_table(outcome: Outcome) -> pd.DataFrame:
    """Return confusion_over_tasks.csv: one row for each pair that occurs after a task; the cells of the accuracy matrix
    that are `unanswerable` have none."""
    after, task, true, predicted, count, sample = np.asarray(outcome.confusions)[answered(outcome)].T
    names = np.array(outcome.class_names, dtype=object)
    columns = {
        "after_task": after,
        "eval_task": task + 1,
        "true_class": names[true],
        "predicted_class": names[predicted],
        "count": count,
        "true_output": true + 1,
        "predicted_output": predicted + 1,
        "sample": sample,
    }
    return pd.DataFrame(columns)


def natural(name: str) -> list[tuple[bool, int, str]]:
    """Return what sorts names with numbers by these: 2 before 10."""
    return [
        (not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.findall(r"[0-9]+|[^0-9]+", name)
    ]


def class_accuracy_table(outcome: Outcome) -> pd.DataFrame:
    """Return class_accuracy.csv: one row for each class of each task after each task, summed over the answers of
    `confusion_over_tasks_table`."""
    pairs = confusion_over_tasks_table(outcome)
    pairs = pairs.assign(correct=pairs["count"].where(pairs["true_output"] == pairs["predicted_output"], 0))
    keys = ["after_task", "eval_task", "true_output", "true_class"]
    sums = pairs.groupby(keys, as_index=False, sort=True)[["correct", "count"]].sum()
    table = sums.rename(columns={"true_output": "output", "true_class": "class", "count": "n"})
    return table.assign(accuracy=table["correct"] / table["n"])[list(FILES["class_accuracy.csv"])]


def predictions_table(outcome: Outcome) -> pd.DataFrame:
    """Return predictions.csv: one row for each test sample after each task; the cells of the accuracy matrix that are
    `unanswerable` have none."""
    answers = np.zeros((0, 5), int) if outcome.predictions is None else outcome.predictions
    after, task, true, predicted, sample = answers[~unanswerable(outcome)[answers[:, 0], answers[:, 1]]].T
    names = np.array(outcome.class_names, dtype=object)
    columns = (after, task + 1, sample, names[true], names[predicted], true + 1, predicted + 1)
    return pd.DataFrame(dict(zip(FILES["predictions.csv"], columns, strict=True)))


def answered(outcome: Outcome) -> np.ndarray:
    """Return which rows of `Outcome.confusions` belong to cells of the accuracy matrix that are not empty."""
    return ~unanswerable(outcome)[outcome.confusions[:, 0], outcome.confusions[:, 1]]


def over_training_table(outcome: Outcome) -> pd.DataFrame:
    """Return accuracy_over_training.csv; cells that are `unanswerable` are empty."""
    rows = pd.DataFrame(outcome.over_training, columns=["step", "stage", "eval_task", "accuracy"])
    empty = unanswerable(outcome)[rows["stage"].astype(int), rows["eval_task"].astype(int) - 1]
    rows["accuracy"] = rows["accuracy"].mask(empty)
    rows.insert(0, "run", outcome.run)
    rows.insert(1, "seed", outcome.values["seed"])
    return rows


def online_table(rows: Sequence[Mapping[str, int]]) -> pd.DataFrame:
    """Return online_accuracy.csv: one row per task, then one for all of them."""
    total = {"task": "all"} | {name: sum(row[name] for row in rows) for name in ("samples", "correct")}
    cells = [{**row, "online_accuracy": metrics.online_accuracy([row])} for row in [*rows, total]]  # type: ignore[list-item]
    return objects(cells, list(FILES["online_accuracy.csv"]))


def probe_table(outcome: Outcome) -> pd.DataFrame:
    """Return probe.csv: one row for each task whose features were probed, after each number of tasks."""
    correct = np.asarray(outcome.probe_correct)
    probe = metrics.accuracy_matrix(correct, outcome.counts)
    own = np.where(unanswerable(outcome), np.nan, outcome.accuracy)
    after, task = np.nonzero(correct >= 0)
    measured = {
        "after_task": after,
        "eval_task": task + 1,
        "correct": correct[after, task],
        "n": np.asarray(outcome.counts)[task],
        "probe_accuracy": probe[after, task],
        "accuracy": own[after, task],
        "forgotten_in_features": metrics.forgotten_since(probe)[after, task],
        "forgotten": metrics.forgotten_since(own)[after, task],
    }
    return pd.DataFrame(measured)[list(FILES["probe.csv"])]


def health_table(health: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return health.csv: `task` first, then the columns of the engine and of the strategy."""
    rows = [{"task": number, **row} for number, row in enumerate(health, start=1)]
    return objects(rows) if rows else pd.DataFrame(columns=["task"])


def classes_table(task_classes: Sequence[Sequence[str]], domains: Sequence[str] | None = None) -> pd.DataFrame:
    """Return tasks.csv of tasks that differ by their classes, or are domains: one row per class, in the order of the
    outputs."""
    pairs = [(task, name) for task, names in enumerate(task_classes, start=1) for name in names]
    rows = [
        {"task": task, "class": name} | ({} if domains is None else {"domain": domains[task - 1]})
        for task, name in pairs
    ]
    return objects(rows, ["task", "class"] if domains is None else ["task", "class", "domain"])


def class_counts_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return class_counts.csv: one row per task, class and own task of the samples that come while it is learnt."""
    return objects(rows, [name for name in FILES["class_counts.csv"] if not rows or name in rows[0]])


def angles_table(task_angles: Sequence[float]) -> pd.DataFrame:
    """Return tasks.csv of tasks that differ by the rotation of their images, in degrees counter-clockwise."""
    return objects([{"task": task, "angle": angle} for task, angle in enumerate(task_angles, start=1)])


def summary_table(outcome: Outcome) -> pd.DataFrame:
    """Return summary.csv: one row."""
    return objects([summary_row(outcome)])


def summary_row(outcome: Outcome) -> dict[str, Any]:
    """Return the row of summary.csv, in its order: SUMMARY_HEAD, stream, setup, every other key, SUMMARY_TAIL."""
    identity = {"run": outcome.run, "group": outcome.group, "status": str(outcome.status)}
    head = identity | {name: outcome.values[name] for name in SUMMARY_HEAD if name not in identity}
    named = {*SUMMARY_HEAD, "stream", "setup", *SUMMARY_TAIL}
    keys = {key: v for key, v in outcome.values.items() if key not in named}
    measured = {
        **metrics_of(outcome),
        "threads": outcome.values.get("threads"),
        **outcome.costs,
        "diverged_at": outcome.diverged_at,
        "warnings": WARNING_SEPARATOR.join(outcome.warnings) or None,
        "sample_count": outcome.sample_count,
        "pillow_version": outcome.pillow_version,
        **provenance(outcome.device),
    }
    tail = {name: measured.get(name) for name in SUMMARY_TAIL}
    hashes = {"stream": outcome.stream, "setup": outcome.setup}
    return {**head, **hashes, **{key: cell(v) for key, v in keys.items()}, **tail}


def metrics_of(outcome: Outcome) -> dict[str, float]:
    """Return the metrics of summary.csv by name; a metric that was not measured is missing or nan."""
    tasks, forward = np.asarray(outcome.counts) > 0, outcome.forward_transfer_defined and outcome.learnt == 0
    learnt = int(tasks[: outcome.learnt].sum())  # of which there are samples
    accuracy = metrics.of_tasks(metrics.from_start(outcome.accuracy, outcome.learnt), tasks)
    values = metrics.summary_metrics(accuracy, outcome.forgetting_defined, forward, learnt)
    values |= metrics.overall_metrics(outcome.correct, outcome.counts, outcome.forgetting_defined, outcome.learnt)
    if outcome.validation is not None:
        held_out = np.asarray(outcome.validation_counts) > 0
        values["validation_accuracy"] = metrics.mean(outcome.validation[-1][held_out])
    if outcome.over_training is not None and outcome.forgetting_defined and tasks.all():
        values |= metrics.continual_metrics(accuracy, outcome.over_training, learnt)
    if outcome.over_training is not None and outcome.forgetting_defined:
        values["accuracy_auc"] = metrics.accuracy_auc(outcome.over_training, outcome.counts, outcome.seen_from)
    if outcome.task_aware is not None:
        values["task_aware_accuracy"] = metrics.task_aware_accuracy(outcome.task_aware, len(outcome.counts))
    if outcome.online is not None:
        values["online_accuracy"] = metrics.online_accuracy(outcome.online)
    return values


def is_missing(value: object) -> bool:
    """Return whether a cell that was read from a file is empty: nan or None."""
    return value is None or value != value  # nan alone differs from itself


def cell(value: Any) -> Any:
    """Return the value of a key as one cell: lists as JSON, all else as it is."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | tuple | dict) else value
