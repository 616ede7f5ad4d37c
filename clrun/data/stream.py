"""The stream: pictures on the device, and the batches that are gathered from them.

Every image lies on the device once, as uint8. A sample is named by a row number, image + N * task: one integer says
which image and which task, in a batch as in a replay memory. What differs between runs (class orders, permutations,
angles) is a `TaskTables` of tensors; normalising, permuting, rotating and augmenting happen when a batch is gathered.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clrun.data.datasets import Images
from clrun.data.tasks import TaskTables
from clrun.data.transforms import crop_flip, normalisation, turn

AT_ONCE = 2**17  # pixels gathered at once, where steps need fewer: they stay in the cache


class StepContext(NamedTuple):
    """When a step happens, and its share of chance."""

    stage: Tensor  # () task now being learnt
    horizon: Tensor  # () newest task seen so far; stage, but for strategies that see all tasks at once
    progress: Tensor  # () in [0, 1): how far into the epoch
    noise: Tensor  # (6, B) uniform in [0, 1), new at every step: chance is data


class SampleIndex(NamedTuple):
    """Which samples a step is dealt. In a stack, a batch that is short or empty for some run is filled up with weight
    0; `share` is the weight over its sum: a mean over the samples that are there is a product with it."""

    rows: Tensor  # (B,) image + N * task
    weight: Tensor  # (B,) 1, or 0 where there is no sample
    share: Tensor  # (B,)
    image: Tensor  # (B,)
    t: Tensor  # (B,) task number
    y: Tensor  # (B,) output number


class Batch(NamedTuple):
    """The samples themselves."""

    x: Tensor  # (B, C, H, W)
    y: Tensor  # (B,) output number
    t: Tensor  # (B,) task number
    active: Tensor  # (B, C) bool: the outputs that may answer
    weight: Tensor  # (B,) 1, or 0 where there is no sample
    share: Tensor  # (B,) weight over its sum
    rows: Tensor  # (B,) image + N * task
    stage: Tensor  # ()
    horizon: Tensor  # ()
    progress: Tensor  # ()
    noise: Tensor  # (6, B)
    tables: TaskTables

    def mean(self, values: Tensor) -> Tensor:
        """(B,) -> (): over the samples that are there."""
        return values @ self.share

    def first(self, n: int) -> "Batch":
        """Its first n samples."""
        samples = (v[:n] for v in self[:7])
        return Batch(*samples, self.stage, self.horizon, self.progress, self.noise[:, :n], self.tables)


class Pool(NamedTuple):
    """All samples of the task just learnt, shuffled, for one pass at its end."""

    rows: Tensor  # (n,)
    weight: Tensor  # (n,)
    noise: Tensor  # (6, n)
    stage: Tensor  # ()
    horizon: Tensor  # ()
    tables: TaskTables

    def first(self, n: int | None) -> "Pool":
        """A random n of them (all if None or if there are fewer)."""
        return self._replace(rows=self.rows[:n], weight=self.weight[:n], noise=self.noise[:, :n])


@dataclass(frozen=True)
class Data:
    """On the device once, shared by all runs."""

    images: Tensor  # (N, C, H, W) uint8
    labels: Tensor  # (N,) int64 class numbers
    scale: Tensor  # (C, 1, 1), or () for one channel: x = pixel * scale + shift
    shift: Tensor  # like scale
    tasks: int
    outputs: int
    kinds: int  # classes, counted once in every task that has them
    augment: bool = False

    def rows(self, images: Tensor, task: int) -> Tensor:
        """Return the rows of images (n,) as samples of a task: image + N * task."""
        return images + len(self.images) * task

    def kind(self, rows: Tensor) -> Tensor:
        """(B,) -> (B,) int64: one number for each class of each task."""
        image = rows % len(self.images)
        return rows - image + self.labels[image]

    def pictures(self, tables: TaskTables, image: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """images and tasks (B,) -> (B, C, H, W), normalised; augmented where noise (6, B) is given."""
        x = self.images.index_select(0, image)
        if noise is not None:
            x = crop_flip(x, noise[3:])
        if tables.permutation.shape[-1]:
            places = tables.permutation.index_select(0, t)[:, None].expand(-1, x.shape[1], -1)
            x = x.flatten(2).gather(-1, places).view(x.shape)
        x = x.to(self.scale.dtype)
        if tables.angle.shape[-1]:
            x = turn(x, tables.angle[t])
        return x.mul_(self.scale).add_(self.shift)

    def drawn(self, tables: TaskTables, rows: Tensor, weight: Tensor) -> SampleIndex:
        """rows, weight (..., B): all that can be known of a step's samples, or of many steps', before it is taken."""
        return self.named(tables, rows, weight, weight / weight.sum(-1, keepdim=True).clamp(min=1))

    def named(self, tables: TaskTables, rows: Tensor, weight: Tensor, share: Tensor) -> SampleIndex:
        """Which picture, task and output number each row (..., B) stands for."""
        t = rows // len(self.images)
        image = rows - t * len(self.images)
        place = t * tables.label.shape[-1] + self.labels.index_select(0, image.flatten()).view(image.shape)
        y = tables.label.flatten().index_select(0, place.flatten()).view(place.shape)
        return SampleIndex(rows, weight, share, image, t, y)

    def gathered(self, tables: TaskTables, draw: SampleIndex, when: StepContext, augment: bool = True) -> Batch:
        """The samples of a step (B,) as one batch; of K steps (K, B) as one tree of batches."""
        noise = when.noise.movedim(-2, 0).flatten(1) if self.augment and augment else None
        x = self.pictures(tables, draw.image.flatten(), draw.t.flatten(), noise).unflatten(0, draw.rows.shape)
        case = when.horizon * len(tables.active) + draw.t
        active = tables.active.flatten(0, 1).index_select(0, case.flatten()).unflatten(0, case.shape)
        moment = when.stage, when.horizon, when.progress, when.noise
        return Batch(x, draw.y, draw.t, active, draw.weight, draw.share, draw.rows, *moment, tables)

    def steps(self, tables: TaskTables, draws: SampleIndex, moments: StepContext) -> Iterator[Batch]:
        """The batches of K steps, leaves (K, ...): small ones are gathered several at a time, which gives the same.

        What has been dealt is let go of before more is gathered, which then takes its place in the cache.
        """
        several = AT_ONCE // (draws.rows.shape[-1] * self.images[0].numel())
        if several < 2:
            yield from (self.gathered(tables, *dealt) for dealt in dealt_out(draws, moments))
            return
        parts = zip(*(v.split(several) for v in (*draws, moments.progress, moments.noise)), strict=True)
        for *draw, progress, noise in parts:
            context = moments._replace(progress=progress, noise=noise)
            yield from taken_apart(self.gathered(tables, SampleIndex(*draw), context))

    def batch(self, tables: TaskTables, rows: Tensor, weight: Tensor, when: StepContext, augment: bool = True) -> Batch:
        """The samples at `rows` (B,) as one batch."""
        return self.gathered(tables, self.drawn(tables, rows, weight), when, augment)

    def recall(self, rows: Tensor, batch: Batch) -> Batch:
        """Other rows (B,) at the same moment: what a memory brings back, augmented as the stream is."""
        draw = self.named(batch.tables, rows, batch.weight, batch.share)
        return self.gathered(batch.tables, draw, StepContext(batch.stage, batch.horizon, batch.progress, batch.noise))

    def chunks(self, pool: "Pool", size: int) -> Iterator[Batch]:
        """The pool in order, `size` samples at a time, unaugmented."""
        for i in range(0, len(pool.rows), size):
            part = slice(i, i + size)
            when = StepContext(pool.stage, pool.horizon, torch.zeros_like(pool.weight[0]), pool.noise[:, part])
            yield self.batch(pool.tables, pool.rows[part], pool.weight[part], when, augment=False)


def dealt_out(draws: SampleIndex, moments: StepContext) -> Iterator[tuple[SampleIndex, StepContext]]:
    """What each of K steps gets; leaves with an axis K behind R."""
    each = zip(*(v.unbind(-2) for v in draws), strict=True)
    chances = zip(moments.progress.unbind(-1), moments.noise.unbind(-3), strict=True)
    for draw, chance in zip(each, chances, strict=True):
        yield SampleIndex(*draw), StepContext(moments.stage, moments.horizon, *chance)


def taken_apart(together: Batch) -> Iterator[Batch]:
    """The batches of a tree of batches (K, ...)."""
    each = [v.unbind(0) for v in (*together[:7], together.progress, together.noise)]
    for *samples, progress, noise in zip(*each, strict=True):
        yield Batch(*samples, together.stage, together.horizon, progress, noise, together.tables)


def pad_rows(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """[(n_r,)] -> rows (R, n), weight (R, n): filled up with row 0 at weight 0."""
    n = max(len(r) for r in rows)
    padded = torch.stack([F.pad(r, (0, n - len(r))) for r in rows])
    weight = torch.stack([(torch.arange(n) < len(r)) for r in rows])
    return padded, weight.float()


def place(
    images: Images,
    settings: Mapping[str, Any],
    tasks: int,
    outputs: int,
    device: torch.device | str,
    dtype: torch.dtype,
) -> Data:
    """The images on the device."""
    scale, shift = (v.to(device, dtype) for v in normalisation(images, settings["dataset.normalize"]))
    if len(scale) == 1:
        scale, shift = scale[0, 0, 0], shift[0, 0, 0]
    augment = settings["augment"] == "crop_flip"
    kinds = outputs * tasks if settings["scenario"] == "domain" else outputs
    return Data(images.x.to(device), images.y.to(device), scale, shift, tasks, outputs, kinds, augment)
