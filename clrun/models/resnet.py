"""ResNet-18 for small images."""

from collections.abc import Sequence
from math import gcd, prod

from torch import Tensor, nn

from clrun.models.network import Network, Tap, Weights
from clrun.system.errors import UsageError


class ResNet18(Network):
    """ResNet-18 for small pictures (3x3 stem, no first pooling). width 20: the reduced one of Lopez-Paz & Ranzato 2017
    (GEM); width 64: the full one. norm: group or batch."""

    def __init__(self, inputs: Sequence[int], outputs: int, width: int, norm: str):
        self.norm = norm
        plan = [(1, 1, 1), (1, 1, 1), (1, 2, 2), (2, 2, 1), (2, 4, 2), (4, 4, 1), (4, 8, 2), (8, 8, 1)]
        self.blocks = [(f"block.{i}", a * width, b * width, stride) for i, (a, b, stride) in enumerate(plan)]
        self.taps = ("stem", *(f"{name}.conv.1" for name, *_ in self.blocks))
        self.widths = (width, *(b for _, _, b, _ in self.blocks))
        self.layers = self.convolution("stem", inputs[0], width, 3)
        for name, a, b, stride in self.blocks:
            self.layers |= self.convolution(f"{name}.conv.0", a, b, 3) | self.convolution(f"{name}.conv.1", b, b, 3)
            if stride != 1 or a != b:
                self.layers |= self.convolution(f"{name}.short", a, b, 1)
        self.layers["head"] = nn.Linear(8 * width, outputs)
        self.refuse_constant(inputs[1:], width)

    def refuse_constant(self, size: Sequence[int], width: int) -> None:
        """UsageError where a group of the norm is one number: less its mean it is zero, whatever the picture."""
        sides = list(size)
        for _, _, channels, stride in self.blocks:
            sides = [-(-side // stride) for side in sides]
            if self.norm == "group" and prod(sides) == 1 and channels == gcd(channels, 32):
                raise UsageError(
                    f"model.width={width}: pictures of {size[0]} x {size[1]} pixels shrink to one, of which group norm "
                    "with one channel a group leaves nothing; type a larger one, such as model.width=20, or "
                    "model.norm=batch."
                )

    def convolution(self, name: str, a: int, b: int, kernel: int) -> dict[str, nn.Module]:
        norm = nn.BatchNorm2d(b) if self.norm == "batch" else nn.GroupNorm(gcd(b, 32), b)
        return {name: nn.Conv2d(a, b, kernel, bias=False), f"{name}.norm": norm}

    def normalised(self, weights: Weights, name: str, x: Tensor, stride: int) -> Tensor:
        norm = weights.batch_norm if self.norm == "batch" else weights.group_norm
        return norm(f"{name}.norm", weights.conv(name, x, stride))

    def forward(self, weights: Weights, x: Tensor, tap: Tap, before: Tap) -> Tensor:
        h = tap(0, before(0, self.normalised(weights, "stem", x, 1)).relu())
        for i, (name, a, b, stride) in enumerate(self.blocks, 1):
            inner = self.normalised(weights, f"{name}.conv.0", h, stride).relu()
            short = h if stride == 1 and a == b else self.normalised(weights, f"{name}.short", h, stride)
            h = tap(i, before(i, self.normalised(weights, f"{name}.conv.1", inner, 1) + short).relu())
        return weights.linear("head", h.mean((2, 3)))
