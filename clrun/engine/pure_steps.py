"""The pure steps of all runs of a stack, each of which is vectorized, and compiled if that is asked for, once."""

from dataclasses import dataclass, field

import torch

from clrun.engine.step import Step, StepKind, make_step, skipping_empty_batches
from clrun.engine.vectorize import CONTEXT_AXES, PER_RUN, Vectorizer
from clrun.optimizers import Optimizer
from clrun.strategy import Strategy

STEP_AXES = (PER_RUN, PER_RUN, PER_RUN, PER_RUN, PER_RUN, CONTEXT_AXES)  # of the arguments of a step


@dataclass(frozen=True)
class PureSteps:
    """What makes the pure step of each kind, and keeps it.

    decay, clip_norm, prequential: as `step.make_step` takes them. compile: whether the steps are compiled. It knows no
    stack: a stack holds what takes its steps, and its memory is free as soon as nobody holds the stack.
    """

    strategy: Strategy
    optimizer: Optimizer
    vectorizer: Vectorizer
    decay: float | None
    clip_norm: float | None
    prequential: bool
    compile: bool
    made: dict[StepKind, Step] = field(default_factory=dict)

    def of(self, kind: StepKind) -> Step:
        """Return the step of one kind. A compiled one is always monitored: that costs less than another compilation."""
        kind = kind._replace(monitored=kind.monitored or self.compile)
        if kind not in self.made:
            options = self.decay, self.clip_norm, self.prequential, kind.monitored
            step = make_step(self.strategy, self.optimizer, *options)
            step = skipping_empty_batches(step) if kind.masked else step
            self.made[kind] = self.compiled(self.vectorizer.vectorize(step, STEP_AXES))
        return self.made[kind]

    def unless_in_place(self, kind: StepKind) -> Step | None:
        """Return the step where `StaticStep` takes none: where it is compiled, and where some run stays as it is."""
        return self.of(kind) if self.compile or kind.masked else None

    def compiled(self, step: Step) -> Step:
        """Return the step compiled, if steps are to be."""
        if not self.compile:
            return step
        _ = self.strategy.net.network.has_batch_norm  # cached: the compiler can read it, and cannot compute it
        return torch.compile(step, dynamic=False)
