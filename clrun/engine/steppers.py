"""Steppers take the steps of a pass, one after the other. There are three of them, for the sake of speed alone:

* `in_place.InPlaceStepper` takes the steps of one run alone; every run that is trained alone on a CPU uses it. The step
  of a small network is bound by the memory that it touches, so this one is written over the memory of theta.
* `cuda_graph.GraphStepper` is used on CUDA, for one run or a stack. There the step of a small network takes as long as
  the launches of its several hundred kernels, so it is recorded once as a CUDA graph, which is launched as a whole.
* `EagerStepper` calls the pure step function at every step. It is used for a stack on a CPU. On CUDA it is used for a
  stack or a compiled step that is not recorded because the user has typed cuda_graph=off.

`Stack.make_stepper` chooses. Tests hold the three to the same results.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar

import torch

from clrun.data.batches import SampleIndex, StepContext, split_steps
from clrun.engine.state import Signals, TrainState
from clrun.engine.step import Step, StepValues

REPORT_INTERVAL = 64  # steps between two calls that report how many were taken

T = TypeVar("T")


class Block(NamedTuple):
    """What K consecutive steps of a pass need. The axis K lies behind R, which one run alone does not have."""

    samples: SampleIndex  # leaves (R, K, B)
    context: StepContext  # progress and epoch (R, K), noise (R, K, 6, B), stage (), horizon ()
    start: int  # steps of the pass before this block
    # [K] samples of each batch, if batches are to be cut to them; None: B, padding included
    sizes: Sequence[int] | None


class Stepper(Protocol):
    """An object that takes the steps of a pass. run: the run (or stack of runs) after the steps so far; the next steps
    may write over its tensors."""

    current: TrainState

    def run_steps(self, block: Block, on_steps: Callable[[int], None]) -> Signals:
        """Take the K steps of a block and return their signals {name: (R, K)}, (K,) for one run alone.

        on_steps: is called now and then with the number of steps taken since its last call.
        """

    def snapshot(self) -> TrainState:
        """Return the run after the steps so far, in tensors that no later step changes."""


class EagerStepper:
    """A stepper that calls a pure step again and again."""

    def __init__(self, step: Step, current: TrainState, values: StepValues):
        self.step, self.current, self.values = step, current, values

    def run_steps(self, block: Block, on_steps: Callable[[int], None]) -> Signals:
        steps = split_steps(block.samples, block.context)
        log = [self.take_step(samples, context) for samples, context in counting(steps, on_steps)]
        return {name: torch.stack([signals[name] for signals in log], -1) for name in log[0]}

    def take_step(self, samples: SampleIndex, context: StepContext) -> Signals:
        """Take one step and return its signals {name: (R,)}."""
        self.current, signals = self.step(self.current, *self.values, samples, context)
        return signals

    def snapshot(self) -> TrainState:
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
