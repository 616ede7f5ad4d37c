"""A data set on the device, and the batches that are gathered from it.

Every image lies on the device once: a picture as uint8, floats as they are. (An "image" is one entry of the data set,
be it a picture, a series or a row of a table; a sample is an image in a task.) A sample is named by a row number,
image + N * task, where N is the number of images: one integer says which image and which task, in a batch as in a
replay memory. What differs between runs (class orders, permutations, angles) is a `TaskTables` of tensors; a batch is
normalised, permuted, rotated and augmented when it is gathered.

Shapes: B samples, C outputs (or channels, of an image), T tasks, K steps, R runs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clrun.data.augmentation import Augmentation, augmentation_of
from clrun.data.samples import Samples
from clrun.data.seeding import DRAWS, STRATEGY_DRAWS, Purpose
from clrun.data.tasks import TaskTables
from clrun.data.transforms import normalisation, turn
from clrun.data.values import Values
from clrun.system.hashing import GOLDEN, mixed, sample_keys, uniforms

# Pixels that are gathered at once, where a step needs fewer: this many stay in a processor's cache.
PIXELS_AT_ONCE = 2**17

# The learning rate where there is no schedule, and where no step is taken.
WHOLE_RATE = torch.ones(())


class StepContext(NamedTuple):
    """What a step knows besides its samples: where in the stream it happens, and its random numbers."""

    stage: Tensor  # () int64: the task being learnt
    horizon: Tensor  # () int64: the newest task seen so far; `stage`, but for strategies that see all tasks at once
    progress: Tensor  # () in [0, 1): the part of the epoch that lies behind
    epoch: Tensor  # () int64: the epochs of the pass that lie behind
    noise: Tensor  # (6, B) uniform in [0, 1), new at every step
    rate: Tensor = WHOLE_RATE  # () what the schedule makes of the learning rate, as a part of it


class SampleIndex(NamedTuple):
    """Which samples a step trains on.

    In a stack of runs, a batch that is short or empty for one of them is filled up with samples of weight 0.
    """

    rows: Tensor  # (B,) int64: image + N * task
    weight: Tensor  # (B,) 1, or 0 where there is no sample
    mean_weight: Tensor  # (B,) weight / sum of weights: `values @ mean_weight` is the mean over the samples
    image: Tensor  # (B,) int64: image number
    t: Tensor  # (B,) int64: task number
    y: Tensor  # (B,) int64: output number


class Batch(NamedTuple):
    """The samples of a step, with its context."""

    x: Tensor  # (B, C, H, W) pictures, or samples (B, ...) of another shape, normalised
    y: Tensor  # (B,) int64: output number
    t: Tensor  # (B,) int64: task number
    active: Tensor  # (B, C) bool: the outputs that may answer
    weight: Tensor  # (B,) 1, or 0 where there is no sample
    mean_weight: Tensor  # (B,) weight / sum of weights
    rows: Tensor  # (B,) int64: image + N * task
    stage: Tensor  # () int64: the task being learnt
    horizon: Tensor  # () int64: the newest task seen so far
    progress: Tensor  # () in [0, 1): the part of the epoch that lies behind
    epoch: Tensor  # () int64: the epochs of the pass that lie behind
    noise: Tensor  # (6, B) uniform in [0, 1): random numbers for the strategy (0 to 2) and the augmentation (3 to 5)
    tables: TaskTables
    smoothing: float = 0.0  # of the labels that are trained on: the share of a target that is spread over the outputs

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean () of values (B,) over the samples, those of weight 0 left out."""
        return values @ self.mean_weight

    def first(self, n: int) -> "Batch":
        """Return the batch of the first n samples."""
        return self._replace(
            x=self.x[:n],
            y=self.y[:n],
            t=self.t[:n],
            active=self.active[:n],
            weight=self.weight[:n],
            mean_weight=self.mean_weight[:n],
            rows=self.rows[:n],
            noise=self.noise[:, :n],
        )


class Pool(NamedTuple):
    """All samples of the task that was just learnt, shuffled, for one pass at its end."""

    rows: Tensor  # (n,) int64: image + N * task
    weight: Tensor  # (n,) 1, or 0 where there is no sample
    noise: Tensor  # (6, n) uniform in [0, 1)
    stage: Tensor  # () int64: the task that was learnt
    horizon: Tensor  # () int64: the newest task seen so far
    tables: TaskTables
    outputs: Tensor  # (k,) int64: the outputs that may answer for a sample of the pool, or of that of a run beside it
    labels: Tensor  # (k,) int64: the outputs that stand for the class of one of these samples

    def first(self, n: int | None) -> "Pool":
        """Return a random n of the samples; all of them if n is None or if there are fewer."""
        return self._replace(rows=self.rows[:n], weight=self.weight[:n], noise=self.noise[:, :n])


@dataclass(frozen=True)
class Data:
    """A data set on the device, shared by all runs of a stack."""

    images: Tensor  # (N, C, H, W) uint8, or (N, ...) floats
    labels: Tensor  # (N,) int64: class numbers
    scale: Tensor  # (C, 1, 1), (F,) for features, or () for one channel: x = number * scale + shift
    shift: Tensor  # like scale
    tasks: int
    outputs: int
    class_count: int  # classes, where a class counts once in every task that has it
    augment: Augmentation | None = None
    smoothing: float = 0.0  # of the labels of every batch that is trained on
    told: bool = True  # whether the strategy is told where tasks begin and end (`boundaries`)
    sharing: int = 1  # runs whose chunks are in the device's memory at the same time: see `share`
    fused: bool = False  # whether bytes become floats while they are scaled: see `scaled`

    def share(self, samples: int) -> int:
        """Return how many samples of a run are computed at once where the device's memory allows this many: of a stack
        on a GPU, each of the runs computes its part of them, at least one.

        On a CPU a run computes as many whether it is alone or in a stack, so that its last digits are the same.
        """
        return max(1, samples // self.sharing)

    def rows(self, images: Tensor, task: int) -> Tensor:
        """Return the rows of images (n,) as samples of a task: image + N * task."""
        return images + len(self.images) * task

    def class_ids(self, rows: Tensor) -> Tensor:
        """Return one number for each class of each task: rows (B,) -> (B,) int64."""
        image = rows % len(self.images)
        return rows - image + self.labels[image]

    def inputs(self, tables: TaskTables, image: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return the network's inputs (B, C, H, W), or (B, ...) of another shape, for image and task numbers (B,).

        They are permuted, rotated and normalised, and augmented where noise (6, B) is given.
        """
        angle = tables.turned.index_select(0, image) if tables.turned.shape[-1] else None
        return self.as_inputs(self.images.index_select(0, image), tables, t, noise, angle)

    def as_inputs(
        self, x: Tensor, tables: TaskTables, t: Tensor, noise: Tensor | None = None, angle: Tensor | None = None
    ) -> Tensor:
        """Return the network's inputs for samples x (B, ...) as they are in the data set, which may be overwritten.
        angle: that of each sample (B,), where pictures turn one by one.

        Floats are normalised first, so that a feature has its own mean wherever a permutation moves it, and what is
        added around a picture of floats is its mean; pictures are normalised last, while they are bytes all else is
        faster.
        """
        floats = x.is_floating_point()
        if floats:
            x = x.mul_(self.scale).add_(self.shift)
        if noise is not None and self.augment is not None:
            x = self.augment(x, noise[STRATEGY_DRAWS:])
        if tables.permutation.shape[-1]:
            by_channel = x.flatten(2) if x.dim() > 2 else x[:, None]
            order = tables.permutation.index_select(0, t)[:, None].expand(-1, by_channel.shape[1], -1)
            x = by_channel.gather(-1, order).view(x.shape)
        if tables.angle.shape[-1]:
            x = turn(x.to(self.scale.dtype), tables.angle[t])
        if angle is not None:
            x = turn(x.to(self.scale.dtype), angle)
        return x.to(self.scale.dtype) if floats else self.scaled(x)

    def scaled(self, x: Tensor) -> Tensor:
        """Return pictures x (B, ...), bytes or what became of them, as normalised floats.

        Where `fused`, bytes become floats in the kernel that scales them, which saves a GPU a kernel and a copy. A CPU
        makes one copy more for it, and takes up to eight times as long. Both give the same bits.
        """
        if self.fused and not x.is_floating_point():
            return torch.mul(x, self.scale).add_(self.shift)
        return x.to(self.scale.dtype).mul_(self.scale).add_(self.shift)

    def index(self, tables: TaskTables, rows: Tensor, weight: Tensor, mean_weight: Tensor | None = None) -> SampleIndex:
        """Return which image, task and output each row (..., B) stands for.

        `mean_weight` is weight / sum of weights unless it is given.
        """
        if mean_weight is None:
            mean_weight = weight / weight.sum(-1, keepdim=True).clamp(min=1)
        t = rows // len(self.images)
        image = rows - t * len(self.images)
        entry = t * tables.label.shape[-1] + self.labels.index_select(0, image.flatten()).view(image.shape)
        y = tables.label.flatten().index_select(0, entry.flatten()).view(entry.shape)
        return SampleIndex(rows, weight, mean_weight, image, t, y)

    def gather(self, tables: TaskTables, index: SampleIndex, context: StepContext, augment: bool = True) -> Batch:
        """Return the samples of a step (B,) as one batch, or of K steps (K, B) as a batch of leaves (K, B, ...)."""
        noise = context.noise.movedim(-2, 0).flatten(1) if augment and self.augment is not None else None
        x = self.inputs(tables, index.image.flatten(), index.t.flatten(), noise).unflatten(0, index.rows.shape)
        case = torch.add(index.t, context.horizon, alpha=len(tables.active))
        active = tables.active.flatten(0, 1).index_select(0, case.flatten()).unflatten(0, case.shape)
        return Batch(
            x, index.y, index.t, active, index.weight, index.mean_weight, index.rows,
            context.stage, context.horizon, context.progress, context.epoch, context.noise, tables, self.smoothing,
        )  # fmt: skip

    def batches(
        self, tables: TaskTables, index: SampleIndex, context: StepContext, pixels: int = PIXELS_AT_ONCE
    ) -> Iterator[Batch]:
        """Yield the batches of K steps, from leaves (K, ...).

        As many steps as have `pixels` pixels together are gathered at once, which gives the same batches. The batches
        of one gathering are released before the next one, which then takes their place in the cache.
        """
        steps = pixels // (index.rows.shape[-1] * self.images[0].numel())
        if steps < 2:
            for one_index, one_context in split_steps(index, context):
                yield self.gather(tables, one_index, one_context)
            return
        parts = zip(*(v.split(steps) for v in (*index, context.progress, context.epoch, context.noise)), strict=True)
        for *samples, progress, epoch, noise in parts:
            part = context._replace(progress=progress, epoch=epoch, noise=noise)
            yield from unbind_batch(self.gather(tables, SampleIndex(*samples), part))

    def batch(
        self, tables: TaskTables, rows: Tensor, weight: Tensor, context: StepContext, augment: bool = True
    ) -> Batch:
        """Return the samples at `rows` (B,) as one batch."""
        return self.gather(tables, self.index(tables, rows, weight), context, augment)

    def recall(self, rows: Tensor, batch: Batch, weight: Tensor | None = None, noise: Tensor | None = None) -> Batch:
        """Return the samples at other rows (B,) in the context of a batch and with its weights.

        Where samples are augmented, each of them is so by numbers of its own, which follow from those of the batch's
        sample beside it and from its row. For m rows, where m is not B or some are not there, weight (m,) and noise
        (6, m) are given.
        """
        mean_weight = batch.mean_weight if weight is None else None
        index = self.index(batch.tables, rows, batch.weight if weight is None else weight, mean_weight)
        if noise is None:
            noise = companion_noise(batch.noise, rows) if self.augment is not None else batch.noise
        context = StepContext(batch.stage, batch.horizon, batch.progress, batch.epoch, noise)
        return self.gather(batch.tables, index, context)

    def chunks(self, pool: Pool, size: int) -> Iterator[Batch]:
        """Yield the pool in order, `size` samples at a time, neither augmented nor with smoothed labels."""
        for i in range(0, len(pool.rows), size):
            part = slice(i, i + size)
            start = torch.zeros_like(pool.weight[0])
            context = StepContext(pool.stage, pool.horizon, start, torch.zeros_like(pool.stage), pool.noise[:, part])
            batch = self.batch(pool.tables, pool.rows[part], pool.weight[part], context, augment=False)
            yield batch._replace(smoothing=0.0)


def companion_noise(noise: Tensor, rows: Tensor) -> Tensor:
    """Return the noise (6, B) of samples at these rows (B,) that are gathered beside those of a batch with this noise:
    the strategy's numbers are the same, and those of the augmentation are others."""
    keys = sample_keys(noise[STRATEGY_DRAWS:], Purpose.COMPANION)
    drawn = uniforms(mixed(keys * GOLDEN ^ rows.to(torch.int32)), DRAWS - STRATEGY_DRAWS)
    return torch.cat([noise[:STRATEGY_DRAWS], drawn.mT.to(noise)])


def split_steps(index: SampleIndex, context: StepContext) -> Iterator[tuple[SampleIndex, StepContext]]:
    """Yield the index and the context of each of K steps, from leaves with an axis K behind R."""
    per_step = zip(*(of_each_step(v, -2) for v in index), strict=True)
    rates = context.rate.expand_as(context.progress)
    numbers = [of_each_step(v, -1) for v in (context.progress, context.epoch, rates)]
    noise = of_each_step(context.noise, -3)
    for samples, progress, epoch, rate, of_step in zip(per_step, *numbers, noise, strict=True):
        yield SampleIndex(*samples), StepContext(context.stage, context.horizon, progress, epoch, of_step, rate)


def of_each_step(values: Tensor, axis: int) -> tuple[Tensor, ...]:
    """Return the values of each step, of an axis of K steps, in one piece of memory: a compiled step is compiled anew
    for other strides, and those of a slice follow from K, which differs from block to block."""
    return values.movedim(axis, 0).contiguous().unbind(0)


def unbind_batch(batch: Batch) -> Iterator[Batch]:
    """Yield the K batches of a batch of leaves (K, B, ...)."""
    per_sample = (batch.x, batch.y, batch.t, batch.active, batch.weight, batch.mean_weight, batch.rows)
    steps = zip(*(v.unbind(0) for v in (*per_sample, batch.progress, batch.epoch, batch.noise)), strict=True)
    for x, y, t, active, weight, mean_weight, rows, progress, epoch, noise in steps:
        yield Batch(
            x, y, t, active, weight, mean_weight, rows, batch.stage, batch.horizon, progress, epoch, noise,
            batch.tables, batch.smoothing,
        )  # fmt: skip


def pad_rows(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return R tensors (n_r,) as rows (R, n) and weight (R, n), filled up with row 0 at weight 0."""
    n = max(len(r) for r in rows)
    padded = torch.stack([F.pad(r, (0, n - len(r))) for r in rows])
    weight = torch.stack([(torch.arange(n) < len(r)) for r in rows])
    return padded, weight.float()


def make_data(
    samples: Samples, settings: Values, tasks: int, outputs: int, device: torch.device, dtype: torch.dtype
) -> Data:
    """Return a data set on the device, with inputs of type `dtype`."""
    normalize = settings.get("dataset.normalize", True)  # a data set of the user's need not have the key
    scale, shift = (v.to(device, dtype) for v in normalisation(samples, normalize))
    if len(scale) == 1:
        scale, shift = scale.view(()), shift.view(())
    augment = augmentation_of(settings)
    classes = outputs * tasks if settings["scenario"] == "domain" else outputs
    x = samples.x.to(device, dtype if samples.x.is_floating_point() else samples.x.dtype)
    smoothing = settings["label_smoothing"] or 0.0
    told = settings["boundaries"] is not False
    return Data(x, samples.y.to(device), scale, shift, tasks, outputs, classes, augment, smoothing, told)
