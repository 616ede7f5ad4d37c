"""What a run has measured, and the columns of its tables."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from clrun.results import metrics


class RunStatus(StrEnum):
    """How far a run is. Its text stands in the column `status` of summary.csv, and on the terminal."""

    RUNNING = "running"
    DONE = "done"
    DIVERGED = "diverged"  # the loss or the parameters were no longer finite
    CRASHED = "crashed"
    HELD = "held"  # another process is training it
    DONE_ELSEWHERE = "done by another process"


@dataclass
class Outcome:
    """What a run has measured so far. T tasks, C outputs; tasks and stages count from 1."""

    directory: Path
    run: str
    group: str
    stream: str
    values: Mapping[str, Any]  # every checked key, flat
    class_names: Sequence[str]  # (C,), of the outputs
    correct: np.ndarray  # (T+1, T) int, -1: not measured
    counts: np.ndarray  # (T,) int: test samples
    validation_correct: np.ndarray | None = None  # (T+1, T) int, -1: not measured
    validation_counts: np.ndarray | None = None  # (T,) int
    confusion: np.ndarray | None = None  # (C, C) int: [true, predicted]
    over_training: Sequence[Mapping[str, Any]] | None = None  # rows: step (of the run), stage, eval_task, accuracy
    health: Sequence[Mapping[str, Any]] = ()  # one row a task learnt
    task_costs: Sequence[Mapping[str, Any]] = ()  # rows of costs.csv: before any training, then one a task learnt
    costs: Mapping[str, Any] = field(default_factory=dict)  # keys: COSTS; a missing one is an empty cell
    status: RunStatus = RunStatus.RUNNING  # DONE or DIVERGED at the end
    diverged_at: str | None = None
    warnings: Sequence[str] = ()
    forward_transfer_defined: bool = True
    forgetting_defined: bool = True  # False for joint training: no order in which to forget
    task_classes: Sequence[Sequence[str]] | None = None  # the classes of each task, where tasks differ by their classes
    task_angles: Sequence[float] | None = None  # degrees, where tasks differ by how pictures are turned
    device: str = "cpu"  # as torch names it: "cpu", "cuda", "cuda:0"
    shown_at: float = -math.inf  # monotonic seconds, when its files were last written

    @property
    def accuracy(self) -> np.ndarray:
        """(T+1, T) test accuracy, nan where not measured."""
        return metrics.accuracy_matrix(self.correct, self.counts)

    @property
    def validation(self) -> np.ndarray | None:
        """(T+1, T) accuracy on the held-out training samples; None without any."""
        if self.validation_correct is None:
            return None
        return metrics.accuracy_matrix(self.validation_correct, self.validation_counts)
