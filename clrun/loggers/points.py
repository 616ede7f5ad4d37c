"""What is logged of a run: the points of curves, stage by stage, from its Outcome."""

from collections.abc import Iterator
from math import isfinite
from typing import NamedTuple

from clrun.results import tables
from clrun.results.columns import SUMMARY_TAIL
from clrun.results.outcome import Outcome


class Point(NamedTuple):
    """A point of a curve."""

    axis: str  # "task": x counts the tasks that have been learnt; "step": x counts optimizer steps
    name: str  # of the curve, such as accuracy/task_1
    x: int
    value: float


def last_row(outcome: Outcome) -> int:
    """Return the number of the last stage of which anything was measured; 0 is before any training."""
    return max((int(row["task"]) for row in outcome.task_costs), default=-1)


def points_of(outcome: Outcome, row: int) -> list[Point]:
    """Return the points of a stage: row 0 is before any training, row k after stage k. Values that are not finite are
    left out."""
    found = [*between_tasks(outcome, row), *within_tasks(outcome, row), *of_stage(outcome, row)]
    return [point for point in found if isfinite(point.value)]


def between_tasks(outcome: Outcome, row: int) -> Iterator[Point]:
    """Yield the accuracy on each task after a stage, and the average over the tasks learnt so far."""
    matrix = tables.accuracy_matrix_table(outcome)
    (line,) = matrix[matrix["after_task"] == row].to_dict("records")
    for name, value in line.items():
        if name != "after_task":
            yield Point("task", f"accuracy/{name}", row, float(value))


def within_tasks(outcome: Outcome, row: int) -> Iterator[Point]:
    """Yield the accuracies within a stage, where they were measured (`evaluate_every`)."""
    if outcome.over_training is None:
        return
    for line in tables.over_training_table(outcome).to_dict("records"):
        if line["stage"] == row:
            name = f"accuracy_within_tasks/task_{line['eval_task']}"
            yield Point("step", name, int(line["step"]), float(line["accuracy"]))


def of_stage(outcome: Outcome, row: int) -> Iterator[Point]:
    """Yield what the strategy did in a stage, and what that cost."""
    numbered = [{"task": number, **line} for number, line in enumerate(outcome.health, start=1)]
    for group, lines in (("health", numbered), ("costs", outcome.task_costs)):
        for line in lines:
            if line["task"] == row:
                numbers = {name: v for name, v in line.items() if isinstance(v, int | float) and name != "task"}
                yield from (Point("task", f"{group}/{name}", row, float(v)) for name, v in numbers.items())


def summary_of(outcome: Outcome) -> dict[str, float]:
    """Return the metrics and costs of a run that has ended, by their columns of summary.csv."""
    row = tables.summary_row(outcome)
    names = [name for name in SUMMARY_TAIL if isinstance(row[name], int | float)]
    return {name: float(row[name]) for name in names if isfinite(row[name])}
