"""The state of a run, and what a stage of training reports about it."""

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from clrun.models import RunningStatistics
from clrun.strategy import Tree

# Names of the signals that cost a pass over theta. They are monitored at some steps only: see `health.is_monitored`.
NORM = "gradient_norm"
QUADRATIC = "quadratic"
MONITORED = (NORM, QUADRATIC)

# Names of the signals that count the answers to samples just before they are learnt: see `prequential`.
ONLINE_CORRECT = "online_correct"
ONLINE_SAMPLES = "online_samples"
ANSWERS = "online_answers"  # (B,) of a step: 1 where the answer was right; counted as soon as the steps are taken
COUNTED = (ONLINE_CORRECT, ONLINE_SAMPLES)

Signals = dict[str, Tensor]  # what the steps of a pass report: {name: (R, S)}; of a single step of one run {name: ()}


class Average(NamedTuple):
    """An exponential moving average of theta, which is evaluated in its place (average=ema).

        average <- d average + (1 - d) theta      after every step, d = min(decay, (1 + n) / (10 + n)) at step n

    It is the temporal ensemble of Soutif-Cormerais et al. 2023 ("Improving online continual learning performance and
    stability with temporal ensembles"). As d grows from 0.1 to `decay`, which is our addition, the first average is not
    that of the initial parameters. Where a strategy fits
    something to the weights (`Strategy.fits_weights`), theta becomes the average at the end of each pass over a task.
    There n counts on: the average leaves what it was slowly, so that old tasks are not forgotten at once. A network
    that begins anew (`Strategy.restart`) has a new average, with n = 0.
    """

    theta: Tensor  # (P,)
    steps: Tensor  # () n

    @classmethod
    def begin(cls, theta: Tensor) -> "Average":
        """Return the average at parameters theta (P,) that no step has changed yet."""
        return cls(theta.clone(), torch.zeros_like(theta[..., 0]))

    def weight(self, decay: float) -> Tensor:
        """Return 1 - d () of the next step."""
        return 1 - ((1 + self.steps) / (10 + self.steps)).clamp(max=decay)

    def after(self, theta: Tensor, decay: float) -> "Average":
        """Return the average after a step to theta (P,)."""
        return Average(self.theta.lerp(theta, self.weight(decay)), self.steps + 1)

    def after_change(self, before: Tensor, after: Tensor) -> "Average":
        """Return the average where something else than a step has changed parameters: there, the new ones."""
        return self._replace(theta=torch.where(after == before, self.theta, after))


class TrainState(NamedTuple):
    """All that changes while a run is trained. In a stack of R > 1 runs every tensor has a leading axis R."""

    theta: Tensor  # (P,)
    opt: Tree  # the optimizer's state
    stats: RunningStatistics  # batch norm's running statistics
    state: Tree  # the strategy's state
    average: Average | tuple[()] = ()  # an average of theta; () where there is none

    @property
    def evaluated(self) -> Tensor:
        """The parameters (P,) that the strategy is asked to deploy: the average of theta, or theta."""
        return self.average.theta if isinstance(self.average, Average) else self.theta


# The columns of `Evaluation.pairs`: how many samples of a task, whose right output is `true`, a run has answered with
# the output `predicted`, and the number of the first of these samples in the data set.
PAIR = ("run", "task", "true", "predicted", "count", "sample")


class Evaluation(NamedTuple):
    """The answers of R runs to the samples of all T tasks, counted."""

    correct: Tensor  # (R, T) int64: correct answers on each task
    pairs: np.ndarray  # (K, 6) int64: the columns PAIR of every pair that occurs; all numbers from 0
    undefined: Tensor  # (R,) int64: samples of which one of the scores was no number (NaN), so the answer says nothing
    # (N, 5) int64, where every answer is wanted: run, task, true and predicted output, number of the sample; else None
    answers: np.ndarray | None = None

    def confusion(self, outputs: int) -> np.ndarray:
        """Return (R, C, C) int64 counts [true, predicted], over all tasks. outputs: C."""
        run, _, true, predicted, count, _ = self.pairs.T
        total = np.zeros((len(self.correct), outputs, outputs), np.int64)
        np.add.at(total, (run, true, predicted), count)
        return total


class Divergence(NamedTuple):
    """The first step of a task at which something was not finite."""

    step: int  # counts from 1; 0 in a stage without steps
    diverged: bool  # True: loss or theta; False: the optimizer's state alone, after which the run no longer changes


@dataclass
class StageReport:
    """What was measured in one stage, for every run of a stack: lists are [r], tensors (R, ...), on the host."""

    stage: int  # -1: the evaluation before any training
    correct: Tensor  # (R, T) int64: test samples of each task that were classified correctly
    validation: Tensor  # (R, T) int64: the same for the validation samples
    health: list[dict[str, float]]  # columns of health.csv
    divergence: list[Divergence | None]
    over_training: list[tuple[int, Tensor]]  # evaluations within the stage: (step of the run, correct (R, T))
    # (R, 2) int64: training samples that were answered correctly before they were learnt, and all of them
    online: Tensor | None = None
    evaluation: Evaluation | None = None  # of the test samples, at the stage's end
    calibration: Tensor | None = None  # (R, T, BINS, 3) float64, as of `Evaluator.calibration`, at the stage's end
    task_aware: Tensor | None = None  # (R, T) int64, as of `Evaluator.task_aware`, at the stage's end
    probe: Tensor | None = None  # (R, T) int64, as of `probe.probed`, at the stage's end
    step: int = 0  # steps of the run at the end of the stage
    samples: int = 0  # samples trained on, of all runs together
    # wall-clock seconds of the whole stack, by activity
    seconds: dict[str, float] = field(default_factory=lambda: {"train": 0.0, "consolidate": 0.0, "eval": 0.0})


@dataclass(frozen=True)
class PartialStage:
    """How far a stage has got, and what it has reported so far: enough, with the `TrainState`, to go on."""

    report: StageReport
    phase: int = 0  # index in `strategy.phases` of the pass that is under way
    start: int = 0  # steps of that pass that are done
    # of each pass so far, "present" (R, S) bool among them; {} of a pass that took no step
    signals: list[Signals] = field(default_factory=list)

    def extended(self, signals: Signals, steps: int) -> "PartialStage":
        """Return this stage after `steps` more steps with the given signals {name: (R, steps)}."""
        *before, last = self.signals if self.start else [*self.signals, {}]
        longer = {name: torch.cat([last[name], v], 1) if last else v for name, v in signals.items()}
        return replace(self, start=self.start + steps, signals=[*before, longer])

    def online_counts(self) -> Tensor | None:
        """Return the sums (R, 2) int64 of the signals `COUNTED` over the first pass that took steps, in which samples
        are seen for the first time; None where nothing was counted."""
        first = next((of_pass for of_pass in self.signals if of_pass), {})
        if ONLINE_SAMPLES not in first:
            return None
        return torch.stack([first[name].double().sum(1) for name in COUNTED], 1).round().long()

    def next_phase(self) -> "PartialStage":
        """Return this stage at the beginning of its next pass."""
        signals = self.signals if len(self.signals) > self.phase else [*self.signals, {}]
        return replace(self, phase=self.phase + 1, start=0, signals=signals)

    def all_diverged(self) -> bool:
        """Return whether the last loss of the current pass is not finite in any run."""
        return self.start > 0 and not self.signals[-1]["loss"][:, -1].isfinite().any()
