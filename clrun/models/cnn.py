"""A small convolutional network."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from clrun.models.network import Network, Tap, Weights, head_layer, picture_shape
from clrun.system.errors import UsageError


class CNN(Network):
    """A network of two 3x3 convolutions, each with ReLU and 2x2 max pooling, one hidden linear layer and a linear head.

    `inputs` is the shape (channels, height, width) of an image. The hidden layers have `width` and 2 * `width`
    channels and 8 * `width` units. There is no normalisation. `head` is "linear" (None) or
    "cosine". Raise UsageError for images smaller than 4 x 4, and for
    samples that are no images.
    """

    def __init__(self, inputs: Sequence[int], outputs: int, width: int, head: str | None = None):
        channels, image_height, image_width = picture_shape(inputs, "cnn")
        if min(image_height, image_width) < 4:
            raise UsageError(
                f"model=cnn halves pictures twice, and of {image_height} x {image_width} pixels nothing is left; "
                "type model=mlp, or a dataset.pad that makes 4 x 4 of them."
            )
        self.taps, self.widths = ("conv.0", "conv.1", "hidden.0"), (width, 2 * width, 8 * width)
        self.layers = {
            "conv.0": nn.Conv2d(channels, width, 3, padding=1),
            "conv.1": nn.Conv2d(width, 2 * width, 3, padding=1),
            "hidden.0": nn.Linear(2 * width * (image_height // 4) * (image_width // 4), 8 * width),
            "head": head_layer(head, 8 * width, outputs),
        }

    def forward(self, weights: Weights, x: Tensor, tap: Tap, before: Tap) -> Tensor:
        """Return the logits (B, outputs) of images (B, channels, height, width)."""
        h = F.max_pool2d(tap(0, before(0, weights.conv("conv.0", x)).relu()), 2)
        h = F.max_pool2d(tap(1, before(1, weights.conv("conv.1", h)).relu()), 2)
        return self.head(weights, tap(2, before(2, weights.linear("hidden.0", h.flatten(1))).relu()))
