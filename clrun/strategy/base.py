"""Strategy: plain fine-tuning, and the places where a method may differ from it. One run, tensors in, tensors out."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from clrun.data.stream import Batch, Data, Pool
from clrun.models import Net, Network, Statistics
from clrun.strategy.gradients import Aux, gradient_of
from clrun.strategy.loss import cross_entropy
from clrun.strategy.quadratic import Quadratic

Tree = Any  # tensors in tuples, lists and dicts


@dataclass(frozen=True)
class Strategy:
    """Plain fine-tuning. A method overrides what differs, and adds its fixed choices as dataclass fields and its
    strengths (anything a sweep may vary inside one stack) as fields of `Hyper`, all tensors ().

    `aux` is a dict that `loss` hands on to `after_step`; its entries of shape () are also the step's signals, whose
    means over a task stand in health.csv beside what `health` returns.
    """

    net: Net
    data: Data

    phases: ClassVar[tuple[str, ...]] = ("train",)  # the passes over a task
    restart: ClassVar[bool] = False  # fresh parameters before each task
    reads_once: ClassVar[bool] = True  # `logits` reads the network once and at theta itself; said by the class it is in
    shares: ClassVar[tuple[str, ...]] = ()  # signals that are part of the loss: their share of it stands in health.csv

    class Hyper(NamedTuple):
        pass

    def __init_subclass__(cls, **rest: Any) -> None:
        """Accept the former names of two hooks for one release, so that strategies written for 0.1 still run."""
        super().__init_subclass__(**rest)
        for former, name in {"objection": "incompatibility", "complaints": "warnings"}.items():
            if former in vars(cls):
                text = (
                    f"{cls.__qualname__}.{former} is now called {name}; the former name goes away in the next release."
                )
                warnings.warn(text, DeprecationWarning, stacklevel=2)
                setattr(cls, name, vars(cls)[former])

    # ------------------------------------------------------------ on the host

    @classmethod
    def trainables(cls, network: Network, tasks: int, knobs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Leaves of theta beyond the network's, with initial values."""
        return {}

    def visible(self, stage: int) -> Sequence[int]:
        """The tasks whose samples feed this stage (none: nothing is trained). Reads `data.tasks` alone."""
        return (stage,)

    @classmethod
    def incompatibility(cls, network: Network, optimizer: str, knobs: Mapping[str, Any]) -> str | None:
        """Why the method cannot work with this network, optimiser or combination of knobs, in a sentence that says
        what to type instead; said before training. (Scenarios are stated in the yaml.)"""
        return None

    @classmethod
    def warnings(cls, health: Sequence[Mapping[str, float]], knobs: Mapping[str, Any]) -> list[str]:
        """What a reader must know if the method did nothing. `health`: a row a task, as in health.csv."""
        return []

    # ------------------------------------------------------------ pure

    def init(self, theta: Tensor) -> Tree:
        """theta (P,) -> the strategy's state, every leaf of its final shape."""
        return ()

    def logits(self, theta: Tensor, state: Tree, hp: Any, x: Tensor, t: Tensor) -> Tensor:
        """x (B, C, H, W), t (B,) -> (B, outputs): what is trained and what is evaluated."""
        return self.net(theta, x)

    def loss(self, theta: Tensor, state: Tree, hp: Any, batch: Batch) -> tuple[Tensor, Aux]:
        """-> (), aux."""
        return cross_entropy(self.logits(theta, state, hp, batch.x, batch.t), batch), {}

    def quadratic(self, state: Tree, hp: Any) -> Quadratic | None:
        """A penalty on theta that is added to the loss: its gradient is known, so autograd is not asked for it. Its
        mean over a task stands in health.csv as "penalty"."""
        return None

    def gradient(self, theta: Tensor, state: Tree, hp: Any, batch: Batch) -> tuple[Tensor, Tensor, Aux]:
        """-> g (P,), loss (), aux; of the loss without the quadratic."""
        return gradient_of(self.loss, theta, state, hp, batch)

    def restrict(self, delta: Tensor, g: Tensor, theta: Tensor, state: Tree, hp: Any, batch: Batch) -> Tensor:
        """The optimiser's step delta (P,) -> the step taken (P,)."""
        return delta

    def after_step(self, state: Tree, hp: Any, batch: Batch, aux: Aux) -> Tree:
        """-> state."""
        return state

    def after_move(self, state: Tree, before: Tensor, after: Tensor, aux: Aux) -> Tree:
        """before, after: theta (P,) around the step -> state. For path integrals; what it needs is a copy of theta."""
        return state

    def after_phase(self, phase: str, theta: Tensor, state: Tree, hp: Any, pool: Pool) -> tuple[Tensor, Tree]:
        """pool: all samples of the task just learnt -> theta (P,), state. The network is at rest."""
        return theta, state

    def deploy(self, theta: Tensor, state: Tree, hp: Any) -> Tensor:
        """(P,) -> the theta to evaluate (P,)."""
        return theta

    def health(self, state: Tree, hp: Any) -> dict[str, Tensor]:
        """What the state says of the method after a task: {column: ()}."""
        return {}

    # ------------------------------------------------------------ not for overriding

    def eval_mode(self, statistics: Statistics) -> "Strategy":
        """The same strategy with batch norm's running statistics in use."""
        return replace(self, net=self.net.eval_mode(statistics))
