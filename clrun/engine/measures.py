"""What is measured at the end of a stage: accuracy and confusion always, and what else a run is asked for."""

from dataclasses import dataclass
from functools import partial

import torch

from clrun.data.batches import Pool
from clrun.engine.evaluation import Evaluator
from clrun.engine.plasticity import plasticity
from clrun.engine.probe import probed
from clrun.engine.state import StageReport, TrainState
from clrun.engine.vectorize import CONSOLIDATION_AXES


@dataclass(frozen=True)
class Measures:
    """What is measured beside the accuracy and the confusion on the test samples."""

    validation: bool = False  # the accuracy on the validation samples
    plasticity: bool = False  # the columns of `plasticity.py`
    probe: bool = False  # a linear probe of the features, fitted for each task
    calibration: bool = False  # the confidence of the answers
    task_aware: bool = False  # the accuracy where a task's own outputs alone may answer
    every_answer: bool = False  # the answers to all test samples

    def enter(self, evaluator: Evaluator, current: TrainState, horizon: int | None, report: StageReport) -> None:
        """Enter what the runs answer into the report of a stage. horizon: as `Evaluator.evaluate` takes it."""
        report.evaluation = evaluator.evaluate(current, horizon, "test")
        report.correct = report.evaluation.correct
        if self.validation:
            report.validation = evaluator.correct(current, horizon, "validation")
        if self.probe:
            tasks = evaluator.strategy.data.tasks if horizon is None else horizon + 1
            report.probe = probed(evaluator, current, range(tasks))
        if self.calibration and horizon is not None:
            report.calibration = evaluator.calibration(current, horizon)
        if self.task_aware and horizon is not None:
            report.task_aware = evaluator.task_aware(current)


NOTHING_MORE = Measures()


def enter_plasticity(evaluator: Evaluator, current: TrainState, pool: Pool, report: StageReport) -> None:
    """Add the columns on the networks' ability to learn to the health of a stage. pool: the samples of the stage."""
    vectorizer = evaluator.vectorizer
    measure = vectorizer.vectorize(partial(plasticity, evaluator.strategy), CONSOLIDATION_AXES)
    with torch.no_grad():
        columns = measure(current, evaluator.hp, pool)
    for name, values in columns.items():
        for health, value in zip(report.health, vectorizer.unstack_to_host(values).tolist(), strict=True):
            health[name] = value
