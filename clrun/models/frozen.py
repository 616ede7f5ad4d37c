"""A network that is never trained and turns pictures into features, which other networks learn from.

A picture is resized and cropped, its pixels are normalised, and the network answers in evaluation mode. Features are
what the network returns, or what its last linear layer is given.

Shapes: B pictures, F features.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clrun.models.fixed import digest_of
from clrun.models.libraries import DEFAULT, LIBRARIES, channels_of
from clrun.models.making import called, made_by
from clrun.models.probing import example, probed, width_of
from clrun.models.weights_file import load_weights
from clrun.system.errors import UsageError

# Mean and deviation of the channels of ImageNet's photos, of pixels from 0 to 1, as torchvision's networks take them.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

# Pictures that go through the network at once, and their pixels on a CPU and on a card: of larger pictures, fewer go at
# once. Large tensors are slow on a CPU, since the system hands them out page by page: 256 pictures of 128 x 128 pixels
# took 3.1 times the CPU time of 16 batches of 16.
LARGEST_BATCH, PIXELS_ON_CPU, PIXELS_ON_CARD = 1024, 2**18, 2**24

# Share of the largest feature by which those of a picture may differ with the pictures beside it: rounding alone.
TOLERANCE = 1e-2


class FrozenNetwork:
    """A module and what is done to a picture before it. Subclasses make the module.

    inputs: the shape (C, H, W) of the pictures. seed: of random weights. size, normalize, weights: as the keys
    `features.size`, `features.normalize` and `features.weights`. head_is_dropped: whether features are what the last
    layer is given, if that is linear. Raise UsageError if there can be no features.
    """

    def __init__(
        self, inputs: Sequence[int], where: str, module: nn.Module, channels: int | None, size: int | None,
        normalize: str, weights: str | Mapping[str, Tensor] | None, head_is_dropped: bool,
    ):  # fmt: skip
        self.where, self.device = where, torch.device("cpu")
        self.preparation = Preparation.of(inputs, channels, size, normalize, where)
        pictures = example(inputs).mul(127).add(128).to(torch.uint8)
        x = self.preparation(pictures)
        module = module.eval().requires_grad_(False)
        advice = "Type a larger features.size, or change the network (features.args={...})."
        head = probed(module, x, where, tuple(x.shape[1:]), advice).head() if head_is_dropped else None
        if weights is not None:
            load_weights(module, weights, head, where, "features.weights")
        self.head_was_dropped = head is not None
        self.module = module if head is None else without_head(module, head)
        self.digest = digest_of(dict(self.module.named_parameters()) | dict(self.module.named_buffers()))
        if head is None:
            probed(self.module, x, where, tuple(x.shape[1:]), advice)
        self.refuse_company_and_chance(x)

    def refuse_company_and_chance(self, x: Tensor) -> None:
        """Raise UsageError if the features of some pictures x (B, ...) are not always the same."""
        with torch.no_grad():
            together, again = self.module(x), self.module(x)
            width_of(together, self.where)
            alone = torch.cat([self.module(one[None]) for one in x])
        if not torch.equal(together.nan_to_num(), again.nan_to_num()):
            raise UsageError(
                f"{self.where} draws random numbers in evaluation, so that its features are never the same twice; use "
                "nn.Dropout layers in place of F.dropout."
            )
        room = TOLERANCE * together.nan_to_num().abs().max()
        if not torch.allclose(together.nan_to_num(), alone.nan_to_num(), rtol=0, atol=float(room)):
            raise UsageError(
                f"{self.where} gives a picture other features when another picture is beside it in the batch; leave "
                "out what reads the batch as a whole."
            )

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over the tensors of a network like this, by their names in `module`. Raise UsageError where they do not
        fit."""
        load_weights(self.module, tensors, None, self.where, "features.weights")
        self.digest = digest_of(dict(self.module.named_parameters()) | dict(self.module.named_buffers()))

    def place(self, device: torch.device) -> None:
        """Move the network to a device."""
        self.device = device
        self.module.to(device)

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        """Return the features (B, F) float32 of pictures (B, C, H, W) uint8."""
        x = torch.from_numpy(np.ascontiguousarray(pictures))
        size = self.preparation.size or max(x.shape[2:])
        pixels = PIXELS_ON_CPU if self.device.type == "cpu" else PIXELS_ON_CARD
        at_once = max(1, min(LARGEST_BATCH, pixels // size**2))
        with torch.no_grad():
            parts = [self.module(self.preparation(part.to(self.device))).float().cpu() for part in x.split(at_once)]
        return torch.cat(parts).numpy()


class FrozenModule(FrozenNetwork):
    """A module of the user's, made by `target`: the path of a class, or of a function that returns a module.

    It is called with `args` and, where it has such a parameter, with `inputs`, the shape of a picture as it sees it.
    """

    def __init__(
        self, inputs: Sequence[int], target: str | None, args: Mapping[str, Any] | None, weights: str | None,
        head: str, seed: int, size: int | None, normalize: str,
    ):  # fmt: skip
        if target is None:
            raise UsageError("features=module needs the class of your network: type features.target=package.Class.")
        if weights == DEFAULT:
            raise UsageError(
                "features.weights=DEFAULT: only features=torchvision and features=timm have any; name a file."
            )
        where = f"features.target={target}"
        channels = len(IMAGENET[0]) if normalize == "imagenet" else None
        seen = (channels or inputs[0], *((size, size) if size is not None else inputs[1:]))
        with seeded(seed):
            module = made_by(target, {"inputs": seen}, args or {}, where)
        super().__init__(inputs, where, module, channels, size, normalize, weights, head == "drop")
        if head == "drop" and not self.head_was_dropped:
            raise UsageError(f"{where}: its last layer is not linear; type features.head=keep for what it returns.")


class FrozenLibraryNetwork(FrozenNetwork):
    """A network of a library by its name, `arch`, without its last layer if that is linear."""

    library: str

    def __init__(
        self, inputs: Sequence[int], arch: str | None, args: Mapping[str, Any] | None, weights: str | None,
        seed: int, size: int | None, normalize: str,
    ):  # fmt: skip
        library = LIBRARIES[self.library]
        name = library.known(arch, "features")
        where = f"features.arch={name}"
        with seeded(seed):
            module = called(lambda: library.make(name, args or {}), where)
        values: str | Mapping[str, Tensor] | None = weights
        if weights == DEFAULT:
            values = library.own_weights(name, "features")
        super().__init__(inputs, where, module, channels_of(args), size, normalize, values, True)


class FrozenTorchvision(FrozenLibraryNetwork):
    """A classification network of torchvision without its last layer."""

    library = "torchvision"


class FrozenTimm(FrozenLibraryNetwork):
    """A network of timm without its last layer."""

    library = "timm"


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed PyTorch's global generator meanwhile."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def without_head(module: nn.Module, head: str) -> nn.Module:
    """Return the module with nothing in place of its last layer, which is at the path `head`."""
    if not head:
        return nn.Identity()
    parent, _, name = head.rpartition(".")
    setattr(module.get_submodule(parent), name, nn.Identity())
    return module


# ---------------------------------------------------------------- what is done to a picture


@dataclass(frozen=True)
class Preparation:
    """What is done to a picture before the network sees it."""

    channels: int | None  # that the network takes; None: those of the picture
    size: int | None  # pixels; None: as the picture is
    mean: tuple[float, ...]  # of the channels, or one for all
    deviation: tuple[float, ...]

    @classmethod
    def of(
        cls, inputs: Sequence[int], channels: int | None, size: int | None, normalize: str, where: str
    ) -> "Preparation":
        """Return what the keys say, for pictures of shape `inputs`. Raise UsageError where it cannot be done."""
        if channels is not None and inputs[0] not in (1, channels):
            why = " (features.normalize=imagenet)" if normalize == "imagenet" else ""
            raise UsageError(f"{where} takes {channels} channels{why}, and these pictures have {inputs[0]}.")
        if normalize == "imagenet" and channels != len(IMAGENET[0]):
            raise UsageError(
                f"{where} takes {channels} channels, and features.normalize=imagenet is for three; type "
                "features.normalize=half or none."
            )
        moments = {"imagenet": IMAGENET, "half": ((0.5,), (0.5,)), "none": ((0.0,), (1.0,))}[normalize]
        return cls(channels, size, *moments)

    def __call__(self, pictures: Tensor) -> Tensor:
        """Return pictures (B, C, H, W) uint8 as the network takes them."""
        x = pictures.float().div_(255)
        if self.size is not None and tuple(x.shape[2:]) != (self.size, self.size):
            x = resized(x, self.size)
        if self.channels is not None:
            x = x.expand(-1, self.channels, *x.shape[2:])
        mean, deviation = (torch.tensor(v, device=x.device).view(1, -1, 1, 1) for v in (self.mean, self.deviation))
        return (x - mean) / deviation


def resized(x: Tensor, size: int) -> Tensor:
    """Return pictures (B, C, H, W) with their shorter side brought to `size` pixels and the middle of the longer one
    cut out, as pictures are read from files."""
    height, width = x.shape[2:]
    shorter = min(height, width)
    sides = [max(size, round(side * size / shorter)) for side in (height, width)]
    x = F.interpolate(x, sides, mode="bilinear", antialias=True, align_corners=False)
    top, left = ((side - size) // 2 for side in sides)
    return x[:, :, top : top + size, left : left + size]
