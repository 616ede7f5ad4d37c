"""What takes many training steps, one after the other."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from clrun.data.stream import SampleIndex, StepContext, split_steps
from clrun.engine.state import Run

TOLD = 64  # steps between two words on how far it is


class Stepper(Protocol):
    """A run, or a stack of them, that is walked along a pass. run: where it is, written over by the next steps."""

    run: Run

    def run_steps(
        self,
        draws: SampleIndex,
        moments: StepContext,
        start: int,
        short: Sequence[int] | None,
        tell: Callable[[int], None],
    ) -> dict[str, Tensor]:
        """A block of K steps -> signals {name: (R, K)}, without the R for one run alone.

        draws, moments: leaves with an axis K behind R. start: the pass's steps before this block. short [K]: samples a
        batch, where those of weight 0 can be left out. tell: is told how many steps were taken.
        """

    def snapshot(self) -> Run:
        """The run as it is; what is given is never changed."""


class EagerStepper:
    """A pure step, one after the other."""

    def __init__(self, step: Callable[..., tuple[Run, dict[str, Tensor]]], run: Run, *values: Any):
        self.step, self.run, self.values = step, run, values

    def run_steps(self, draws, moments, start, short, tell):
        dealt = split_steps(draws, moments)
        if short is not None:
            dealt = (shortened(*one, n) for one, n in zip(dealt, short, strict=True))
        log = [self.one(*one) for one in told(dealt, tell)]
        return {name: torch.stack([entry[name] for entry in log], -1) for name in log[0]}

    def one(self, draw: SampleIndex, moment: StepContext) -> dict[str, Tensor]:
        self.run, signals = self.step(self.run, *self.values, draw, moment)
        return signals

    def snapshot(self):
        return self.run


def shortened(draw: SampleIndex, moment: StepContext, n: int) -> tuple[SampleIndex, StepContext]:
    """What a step is dealt, without the samples beyond its first n."""
    return SampleIndex(*(v[:n] for v in draw)), moment._replace(noise=moment.noise[:, :n])


def told(steps: Iterable[Any], tell: Callable[[int], None]) -> Iterator[Any]:
    """The steps, one by one; every now and then, and at the end, how many there were is told."""
    i = 0
    for i, step in enumerate(steps, 1):
        yield step
        if i % TOLD == 0:
            tell(TOLD)
    tell(i % TOLD)
