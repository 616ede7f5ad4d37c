"""Gradients of a loss with respect to theta, for one run alone or inside a stack of runs."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from clrun.strategy.returned import check_loss

# Values that `Strategy.loss` passes on to `after_step`, by name.
Aux = dict[str, Tensor]


def inside_transform() -> bool:
    """Return whether the caller runs inside a torch.func transform, as the runs of a stack do, or is being compiled."""
    return torch.compiler.is_compiling() or torch._C._functorch.maybe_current_level() is not None


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the scalar product () of two vectors (P,).

    In a stack, `a @ b` would become a product of R matrices of one row and one column, which a GPU gives to R of its
    processors and no more.
    """
    return (a * b).sum() if inside_transform() else a @ b


def gradient_of(loss: Callable[..., tuple[Tensor, Aux]], theta: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Aux]:
    """Return the gradient g (P,) of loss(theta, *rest) -> (value (), aux), the value and aux, all detached.

    Outside a transform it uses plain autograd: `torch.func` costs 12 to 55 % on small networks and imports the
    compiler, which takes one second. Raise UsageError where the loss returns something else.
    """
    if inside_transform():
        g, (value, aux) = torch.func.grad_and_value(partial(value_and_aux, loss), has_aux=True)(theta, *rest)
        return g, value, aux
    leaf = theta.detach().requires_grad_()
    with torch.enable_grad():
        value, aux = value_and_aux(loss, leaf, *rest)
    (g,) = torch.autograd.grad(value, leaf)
    return g, value.detach(), {name: v.detach() for name, v in aux.items()}


def value_and_aux(loss: Callable[..., tuple[Tensor, Aux]], *arguments: Any) -> tuple[Tensor, Aux]:
    """Return what a loss returns for these arguments. Raise UsageError where that is not a value () and aux."""
    returned = loss(*arguments)
    check_loss(loss, returned)
    return returned


def gradient_by_leaf(
    loss: Callable[..., tuple[Tensor, Aux]],
    theta: Tensor, leaves: Sequence[Tensor], cut: Callable[[Tensor], list[Tensor]], *rest: Any,
) -> tuple[list[Tensor], Tensor, Aux]:  # fmt: skip
    """Return the gradient as a list of pieces, the loss () and aux, all detached.

    It is `gradient_of` for a network that reads `leaves`, the pieces into which `cut` divides theta (P,), instead of
    theta. What the loss takes from theta itself, such as a penalty, is added to the gradients of the leaves.
    """
    with torch.enable_grad():
        value, aux = value_and_aux(loss, theta, *rest)
    whole, *pieces = torch.autograd.grad(value, [theta, *leaves], allow_unused=True)
    if whole is not None:
        pieces = [w if g is None else g + w for g, w in zip(pieces, cut(whole), strict=True)]
    g = [torch.zeros_like(leaf) if g is None else g.contiguous() for g, leaf in zip(pieces, leaves, strict=True)]
    return g, value.detach(), {name: v.detach() for name, v in aux.items()}
