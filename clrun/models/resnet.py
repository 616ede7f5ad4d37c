"""ResNet-18 for small images."""

from collections.abc import Sequence
from math import gcd, prod

from torch import Tensor, nn

from clrun.models.network import Network, Tap, Weights, head_layer, picture_shape
from clrun.system.arithmetic import ceil_div
from clrun.system.errors import UsageError

# Of each residual block: input and output channels as multiples of `width`, and the stride.
BLOCKS = ((1, 1, 1), (1, 1, 1), (1, 2, 2), (2, 2, 1), (2, 4, 2), (4, 4, 1), (4, 8, 2), (8, 8, 1))


class ResNet18(Network):
    """A ResNet-18 (He et al. 2016) for small images, with a 3x3 stem of stride 1 and no first pooling.

    `width` is the number of channels of the stem: 20 is the reduced network of Lopez-Paz & Ranzato 2017 (GEM), 64 the
    full one. `norm` is "group" (gcd(channels, 32) groups) or "batch", `head` "linear" (None) or "cosine". `inputs` is
    the shape (channels, height, width) of an image. Raise UsageError if samples are no images, or if the images are too
    small for group norm (`refuse_groups_of_one_value`).
    """

    def __init__(self, inputs: Sequence[int], outputs: int, width: int, norm: str, head: str | None = None):
        channels, height, image_width = picture_shape(inputs, "resnet18")
        self.norm = norm
        self.blocks = [(f"block.{i}", a * width, b * width, stride) for i, (a, b, stride) in enumerate(BLOCKS)]
        self.taps = ("stem", *(f"{name}.conv.1" for name, *_ in self.blocks))
        self.widths = (width, *(b for _, _, b, _ in self.blocks))
        self.layers = self.conv_norm_layers("stem", channels, width, 3)
        for name, a, b, stride in self.blocks:
            self.layers |= self.conv_norm_layers(f"{name}.conv.0", a, b, 3)
            self.layers |= self.conv_norm_layers(f"{name}.conv.1", b, b, 3)
            if stride != 1 or a != b:
                self.layers |= self.conv_norm_layers(f"{name}.short", a, b, 1)
        self.layers["head"] = head_layer(head, 8 * width, outputs)
        self.refuse_groups_of_one_value((height, image_width), width)

    def refuse_groups_of_one_value(self, size: Sequence[int], width: int) -> None:
        """Raise UsageError if a group of a group norm is a single number.

        Such a number minus the group's mean is zero, whatever the image; `size` is (height, width) of an image.
        """
        sides = list(size)
        for _, _, channels, stride in self.blocks:
            sides = [ceil_div(side, stride) for side in sides]
            if self.norm == "group" and prod(sides) == 1 and channels == gcd(channels, 32):
                raise UsageError(
                    f"model.width={width}: pictures of {size[0]} x {size[1]} pixels shrink to one, of which group norm "
                    "with one channel a group leaves nothing; type a larger one, such as model.width=20, or "
                    "model.norm=batch."
                )

    def conv_norm_layers(self, name: str, a: int, b: int, kernel: int) -> dict[str, nn.Module]:
        """Return a convolution of `a` to `b` channels and the norm that follows it, by name."""
        norm = nn.BatchNorm2d(b) if self.norm == "batch" else nn.GroupNorm(gcd(b, 32), b)
        return {name: nn.Conv2d(a, b, kernel, bias=False), f"{name}.norm": norm}

    def conv_norm(self, weights: Weights, name: str, x: Tensor, stride: int) -> Tensor:
        """Return the normalised output (B, out, H / stride, W / stride) of a convolution of x (B, in, H, W)."""
        norm = weights.batch_norm if self.norm == "batch" else weights.group_norm
        return norm(f"{name}.norm", weights.conv(name, x, stride))

    def forward(self, weights: Weights, x: Tensor, tap: Tap, before: Tap) -> Tensor:
        """Return the logits (B, outputs) of images (B, channels, height, width)."""
        h = tap(0, before(0, self.conv_norm(weights, "stem", x, 1)).relu())
        for i, (name, a, b, stride) in enumerate(self.blocks, 1):
            inner = self.conv_norm(weights, f"{name}.conv.0", h, stride).relu()
            short = h if stride == 1 and a == b else self.conv_norm(weights, f"{name}.short", h, stride)
            h = tap(i, before(i, self.conv_norm(weights, f"{name}.conv.1", inner, 1) + short).relu())
        return self.head(weights, h.mean((2, 3)))
