"""Strategy: plain fine-tuning, and the places where a method may differ from it. One run, tensors in, tensors out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clrun.models import Net, Network, Statistics
from clrun.stream import Batch, Data, Pool

Tree = Any  # tensors in tuples, lists and dicts
Aux = dict[str, Tensor]

BARRED = -1e9  # the logit of an output that may not answer


def log_softmax(logits: Tensor, active: Tensor) -> Tensor:
    """Over the active outputs. logits, active (B, C) -> (B, C)."""
    return torch.where(active, logits, BARRED).log_softmax(-1)


def losses(logits: Tensor, y: Tensor, active: Tensor) -> Tensor:
    """logits (B, C), labels (B,), active (B, C) -> (B,): cross entropies, softmax over a sample's active outputs."""
    return F.cross_entropy(torch.where(active, logits, BARRED), y, reduction="none")


def cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    """(B, C) -> (): mean over the samples that are there, softmax over their active outputs."""
    return batch.mean(losses(logits, batch.y, batch.active))


def lifted() -> bool:
    """Inside a torch.func transform (a stack of runs), or being compiled."""
    return torch.compiler.is_compiling() or torch._C._functorch.maybe_current_level() is not None


def gradient_of(loss: Callable[..., tuple[Tensor, Aux]], theta: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Aux]:
    """loss(theta, *rest) -> (value (), aux); returns g (P,), value, aux.

    Alone by plain autograd: `torch.func` costs 12 to 55 % on small networks and imports the compiler (1 s).
    """
    if lifted():
        g, (value, aux) = torch.func.grad_and_value(loss, has_aux=True)(theta, *rest)
        return g, value, aux
    leaf = theta.detach().requires_grad_()
    with torch.enable_grad():
        value, aux = loss(leaf, *rest)
    (g,) = torch.autograd.grad(value, leaf)
    return g, value.detach(), {name: v.detach() for name, v in aux.items()}


def gradient_by_leaf(
    loss: Callable[..., tuple[Tensor, Aux]],
    theta: Tensor, leaves: Sequence[Tensor], cut: Callable[[Tensor], list[Tensor]], *rest: Any,
) -> tuple[list[Tensor], Tensor, Aux]:  # fmt: skip
    """As `gradient_of`, but the network reads `leaves`, the pieces into which theta is cut: g in pieces, value, aux.

    What reaches theta past the network is added to the pieces.
    """
    with torch.enable_grad():
        value, aux = loss(theta, *rest)
    whole, *pieces = torch.autograd.grad(value, [theta, *leaves], allow_unused=True)
    if whole is not None:
        pieces = [w if g is None else g + w for g, w in zip(pieces, cut(whole), strict=True)]
    g = [torch.zeros_like(leaf) if g is None else g.contiguous() for g, leaf in zip(pieces, leaves, strict=True)]
    return g, value.detach(), {name: v.detach() for name, v in aux.items()}


class Gaussian(NamedTuple):
    """What the past asks of theta: sum_k F_k (theta - theta_k)^2 = precision (theta - mean)^2 + constant."""

    mean: Tensor  # (P,)
    precision: Tensor  # (P,)

    def absorb(self, theta: Tensor, precision: Tensor) -> "Gaussian":
        """One more anchor; the sum of all quadratics stays one quadratic, exactly."""
        total = self.precision + precision
        return Gaussian(self.mean + precision / total.clamp(min=1e-30) * (theta - self.mean), total)


class Quadratic(NamedTuple):
    """strength/2 sum_i precision_i (theta_i - mean_i)^2."""

    strength: Tensor  # ()
    mean: Tensor  # (P,)
    precision: Tensor  # (P,)

    def value(self, away: Tensor) -> Tensor:
        """away (P,) = theta - mean -> ()."""
        return self.strength / 2 * ((self.precision * away) @ away)

    def gradient(self, away: Tensor) -> Tensor:
        """away (P,) = theta - mean -> (P,)."""
        return self.strength * self.precision * away


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

    # ------------------------------------------------------------ on the host

    @classmethod
    def trainables(cls, network: Network, tasks: int, knobs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Leaves of theta beyond the network's, with initial values."""
        return {}

    def visible(self, stage: int) -> Sequence[int]:
        """The tasks whose samples feed this stage (none: nothing is trained). Reads `data.tasks` alone."""
        return (stage,)

    @classmethod
    def objection(cls, network: Network, optimizer: str, knobs: Mapping[str, Any]) -> str | None:
        """Why the method cannot work with this network, optimiser or combination of knobs, in a sentence that says
        what to type instead; said before training. (Scenarios are stated in the yaml.)"""
        return None

    @classmethod
    def complaints(cls, health: Sequence[Mapping[str, float]], knobs: Mapping[str, Any]) -> list[str]:
        """What a reader must know if the method did nothing. `health`: a row a task, as in health.csv."""
        return []

    # ------------------------------------------------------------ pure

    def init(self, theta: Tensor) -> Tree:
        """theta (P,) -> the strategy's state, every leaf of its final shape."""
        return ()

    def logits(self, theta: Tensor, own: Tree, hp: Any, x: Tensor, t: Tensor) -> Tensor:
        """x (B, C, H, W), t (B,) -> (B, outputs): what is trained and what is evaluated."""
        return self.net(theta, x)

    def loss(self, theta: Tensor, own: Tree, hp: Any, batch: Batch) -> tuple[Tensor, Aux]:
        """-> (), aux."""
        return cross_entropy(self.logits(theta, own, hp, batch.x, batch.t), batch), {}

    def quadratic(self, own: Tree, hp: Any) -> Quadratic | None:
        """A penalty on theta that is added to the loss: its gradient is known, so autograd is not asked for it. Its
        mean over a task stands in health.csv as "penalty"."""
        return None

    def gradient(self, theta: Tensor, own: Tree, hp: Any, batch: Batch) -> tuple[Tensor, Tensor, Aux]:
        """-> g (P,), loss (), aux; of the loss without the quadratic."""
        return gradient_of(self.loss, theta, own, hp, batch)

    def restrict(self, delta: Tensor, g: Tensor, theta: Tensor, own: Tree, hp: Any, batch: Batch) -> Tensor:
        """The optimiser's step delta (P,) -> the step taken (P,)."""
        return delta

    def after_step(self, own: Tree, hp: Any, batch: Batch, aux: Aux) -> Tree:
        """-> state."""
        return own

    def after_move(self, own: Tree, before: Tensor, after: Tensor, aux: Aux) -> Tree:
        """before, after: theta (P,) around the step -> state. For path integrals; what it needs is a copy of theta."""
        return own

    def after_phase(self, phase: str, theta: Tensor, own: Tree, hp: Any, pool: Pool) -> tuple[Tensor, Tree]:
        """pool: all samples of the task just learnt -> theta (P,), state. The network is at rest."""
        return theta, own

    def deploy(self, theta: Tensor, own: Tree, hp: Any) -> Tensor:
        """(P,) -> the theta to evaluate (P,)."""
        return theta

    def health(self, own: Tree, hp: Any) -> dict[str, Tensor]:
        """What the state says of the method after a task: {column: ()}."""
        return {}

    # ------------------------------------------------------------ not for overriding

    def reading(self, theta: Tensor, leaves: Mapping[str, Tensor]) -> "Strategy":
        """The same strategy, whose network reads these pieces wherever it is given this very theta."""
        return replace(self, net=replace(self.net, theta=theta, leaves=leaves))

    def at_rest(self, statistics: Statistics) -> "Strategy":
        """The same strategy with batch norm's running statistics in use."""
        return replace(self, net=self.net.at_rest(statistics))
