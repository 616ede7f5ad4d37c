"""theta: all that is trained, as one flat vector (P,), and the names and shapes inside it."""

from collections.abc import Callable, Mapping
from math import prod

import torch
from torch import Tensor


class Layout:
    """Where each named tensor lies in theta (P,).

    `shapes` {name: shape} fixes the order. Names are those of the network's layers (`hidden.0.weight`, `head.bias`),
    then what a strategy added.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]):
        self.shapes = {name: tuple(shape) for name, shape in shapes.items()}
        self.sizes = [prod(shape) for shape in self.shapes.values()]

    @property
    def size(self) -> int:
        """P."""
        return sum(self.sizes)

    def view(self, theta: Tensor) -> dict[str, Tensor]:
        """(P,) -> {name: tensor}, without a copy. `split` is used because its backward is one concatenation."""
        pieces = theta.split(self.sizes)
        return {name: piece.view(shape) for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)}

    def flat(self, pieces: Mapping[str, Tensor]) -> Tensor:
        """{name: tensor, or what broadcasts to its shape} -> (P,). KeyError if a name is missing."""
        return torch.cat([pieces[name].expand(shape).reshape(-1) for name, shape in self.shapes.items()])

    def where(self, test: Callable[[str], bool], like: Tensor) -> Tensor:
        """(P,) bool on the device of `like`: the entries whose name passes the test."""
        return torch.cat(
            [
                torch.full((size,), bool(test(name)), device=like.device)
                for name, size in zip(self.shapes, self.sizes, strict=True)
            ]
        )

    def rows(self, test: Callable[[str], bool], row: Tensor) -> Tensor:
        """(P,) bool: where the name passes the test, only the entries at leading index `row` (); elsewhere all."""

        def mine(name: str, shape: tuple[int, ...]) -> Tensor:
            if not test(name):
                return torch.ones((), dtype=torch.bool, device=row.device)
            return (torch.arange(shape[0], device=row.device) == row).view(-1, *[1] * (len(shape) - 1))

        return self.flat({name: mine(name, shape) for name, shape in self.shapes.items()})
