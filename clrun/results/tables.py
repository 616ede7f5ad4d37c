"""The tables of a run: from an Outcome to data frames."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from clrun.results import metrics
from clrun.results.columns import FILES, SUMMARY_HEAD, SUMMARY_TAIL, WARNING_SEPARATOR
from clrun.results.outcome import Outcome
from clrun.results.provenance import provenance


def objects(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Rows as a table that leaves every cell as it is: integers beside empty cells stay integers."""
    return pd.DataFrame(list(rows), columns=columns, dtype=object)


def matrix_table(accuracy: np.ndarray, at_once: bool = False) -> pd.DataFrame:
    """accuracy (T+1, T) -> after_task, task_1 ... task_T, average (over the tasks learnt so far; row 0: over all)."""
    table = pd.DataFrame(accuracy, columns=[f"task_{j + 1}" for j in range(accuracy.shape[1])])
    table.insert(0, "after_task", range(len(accuracy)))
    return table.assign(average=metrics.averages_so_far(accuracy, at_once))


def forgetting_of(outcome: Outcome) -> pd.DataFrame:
    """forgetting.csv."""
    return metrics.forgetting_table(outcome.accuracy, outcome.forgetting_defined, outcome.forward_transfer_defined)


def long_table(outcome: Outcome) -> pd.DataFrame:
    """accuracy.csv: one row for each cell that was measured."""
    after, task = np.nonzero(np.asarray(outcome.correct) >= 0)
    named = {"run": outcome.run, "strategy": outcome.values["strategy"], "seed": outcome.values["seed"]}
    measured = {
        "after_task": after,
        "eval_task": task + 1,
        "correct": np.asarray(outcome.correct)[after, task],
        "n": np.asarray(outcome.counts)[task],
        "accuracy": outcome.accuracy[after, task],
    }
    return pd.DataFrame(measured).assign(**named)[list(FILES["accuracy.csv"])]


def confusion_table(outcome: Outcome) -> pd.DataFrame:
    """confusion.csv: every pair of outputs, those that never met with count 0."""
    names = np.array(outcome.class_names, dtype=object)
    columns = {"true_class": names.repeat(len(names)), "predicted_class": np.tile(names, len(names))}
    return pd.DataFrame(columns).assign(count=np.asarray(outcome.confusion).ravel())


def over_training_table(outcome: Outcome) -> pd.DataFrame:
    """accuracy_over_training.csv."""
    rows = pd.DataFrame(outcome.over_training, columns=["step", "stage", "eval_task", "accuracy"])
    rows.insert(0, "run", outcome.run)
    rows.insert(1, "seed", outcome.values["seed"])
    return rows


def health_table(health: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """health.csv: `task` first, then the strategy's and the engine's own columns."""
    rows = [{"task": number, **row} for number, row in enumerate(health, start=1)]
    return objects(rows) if rows else pd.DataFrame(columns=["task"])


def tasks_table(task_classes: Sequence[Sequence[str]]) -> pd.DataFrame:
    """tasks.csv: task, class; one row a class, in the order of the outputs."""
    pairs = [{"task": task, "class": name} for task, names in enumerate(task_classes, start=1) for name in names]
    return objects(pairs, ["task", "class"])


def angles_table(task_angles: Sequence[float]) -> pd.DataFrame:
    """tasks.csv of a rotated stream: task, angle (degrees, counter-clockwise)."""
    return objects([{"task": task, "angle": angle} for task, angle in enumerate(task_angles, start=1)])


def summary_row(outcome: Outcome) -> dict[str, Any]:
    """The row of summary.csv, in its order: SUMMARY_HEAD, stream, every other checked key, SUMMARY_TAIL."""
    identity = {"run": outcome.run, "group": outcome.group, "status": outcome.status}
    head = identity | {name: outcome.values[name] for name in SUMMARY_HEAD if name not in identity}
    other = {key: cell(value) for key, value in outcome.values.items() if key not in (*SUMMARY_HEAD, *SUMMARY_TAIL)}
    measured = {
        **metrics_of(outcome),
        "threads": outcome.values.get("threads"),
        **outcome.costs,
        "diverged_at": outcome.diverged_at,
        "warnings": WARNING_SEPARATOR.join(outcome.warnings) or None,
        **provenance(outcome.device),
    }
    return {**head, "stream": outcome.stream, **other, **{name: measured.get(name) for name in SUMMARY_TAIL}}


def metrics_of(outcome: Outcome) -> dict[str, float]:
    """The summary's metrics by name; a metric that was not measured is missing or nan."""
    found = metrics.summary_metrics(outcome.accuracy, outcome.forgetting_defined, outcome.forward_transfer_defined)
    if outcome.validation is not None:
        found["validation_accuracy"] = metrics.average_accuracy(outcome.validation)
    if outcome.over_training is not None and outcome.forgetting_defined:
        found |= metrics.continual_metrics(outcome.accuracy, outcome.over_training)
    return found


def cell(value: Any) -> Any:
    """A checked value as one cell: lists as JSON, the rest as it is."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | tuple | dict) else value
