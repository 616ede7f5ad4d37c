"""Networks as a user would write them, for tests/models/test_modules.py."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn


class Mlp(nn.Sequential):
    """What model=mlp is."""

    def __init__(self, inputs, outputs, widths):
        sizes = [inputs[0] * inputs[1] * inputs[2], *widths]
        hidden = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
        super().__init__(nn.Flatten(), *hidden, nn.Linear(sizes[-1], outputs))


class ConvNormDrop(nn.Module):
    """A convolution, batch norm, and dropout."""

    def __init__(self, outputs, p=0.3):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.act = nn.ReLU()
        self.depth = nn.Conv2d(6, 6, 3, groups=3)
        self.drop = nn.Dropout(p)
        self.fc = nn.Linear(24, outputs)

    def forward(self, x):
        return self.fc(self.drop(self.act(self.depth(self.act(self.norm(self.conv(x))))).flatten(1)))


class Features(nn.Module):
    """Features, not outputs: the last layer is followed by a nonlinearity of its own."""

    def __init__(self, width=5):
        super().__init__()
        self.layer, self.norm = nn.Linear(64, width), nn.LayerNorm(width)

    def forward(self, x):
        return self.norm(self.layer(x.flatten(1)))


class Tokens(nn.Module):
    """Linear layers and norms on the rows of a picture, as in a mixer or a transformer."""

    def __init__(self, outputs):
        super().__init__()
        self.embed, self.norm = nn.Linear(8, 6), nn.LayerNorm(6, eps=1e-2)
        self.mix, self.both, self.fc = nn.Linear(8, 8), nn.LayerNorm([6, 8]), nn.Linear(6, outputs)

    def forward(self, x):
        h = self.norm(self.embed(x.flatten(1, 2)))
        return self.fc(self.both(self.mix(h.mT).tanh()).mean(2))


class Groups(nn.Module):
    """Group norm, and a parameter that belongs to no layer with a formula."""

    def __init__(self, outputs):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, (3, 2), padding=(1, 0), dilation=(1, 2)), nn.GroupNorm(2, 4, eps=1e-2)
        self.scale, self.fc = nn.Parameter(torch.ones(4)), nn.Linear(4, outputs)

    def forward(self, x):
        return self.fc(self.norm(self.conv(x)).relu().mean((2, 3)) * self.scale)


class Skip(nn.Module):
    """A chain of layers to the eye of `named_modules`, with a connection past one of them."""

    def __init__(self, outputs):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(64, 8), nn.Linear(8, 8), nn.Linear(8, outputs)
        self.acts = nn.ModuleList([nn.ReLU(), nn.ReLU()])

    def forward(self, x):
        h = self.acts[0](self.first(x.flatten(1)))
        return self.head(h + self.acts[1](self.second(h)))


class Counting(Features):
    """A buffer changes in a forward pass."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.count += 1
        return super().forward(x)


class OwnChance(Features):
    """Dropout from PyTorch's global generator."""

    def forward(self, x):
        return F.dropout(super().forward(x), 0.5, self.training)


class Pair(Features):
    """Two outputs."""

    def forward(self, x):
        return x, x


class Pictures(Features):
    """The output keeps positions."""

    def forward(self, x):
        return x


def wrong(outputs):
    """A function that returns no module."""
    return outputs


class Deciding(Features):
    """A Python `if` on the value of a tensor."""

    def forward(self, x):
        h = super().forward(x)
        return h + 1 if h.sum() > 1e9 else h


class Eyes(nn.Module):
    """Features of pictures of any size from 6 x 6, with batch norm and dropout, which do nothing new in evaluation."""

    def __init__(self, channels=3, width=7):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, width, 6, stride=2), nn.BatchNorm2d(width)
        self.drop, self.last = nn.Dropout(0.5), nn.Linear(width, width)

    def forward(self, x):
        h = self.norm(self.conv(x)).relu()
        return self.last(self.drop(torch.cat([h.mean((2, 3)), h.amax((2, 3))], 1)[:, ::2]))


class Holes(Eyes):
    """A feature is not a number for a picture that is bright."""

    def forward(self, x):
        return super().forward(x) / (x.mean((1, 2, 3), keepdim=True)[:, :, 0, 0] < 0.7)


class Chance(Features):
    """Dropout from PyTorch's global generator, in evaluation too."""

    def forward(self, x):
        return F.dropout(super().forward(x), 0.5, True)


class Company(Eyes):
    """A picture's features depend on the others."""

    def forward(self, x):
        h = super().forward(x)
        return h - h.mean(0)


class Fails(nn.Module):
    """A class that cannot be made."""

    def __init__(self):
        super().__init__()
        raise RuntimeError("no such thing\nat all")


def grey_transformer(outputs):
    """torchvision's VisionTransformer, made small, for grey pictures of 16 x 16 pixels."""
    from torchvision.models import VisionTransformer

    net = VisionTransformer(16, 4, 2, 2, 16, 32, num_classes=outputs)
    net.conv_proj = nn.Conv2d(1, 16, 4, 4)
    return net


class Turned(Features):
    """Its pictures are turned by matrices whose number is that of the samples."""

    def forward(self, x):
        upside_down = torch.tensor([[-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]).expand(x.shape[0], 2, 3)
        return super().forward(nn.functional.grid_sample(x, nn.functional.affine_grid(upside_down, list(x.shape))))
