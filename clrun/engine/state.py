"""The state of a run, and what a stage of training reports."""

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from clrun.models import RunningStatistics
from clrun.strategy import Tree

BLOCK = 512  # steps whose samples lie ready on the device, at most


@dataclass
class StageReport:
    """What one stage was like, for every run: [r], or (R, ...)."""

    stage: int
    correct: Tensor  # (R, T) int64
    validation: Tensor  # (R, T) int64
    health: list[dict[str, float]]
    divergence: list["Divergence | None"]
    over_training: list[tuple[int, Tensor]]  # (step of the run, correct (R, T))
    confusion: Tensor | None = None  # (R, C, C) int64 [true, predicted], once the stage is over
    step: int = 0  # of the run, at the end of the stage
    samples: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: {"train": 0.0, "consolidate": 0.0, "eval": 0.0})


@dataclass
class PartialStage:
    """What a stage has gathered before it is over, so that it can be continued from there."""

    report: StageReport
    phase: int = 0  # the pass over the task that is under way
    start: int = 0  # its steps that are done
    signals: list[dict[str, Tensor]] = field(default_factory=list)  # of each pass {name: (R, S)}, the last so far


class Divergence(NamedTuple):
    """The first step of a task at which something was not finite."""

    step: int  # from 1
    diverged: bool  # loss or theta; otherwise the optimiser's state alone, which freezes the run


def extended(half: PartialStage, signals: dict[str, Tensor], steps: int) -> PartialStage:
    """One more block of signals {name: (R, steps)}; half itself stays as it is."""
    *before, last = half.signals if half.start else [*half.signals, {}]
    longer = {name: torch.cat([last[name], v], 1) if last else v for name, v in signals.items()}
    return replace(half, start=half.start + steps, signals=[*before, longer])


def all_diverged(half: PartialStage) -> bool:
    """Whether all runs have diverged. Asked at multiples of BLOCK alone, so that no interruption changes the answer."""
    return half.start > 0 and half.start % BLOCK == 0 and not half.signals[-1]["loss"][:, -1].isfinite().any()


NORM, QUADRATIC = MONITORED = ("gradient_norm", "quadratic")  # signals that cost a pass over theta


class Run(NamedTuple):
    """One run; in a stack every leaf has a leading R."""

    theta: Tensor  # (P,)
    opt: Tree
    stats: RunningStatistics
    state: Tree
