"""Steppers take the steps of a pass, one after the other. There are three of them, for the sake of speed alone:

* `in_place.InPlaceStepper` takes the steps of one run alone; every run that is trained alone on a CPU uses it. The step
  of a small network is bound by the memory that it touches, so this one is written over the memory of theta.
* `cuda_graph.GraphStepper` is used on CUDA, for one run or a stack. There the step of a small network takes as long as
  the launches of its kernels, so `static_step.StaticStep` is captured once as a CUDA graph, which is launched as a
  whole.
* `EagerStepper` calls the pure step function at every step. It is used for a stack on a CPU. On CUDA it is used for a
  stack or a compiled step that is not captured because the user has typed cuda_graph=off.

`Stack.make_stepper` chooses. Tests hold the three to the same results.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch.utils._pytree import tree_map

from clrun.data.batches import SampleIndex, StepContext, split_steps
from clrun.engine.health import is_monitored
from clrun.engine.state import Signals, TrainState
from clrun.engine.step import Step, StepKind, StepValues

REPORT_INTERVAL = 64  # steps between two calls that report how many were taken

T = TypeVar("T")


class Block(NamedTuple):
    """What K consecutive steps of a pass need. The axis K lies behind R, which one run alone does not have."""

    samples: SampleIndex  # leaves (R, K, B)
    context: StepContext  # progress and epoch (R, K), noise (R, K, 6, B), stage (), horizon ()
    start: int  # steps of the pass before this block
    # [K] samples of each batch, if batches are to be cut to them; None: B, padding included
    sizes: Sequence[int] | None
    # [K] whether every run of a stack has samples; None: it has
    complete: Sequence[bool] | None = None


def kinds_of(block: Block) -> list[StepKind]:
    """Return the kind of each step of a block."""
    size = block.context.noise.shape[-3]
    complete = [True] * size if block.complete is None else block.complete
    return [StepKind(is_monitored(block.start + k + 1), not complete[k]) for k in range(size)]


class Stepper(Protocol):
    """An object that takes the steps of a pass. run: the run (or stack of runs) after the steps so far; the next steps
    may write over its tensors."""

    current: TrainState

    def prepare(self, block: Block) -> None:
        """Do once what the steps of a block need before they can be taken."""

    def run_steps(self, block: Block, on_steps: Callable[[int], None]) -> Signals:
        """Take the K steps of a block and return their signals {name: (R, K)}, (K,) for one run alone.

        on_steps: is called now and then with the number of steps taken since its last call.
        """

    def snapshot(self) -> TrainState:
        """Return the run after the steps so far, in tensors that no later step changes."""

    def result(self) -> TrainState:
        """Return the run after the last step of the pass, in tensors that stay as they are."""


class EagerStepper:
    """A stepper that calls a pure step again and again. step_of: the step of each kind."""

    def __init__(self, step_of: Callable[[StepKind], Step], current: TrainState, values: StepValues):
        self.step_of, self.values = step_of, values
        # What is the same for all runs at the start is one number that is read R times, and is R numbers after a step.
        self.current = tree_map(torch.Tensor.contiguous, current)

    def prepare(self, block: Block) -> None:
        """Do nothing."""

    def run_steps(self, block: Block, on_steps: Callable[[int], None]) -> Signals:
        steps = zip(kinds_of(block), split_steps(block.samples, block.context), strict=True)
        log = [self.take_step(kind, *of_step) for kind, of_step in counting(steps, on_steps)]
        return {name: torch.stack([signals[name] for signals in log], -1) for name in log[0]}

    def take_step(self, kind: StepKind, samples: SampleIndex, context: StepContext) -> Signals:
        """Take one step and return its signals {name: (R,)}."""
        self.current, signals = self.step_of(kind)(self.current, *self.values, samples, context)
        return signals

    def snapshot(self) -> TrainState:
        return self.current

    def result(self) -> TrainState:
        return self.current


def counting(steps: Iterable[T], on_steps: Callable[[int], None]) -> Iterator[T]:
    """Yield the steps. After every REPORT_INTERVAL of them, and at the end, report how many were taken since."""
    number = 0
    for number, step in enumerate(steps, 1):
        yield step
        if number % REPORT_INTERVAL == 0:
            on_steps(REPORT_INTERVAL)
    if number % REPORT_INTERVAL:
        on_steps(number % REPORT_INTERVAL)
