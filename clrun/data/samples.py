"""The one form that a data set has in memory: samples as one block of numbers, with labels, parts and class names.

Samples are pictures of whole numbers from 0 to 255, (N, C, H, W) uint8, or floats of any shape: features (N, F), series
(N, C, L), maps (N, C, H, W). torch is imported where arrays become tensors, so that this module imports in
milliseconds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from clrun.data.column_rules import ColumnRule
from clrun.system.errors import UsageError
from clrun.system.machine import refuse_if_too_large

if TYPE_CHECKING:
    import torch

    from clrun.data.feature_record import FeatureRecord
    from clrun.data.folder_record import FolderRecord

# Numbers that are summed at once in float64: 32 MB.
SUMMED_AT_ONCE = 2**22


@dataclass(frozen=True)
class Samples:
    """A data set in memory: N samples of K classes, those for training first."""

    x: torch.Tensor  # (N, C, H, W) uint8, or (N, ...) float32: the training samples, then the test samples
    y: torch.Tensor  # (N,) int64: class numbers
    train: int  # number of training samples
    classes: tuple[str, ...]  # K names
    fingerprint: str  # 10 hex digits of what was loaded: numbers before padding, labels, split, names, domains
    domain: torch.Tensor | None = None  # (N,) int64: the domain of each sample, where the data set states it
    domains: tuple[str, ...] = ()  # names of the domains
    standardised: bool = False  # whether the numbers are inputs as they are, and are not to be normalised again
    folder: FolderRecord | None = None  # what is known of the pictures' files, where they are the user's own
    columns: tuple[ColumnRule, ...] = ()  # of a table: how its columns became the numbers
    features: FeatureRecord | None = None  # what made features of pictures, where there are such
    pillow_version: str | None = None  # which decoded picture files; None where there are none
    carried: int = 0  # number of samples at the end that are in neither part: the memory of an earlier run

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample: (C, H, W) of a picture, (F,) of features."""
        return tuple(self.x.shape[1:])

    @property
    def positions(self) -> int:
        """The number of places that `split=permuted` exchanges: pixels, steps of a series, or features."""
        return prod(self.shape[1:]) if len(self.shape) > 1 else self.shape[0]

    @cached_property
    def histogram(self) -> torch.Tensor:
        """(C, 256) int64: the number of pixels of each value in each channel of the training pictures.

        It is counted once, since all runs of a process share the pictures.
        """
        import torch

        channels = self.x[: self.train].unbind(1)
        return torch.stack([torch.bincount(values.flatten(), minlength=256) for values in channels])

    @cached_property
    def moments(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation over the training samples in float64: (F,) for features, else (C,) by channel.

        The deviation of what has one value only is exactly 0.
        """
        return moments_of(self.x[: self.train]) if self.x.is_floating_point() else _picture_moments(self.histogram)


class Arrays(NamedTuple):
    """What a reader returns: a data set as NumPy arrays, before it is padded."""

    x: np.ndarray  # (N, C, H, W) uint8, or (N, ...) float32: the training samples, then the test samples
    y: np.ndarray  # (N,) int64: class numbers
    train: int  # number of training samples
    classes: Sequence[str]
    domain: np.ndarray | None = None  # (N,) int64: numbers of domains
    domains: Sequence[str] = ()
    standardised: bool = False  # whether the numbers are inputs as they are
    fingerprint: str | None = None  # None: it follows from what is above
    folder: FolderRecord | None = None
    columns: tuple[ColumnRule, ...] = ()
    features: FeatureRecord | None = None
    pillow_version: str | None = None


def to_samples(arrays: Arrays, pad: int) -> Samples:
    """Return the arrays as tensors, padded by zeros; raise UsageError where they cannot be padded or do not fit into
    memory. pad: pixels on every side of a picture."""
    import torch

    x = arrays.x if pad == 0 else _padded(arrays.x, pad)
    return Samples(
        x=torch.from_numpy(np.ascontiguousarray(x)),
        y=torch.from_numpy(arrays.y),
        train=arrays.train,
        classes=tuple(arrays.classes),
        fingerprint=arrays.fingerprint or fingerprint(arrays),
        domain=None if arrays.domain is None else torch.from_numpy(arrays.domain),
        domains=tuple(arrays.domains),
        standardised=arrays.standardised,
        folder=arrays.folder,
        columns=arrays.columns,
        features=arrays.features,
        pillow_version=arrays.pillow_version,
    )


def fingerprint(arrays: Arrays) -> str:
    """Return 10 hex digits that change with any number, type, label, class name, domain, shape or size of a part."""
    stated: list[Any] = [arrays.x.shape, arrays.train, list(arrays.classes)]
    if arrays.x.dtype != np.uint8:
        stated.append(arrays.x.dtype.name)
    if arrays.domain is not None:
        stated.append({"domains": list(arrays.domains)})
    if arrays.standardised:
        stated.append("standardised")
    digest = hashlib.blake2b(json.dumps(stated).encode(), digest_size=5)
    for array, kind in ((arrays.x, arrays.x.dtype.newbyteorder("<")), (arrays.y, "<i8"), (arrays.domain, "<i8")):
        if array is not None:
            digest.update(np.ascontiguousarray(array, dtype=kind).data.cast("B"))
    return digest.hexdigest()


def shape_text(shape: Sequence[int]) -> str:
    """Return what a sample is, as a phrase: "16 numbers" or "6 x 128 numbers"."""
    return f"{' x '.join(map(str, shape))} numbers"


def refuse_unless_pictures(shape: Sequence[int], typed: str, instead: str) -> None:
    """Raise UsageError where samples of this shape are not (channels, height, width), which `typed` needs."""
    if len(shape) != 3:
        raise UsageError(
            f"{typed} needs pictures (channels, height, width), and a sample of this data set is {shape_text(shape)}; "
            f"{instead}."
        )


def _padded(x: np.ndarray, pad: int) -> np.ndarray:
    """Return pictures (N, C, H, W) with zeros on every side. Raise UsageError where there is no room, or no picture."""
    refuse_unless_pictures(x.shape[1:], f"dataset.pad={pad}", "leave dataset.pad out")
    count, channels, height, width = x.shape
    sides = f"dataset.pad={pad} (images of {height + 2 * pad} x {width + 2 * pad} pixels)"
    needed = x.itemsize * count * channels * (height + 2 * pad) * (width + 2 * pad)
    refuse_if_too_large(needed, sides, "a smaller dataset.pad")
    return np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))


def _picture_moments(histogram: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and deviation (C,) of pixels from their histogram (C, 256)."""
    import torch

    share = histogram / histogram.sum(1, keepdim=True).double()
    values = torch.arange(256, dtype=torch.float64)
    mean = (share * values).sum(1)
    return mean, ((share * values**2).sum(1) - mean**2).clamp(min=0).sqrt()


def moments_of(x: torch.Tensor, at_once: int = SUMMED_AT_ONCE) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and deviation of floats (N, F) or (N, C, ...) over all axes but the second, in two passes.

    at_once: numbers that are summed at once.
    """
    import torch

    by_channel = x.flatten(2) if x.dim() > 2 else x[:, :, None]  # (N, C, positions)
    parts = by_channel.split(max(1, at_once // max(1, by_channel[0].numel())))
    count = len(x) * by_channel.shape[2]
    mean = torch.stack([part.double().sum((0, 2)) for part in parts]).sum(0) / count
    squares = [(part.double() - mean[:, None]).square().sum((0, 2)) for part in parts]
    deviation = (torch.stack(squares).sum(0) / count).sqrt()
    varies = by_channel.amax((0, 2)) != by_channel.amin((0, 2))  # else rounding of the mean would be all there is
    return mean, torch.where(varies, deviation, torch.zeros_like(deviation))
