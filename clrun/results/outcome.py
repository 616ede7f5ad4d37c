"""What a run has measured so far, from which its files are written."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from clrun.results import metrics
from clrun.system.atomic_files import UNGUARDED, Guard


class RunStatus(StrEnum):
    """How far a run is. Its text stands in the column `status` of summary.csv, and on the terminal."""

    RUNNING = "running"
    DONE = "done"
    DIVERGED = "diverged"  # the loss or the parameters were no longer finite
    CRASHED = "crashed"
    HELD = "held"  # another process is training it
    TAKEN_OVER = "taken over"  # as HELD, but this process had begun
    DONE_ELSEWHERE = "done by another process"


@dataclass
class Outcome:
    """What a run has measured so far: T tasks, C outputs; tasks and stages count from 1.

    The rows of `over_training`, `online`, `task_aware`, `health` and `task_costs` have the columns of
    accuracy_over_training.csv, online_accuracy.csv, task_aware.csv, health.csv and costs.csv; the keys of `costs` are
    columns of summary.csv. They are described in clrun/results/columns.py.
    """

    directory: Path
    run: str  # identity
    group: str
    setup: str
    stream: str
    values: Mapping[str, Any]  # every key of the configuration, flat
    class_names: Sequence[str]  # (C,), of the outputs
    correct: np.ndarray  # (T+1, T) int: test samples classified correctly; -1: not measured
    counts: np.ndarray  # (T,) int: test samples
    validation_correct: np.ndarray | None = None  # (T+1, T) int; -1: not measured
    validation_counts: np.ndarray | None = None  # (T,) int
    confusion: np.ndarray | None = None  # (C, C) int: [true, predicted], at the end
    # (K, 6) int, a row for each pair that occurs: tasks learnt, tested task, true and predicted output, count, a sample
    confusions: np.ndarray = field(default_factory=lambda: np.zeros((0, 6), np.int64))
    # (N, 5) int, rows of tasks learnt, tested task, true and predicted output, sample; None if not asked for
    predictions: np.ndarray | None = None
    probe_correct: np.ndarray | None = None  # (T+1, T) int: as `correct`, by the linear probe of each task
    over_training: list[dict[str, Any]] | None = None  # one row per evaluation and task; None if not asked for
    calibration: list[dict[str, Any]] | None = None  # one row per task learnt and tested; None if not asked for
    task_aware: list[dict[str, Any]] | None = None  # one row per task learnt and tested; None if not asked for
    online: list[dict[str, Any]] | None = None  # one row per task: answers before learning; None if not asked for
    health: list[dict[str, Any]] = field(default_factory=list)  # one row per task that has been learnt
    task_costs: list[dict[str, Any]] = field(default_factory=list)  # a row before any training, then one per task
    costs: dict[str, Any] = field(default_factory=dict)  # one that is missing becomes an empty cell
    status: RunStatus = RunStatus.RUNNING  # DONE or DIVERGED at the end
    diverged_at: str | None = None  # such as "task 2 step 17"
    warnings: list[str] = field(default_factory=list)
    forward_transfer_defined: bool = True
    forgetting_defined: bool = True  # False for joint training, which has no order in which to forget
    task_classes: Sequence[Sequence[str]] | None = None  # the classes of each task, where tasks differ by them
    task_domains: Sequence[str] | None = None  # the domain of each task, where tasks are domains
    task_angles: Sequence[float] | None = None  # degrees, where tasks differ by the rotation of their images
    seen_from: Sequence[int] = ()  # [task] number of tasks after which all of its classes were seen; (): its own number
    class_counts: Sequence[Mapping[str, Any]] | None = None  # rows of class_counts.csv; None where a task has its own
    learnt: int = 0  # tasks, the first ones, that an earlier run has learnt: row `learnt` is before any training
    sample_count: int | None = None  # of the data set, for training and testing
    pillow_version: str | None = None  # which decoded picture files
    device: str = "cpu"  # as PyTorch names it: "cpu", "cuda", "cuda:0"
    guard: Guard = UNGUARDED  # what must allow that its files are written
    writing_seconds: float = 0.0  # that its tables took when they were last written
    written_at: float = -math.inf  # seconds of time.monotonic() at which its tables were last written

    @property
    def accuracy(self) -> np.ndarray:
        """(T+1, T) test accuracy, nan where not measured."""
        return metrics.accuracy_matrix(self.correct, self.counts)

    @property
    def validation(self) -> np.ndarray | None:
        """(T+1, T) accuracy on the held-out training samples; None without any."""
        if self.validation_correct is None or self.validation_counts is None:
            return None
        return metrics.accuracy_matrix(self.validation_correct, self.validation_counts)
