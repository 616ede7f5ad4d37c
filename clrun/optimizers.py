"""SGD, Adam and AdamW as pure functions of one vector theta (P,), with a learning rate that is a tensor.

`torch.optim` has one learning rate per optimizer and changes its state in place. These are its equations (checked
against it in float64), written as update(g, state, lr, theta) -> (delta, state), so that R runs with R learning rates
are trained at once. A run that is alone takes the same step in place, by the kernel behind `torch.optim`'s fused=True,
which passes over theta once instead of ten times.

Shapes: P parameters.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

# A vector (P,) cut into pieces.
Pieces = list[Tensor] | tuple[Tensor, ...]

# cut(v) cuts a vector (P,) into pieces that share its storage.
Cut = Callable[[Tensor], list[Tensor]]

# step(g, lr) takes an optimizer's step in place, for a gradient in pieces and a learning rate (); of a stack: [(R, P)]
# and (R,).
InPlaceStep = Callable[[Pieces, Tensor], None]


class Optimizer:
    """The equation of an optimizer.

    The dataclass fields of a subclass are the settings of its YAML file, except `reset`, which the engine reads.
    """

    def init(self, theta: Tensor) -> Any:
        """Return the state before the first step for theta (P,), every tensor in its final shape."""
        raise NotImplementedError

    def update(self, g: Tensor, state: Any, lr: Tensor, theta: Tensor) -> tuple[Tensor, Any]:
        """Return the change (P,) of theta (P,) and the next state, for the gradient g (P,) and learning rate lr ()."""
        raise NotImplementedError

    def in_place(self, theta: Tensor, state: Any, cut: Cut) -> InPlaceStep:
        """Return the same step as a function step(g, lr) that writes over theta (P,) and the state.

        The function takes the gradient in pieces, as `cut` makes them of a vector (P,), and leaves it unchanged. By
        default it calls `update`.
        """

        def step(g: Pieces, lr: Tensor) -> None:
            delta, new = self.update(torch.cat([v.reshape(-1) for v in g]), state, lr, theta)
            theta.add_(delta)
            for old, fresh in zip(tree_leaves(state), tree_leaves(new), strict=True):
                old.copy_(fresh)

        return step

    def in_place_stack(self, theta: Tensor, state: Any, equal_rates: Sequence[Sequence[int]]) -> InPlaceStep:
        """Return the same step for R runs, as a function step([g], lr) that writes over theta (R, P) and the state.

        g is (R, P) and lr (R,). equal_rates: the numbers of the runs in groups whose entries of lr are always equal. By
        default it calls `update` for all runs at once.
        """
        update = torch.vmap(self.update)

        def step(g: Pieces, lr: Tensor) -> None:
            delta, new = update(g[0], state, lr, theta)
            theta.add_(delta)
            for old, fresh in zip(tree_leaves(state), tree_leaves(new), strict=True):
                old.copy_(fresh)

        return step


def fused_rate(lr: Tensor) -> Tensor:
    """Return a learning rate () as PyTorch's fused kernels take it: on CUDA in float32, whatever theta is in."""
    return lr.float() if lr.is_cuda else lr


def dense(g: Pieces) -> list[Tensor]:
    """Return gradients as PyTorch's fused kernels take them: on CUDA, each number has memory of its own."""
    return [v.contiguous() for v in g]


def of_group(group: Sequence[int], v: Tensor) -> list[Tensor]:
    """Return the values of a group's runs out of those of all, (R, ...)."""
    return [v[r] for r in group]


@dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent, with Polyak or Nesterov momentum as in torch.optim.SGD (Sutskever et al. 2013).

    Its state is the velocity (P,), empty without momentum. Weight decay is added to the gradient.
    """

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

    def in_place(self, theta: Tensor, state: State, cut: Cut) -> InPlaceStep:
        parameters, velocity = cut(theta), cut(state.velocity) if self.momentum else []

        def step(g: Pieces, lr: Tensor) -> None:
            torch._fused_sgd_(
                parameters, dense(g), velocity, weight_decay=self.weight_decay, momentum=self.momentum,
                lr=fused_rate(lr), dampening=0.0, nesterov=self.nesterov, maximize=False, is_first_step=False,
            )  # fmt: skip

        return step

    def in_place_stack(self, theta: Tensor, state: State, equal_rates: Sequence[Sequence[int]]) -> InPlaceStep:
        def step(g: Pieces, lr: Tensor) -> None:
            for group in equal_rates:
                velocity = of_group(group, state.velocity) if self.momentum else []
                torch._fused_sgd_(
                    of_group(group, theta), dense(of_group(group, g[0])), velocity, weight_decay=self.weight_decay,
                    momentum=self.momentum, lr=fused_rate(lr[group[0]]), dampening=0.0, nesterov=self.nesterov,
                    maximize=False, is_first_step=False,
                )  # fmt: skip

        return step


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam (Kingma & Ba 2015), with eps added after the bias correction.

    Its state is both moments (P,) and a counter. Weight decay is added to the gradient.
    """

    weight_decay: float = 0.0

    b1: ClassVar[float] = 0.9
    b2: ClassVar[float] = 0.999
    eps: ClassVar[float] = 1e-8
    decoupled: ClassVar[bool] = False

    class State(NamedTuple):
        m: Tensor  # (P,) first moment
        v: Tensor  # (P,) second moment
        n: Tensor  # () number of steps, in float32 because the fused kernel asks for it

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

    def in_place(self, theta: Tensor, state: State, cut: Cut) -> InPlaceStep:
        parameters, m, v = cut(theta), cut(state.m), cut(state.v)
        counters = [state.n] * len(parameters)
        kernel = torch._fused_adamw_ if self.decoupled else torch._fused_adam_

        def step(g: Pieces, lr: Tensor) -> None:
            state.n.add_(1)
            kernel(
                parameters, dense(g), m, v, [], counters, lr=fused_rate(lr), beta1=self.b1, beta2=self.b2, eps=self.eps,
                weight_decay=self.weight_decay, amsgrad=False, maximize=False,
            )  # fmt: skip

        return step

    def in_place_stack(self, theta: Tensor, state: State, equal_rates: Sequence[Sequence[int]]) -> InPlaceStep:
        kernel = torch._fused_adamw_ if self.decoupled else torch._fused_adam_

        def step(g: Pieces, lr: Tensor) -> None:
            state.n.add_(1)
            for group in equal_rates:
                parameters, gradients = of_group(group, theta), dense(of_group(group, g[0]))
                m, v, counters = (of_group(group, values) for values in state)
                kernel(
                    parameters, gradients, m, v, [], counters, lr=fused_rate(lr[group[0]]), beta1=self.b1,
                    beta2=self.b2, eps=self.eps, weight_decay=self.weight_decay, amsgrad=False, maximize=False,
                )  # fmt: skip

        return step


@dataclass(frozen=True)
class AdamW(Adam):
    """AdamW: Adam with decoupled weight decay (Loshchilov & Hutter 2019). Its state is that of Adam."""

    decoupled: ClassVar[bool] = True
