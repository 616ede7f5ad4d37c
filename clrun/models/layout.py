"""The layout of theta: all trained parameters as one flat vector (P,), and the names and shapes of its parts."""

from collections.abc import Callable, Mapping
from math import prod

import torch
from torch import Tensor


class Layout:
    """The order, names and shapes of the tensors that theta (P,) consists of.

    `shapes` is {name: shape}. The names are those of the network's parameters, such as `hidden.0.weight` and
    `head.bias`, followed by those of the parameters that a strategy adds (`Strategy.trainables`).
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]):
        self.shapes = {name: tuple(shape) for name, shape in shapes.items()}
        self.sizes = [prod(shape) for shape in self.shapes.values()]

    @property
    def size(self) -> int:
        """The number P of entries of theta."""
        return sum(self.sizes)

    def view(self, theta: Tensor) -> dict[str, Tensor]:
        """Return {name: tensor}, views into theta (P,).

        They are made by `split`, because its backward pass is one concatenation.
        """
        pieces = theta.split(self.sizes)
        return {name: piece.view(shape) for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)}

    def flat(self, pieces: Mapping[str, Tensor]) -> Tensor:
        """Return the vector (P,) of {name: tensor}, where each tensor is broadcast to the shape of its name.

        Raise KeyError if a name of the layout is missing.
        """
        return torch.cat([pieces[name].expand(shape).reshape(-1) for name, shape in self.shapes.items()])

    def where(self, test: Callable[[str], bool], like: Tensor) -> Tensor:
        """Return a mask (P,) bool, on the device of `like`, of the entries whose name passes the test."""
        # Neighbours of one answer are filled at once: it is made anew at every step of HAT, and each part is a kernel.
        spans: list[tuple[bool, int]] = []  # (answer, entries)
        for name, size in zip(self.shapes, self.sizes, strict=True):
            answer = bool(test(name))
            if spans and spans[-1][0] == answer:
                size += spans.pop()[1]
            spans.append((answer, size))
        return torch.cat([torch.full((size,), answer, device=like.device) for answer, size in spans])
