"""Gradients of a loss, for one run or inside a stack."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Aux = dict[str, Tensor]


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
