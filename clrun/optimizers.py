"""SGD, Adam and AdamW on one vector theta (P,), pure, with a learning rate that is a tensor: R runs, R learning rates.

`torch.optim` has one learning rate an optimiser and keeps its state in place; these are its equations (checked against
it in float64), written as update(g, state, lr, theta) -> (delta, state). A run that is alone takes the same step in
place, by the kernel behind `torch.optim`'s fused=True: one pass over theta in place of ten.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

Cut = Callable[[Tensor], list[Tensor]]  # a vector (P,) into pieces that share its storage


class Optimizer:
    """An optimiser's equation; its fields are the knobs of its yaml (but `reset`, which is the engine's)."""

    def init(self, theta: Tensor) -> Any:
        """The state before the first step, every leaf of its final shape."""
        raise NotImplementedError

    def update(self, g: Tensor, state: Any, lr: Tensor, theta: Tensor) -> tuple[Tensor, Any]:
        """g (P,), lr () -> delta (P,), state."""
        raise NotImplementedError

    def in_place(self, theta: Tensor, state: Any, cut: Cut) -> Callable[[Sequence[Tensor], Tensor], None]:
        """The same step as a function of g, cut into pieces, and lr (), that writes over theta (P,) and the state; g
        stays as it is."""

        def move(g: Sequence[Tensor], lr: Tensor) -> None:
            delta, new = self.update(torch.cat([v.reshape(-1) for v in g]), state, lr, theta)
            theta.add_(delta)
            for old, fresh in zip(tree_leaves(state), tree_leaves(new), strict=True):
                old.copy_(fresh)

        return move


@dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent, with Polyak or Nesterov momentum (Sutskever et al. 2013, as in torch.optim.SGD)."""

    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    class State(NamedTuple):
        velocity: Tensor  # (P,), or (0,) without momentum

    def init(self, theta: Tensor) -> State:
        return self.State(torch.zeros_like(theta) if self.momentum else theta.new_zeros(0))

    def update(self, g: Tensor, state: State, lr: Tensor, theta: Tensor) -> tuple[Tensor, State]:
        g = g + self.weight_decay * theta if self.weight_decay else g
        if not self.momentum:
            return -lr * g, state
        velocity = self.momentum * state.velocity + g
        return -lr * (g + self.momentum * velocity if self.nesterov else velocity), self.State(velocity)

    def in_place(self, theta: Tensor, state: State, cut: Cut) -> Callable[[Sequence[Tensor], Tensor], None]:
        there, velocity = cut(theta), cut(state.velocity) if self.momentum else []

        def move(g: Sequence[Tensor], lr: Tensor) -> None:
            torch._fused_sgd_(
                there, g, velocity, weight_decay=self.weight_decay, momentum=self.momentum, lr=lr, dampening=0.0,
                nesterov=self.nesterov, maximize=False, is_first_step=False,
            )  # fmt: skip

        return move


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam (Kingma & Ba 2015), eps added after bias correction."""

    weight_decay: float = 0.0

    b1: ClassVar[float] = 0.9
    b2: ClassVar[float] = 0.999
    eps: ClassVar[float] = 1e-8
    decoupled: ClassVar[bool] = False

    class State(NamedTuple):
        m: Tensor  # (P,)
        v: Tensor  # (P,)
        n: Tensor  # () float32, as the fused kernel wants it: a whole number of steps

    def init(self, theta: Tensor) -> State:
        n = torch.zeros((), dtype=torch.float32, device=theta.device)
        return self.State(torch.zeros_like(theta), torch.zeros_like(theta), n)

    def update(self, g: Tensor, state: State, lr: Tensor, theta: Tensor) -> tuple[Tensor, State]:
        if self.weight_decay and not self.decoupled:
            g = g + self.weight_decay * theta
        n = state.n + 1
        m = state.m.lerp(g, 1 - self.b1)
        v = torch.addcmul(self.b2 * state.v, g, g, value=1 - self.b2)
        steps = n.double()  # 1 - b2**n at n = 1 is 1e-3, of which float32 keeps five digits
        rate, root = (lr / (1 - self.b1**steps)).to(g.dtype), (1 - self.b2**steps).sqrt().to(g.dtype)
        delta = -rate * (m / (v.sqrt() / root + self.eps))
        if self.weight_decay and self.decoupled:
            delta = delta - lr * self.weight_decay * theta
        return delta, self.State(m, v, n)

    def in_place(self, theta: Tensor, state: State, cut: Cut) -> Callable[[Sequence[Tensor], Tensor], None]:
        there, m, v = cut(theta), cut(state.m), cut(state.v)
        counters = [state.n] * len(there)
        kernel = torch._fused_adamw_ if self.decoupled else torch._fused_adam_

        def move(g: Sequence[Tensor], lr: Tensor) -> None:
            state.n.add_(1)
            kernel(
                there, g, m, v, [], counters, lr=lr, beta1=self.b1, beta2=self.b2, eps=self.eps,
                weight_decay=self.weight_decay, amsgrad=False, maximize=False,
            )  # fmt: skip

        return move


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

    decoupled: ClassVar[bool] = True
