"""The stream: which pictures belong to which task, what their labels are, and which outputs may answer.

Every image lies on the device once, as uint8. A sample is named by a row number, image + N * task: one integer says
which image and which task, in a batch as in a replay memory. What differs between runs (class orders, permutations,
angles) is a `Deal` of tensors; normalising, permuting, rotating and augmenting happen when a batch is gathered.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clrun import split
from clrun.datasets import Images
from clrun.errors import UsageError
from clrun.room import refuse_without_room

AT_ONCE = 2**17  # pixels gathered at once, where steps need fewer: they stay in the cache
DRAWS = 6  # uniform numbers a sample and step: three for strategies, three for augmentation


class Deal(NamedTuple):
    """What a run's tasks are made of. T tasks, K classes in the data, C outputs."""

    label: Tensor  # (T, K) int64: the output that stands for class k in task t
    active: Tensor  # (T, T, C) bool [tasks seen - 1, task]: the outputs that may answer
    unlearnt: Tensor  # (T, C) bool: the same before any training
    permutation: Tensor  # (T, H * W) int64: pixel order; (T, 0) where pixels stay
    angle: Tensor  # (T,) radians; (0,) where nothing turns


class Moment(NamedTuple):
    """When a step happens, and its share of chance."""

    stage: Tensor  # () task now being learnt
    horizon: Tensor  # () newest task seen so far; stage, but for strategies that see all tasks at once
    progress: Tensor  # () in [0, 1): how far into the epoch
    noise: Tensor  # (6, B) uniform in [0, 1), new at every step: chance is data


class Draw(NamedTuple):
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
    deal: Deal

    def mean(self, values: Tensor) -> Tensor:
        """(B,) -> (): over the samples that are there."""
        return values @ self.share

    def first(self, n: int) -> "Batch":
        """Its first n samples."""
        samples = (v[:n] for v in self[:7])
        return Batch(*samples, self.stage, self.horizon, self.progress, self.noise[:, :n], self.deal)


class Pool(NamedTuple):
    """All samples of the task just learnt, shuffled, for one pass at its end."""

    rows: Tensor  # (n,)
    weight: Tensor  # (n,)
    noise: Tensor  # (6, n)
    stage: Tensor  # ()
    horizon: Tensor  # ()
    deal: Deal

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

    def kind(self, rows: Tensor) -> Tensor:
        """(B,) -> (B,) int64: one number for each class of each task."""
        image = rows % len(self.images)
        return rows - image + self.labels[image]

    def pictures(self, deal: Deal, image: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """images and tasks (B,) -> (B, C, H, W), normalised; augmented where noise (6, B) is given."""
        x = self.images.index_select(0, image)
        if noise is not None:
            x = crop_flip(x, noise[3:])
        if deal.permutation.shape[-1]:
            places = deal.permutation.index_select(0, t)[:, None].expand(-1, x.shape[1], -1)
            x = x.flatten(2).gather(-1, places).view(x.shape)
        x = x.to(self.scale.dtype)
        if deal.angle.shape[-1]:
            x = turn(x, deal.angle[t])
        return x.mul_(self.scale).add_(self.shift)

    def drawn(self, deal: Deal, rows: Tensor, weight: Tensor) -> Draw:
        """rows, weight (..., B): all that can be known of a step's samples, or of many steps', before it is taken."""
        return self.named(deal, rows, weight, weight / weight.sum(-1, keepdim=True).clamp(min=1))

    def named(self, deal: Deal, rows: Tensor, weight: Tensor, share: Tensor) -> Draw:
        """Which picture, task and output number each row (..., B) stands for."""
        t = rows // len(self.images)
        image = rows - t * len(self.images)
        place = t * deal.label.shape[-1] + self.labels.index_select(0, image.flatten()).view(image.shape)
        y = deal.label.flatten().index_select(0, place.flatten()).view(place.shape)
        return Draw(rows, weight, share, image, t, y)

    def gathered(self, deal: Deal, draw: Draw, when: Moment, augment: bool = True) -> Batch:
        """The samples of a step (B,) as one batch; of K steps (K, B) as one tree of batches."""
        noise = when.noise.movedim(-2, 0).flatten(1) if self.augment and augment else None
        x = self.pictures(deal, draw.image.flatten(), draw.t.flatten(), noise).unflatten(0, draw.rows.shape)
        case = when.horizon * len(deal.active) + draw.t
        active = deal.active.flatten(0, 1).index_select(0, case.flatten()).unflatten(0, case.shape)
        moment = when.stage, when.horizon, when.progress, when.noise
        return Batch(x, draw.y, draw.t, active, draw.weight, draw.share, draw.rows, *moment, deal)

    def steps(self, deal: Deal, draws: Draw, moments: Moment) -> Iterator[Batch]:
        """The batches of K steps, leaves (K, ...): small ones are gathered several at a time, which gives the same.

        What has been dealt is let go of before more is gathered, which then takes its place in the cache.
        """
        several = AT_ONCE // (draws.rows.shape[-1] * self.images[0].numel())
        if several < 2:
            yield from (self.gathered(deal, *dealt) for dealt in dealt_out(draws, moments))
            return
        parts = zip(*(v.split(several) for v in (*draws, moments.progress, moments.noise)), strict=True)
        for *draw, progress, noise in parts:
            yield from taken_apart(self.gathered(deal, Draw(*draw), moments._replace(progress=progress, noise=noise)))

    def batch(self, deal: Deal, rows: Tensor, weight: Tensor, when: Moment, augment: bool = True) -> Batch:
        """The samples at `rows` (B,) as one batch."""
        return self.gathered(deal, self.drawn(deal, rows, weight), when, augment)

    def recall(self, rows: Tensor, batch: Batch) -> Batch:
        """Other rows (B,) at the same moment: what a memory brings back, augmented as the stream is."""
        draw = self.named(batch.deal, rows, batch.weight, batch.share)
        return self.gathered(batch.deal, draw, Moment(batch.stage, batch.horizon, batch.progress, batch.noise))

    def chunks(self, pool: "Pool", size: int) -> Iterator[Batch]:
        """The pool in order, `size` samples at a time, unaugmented."""
        for i in range(0, len(pool.rows), size):
            part = slice(i, i + size)
            when = Moment(pool.stage, pool.horizon, torch.zeros_like(pool.weight[0]), pool.noise[:, part])
            yield self.batch(pool.deal, pool.rows[part], pool.weight[part], when, augment=False)


def dealt_out(draws: Draw, moments: Moment) -> Iterator[tuple[Draw, Moment]]:
    """What each of K steps gets; leaves with an axis K behind R."""
    each = zip(*(v.unbind(-2) for v in draws), strict=True)
    chances = zip(moments.progress.unbind(-1), moments.noise.unbind(-3), strict=True)
    for draw, chance in zip(each, chances, strict=True):
        yield Draw(*draw), Moment(moments.stage, moments.horizon, *chance)


def taken_apart(together: Batch) -> Iterator[Batch]:
    """The batches of a tree of batches (K, ...)."""
    each = [v.unbind(0) for v in (*together[:7], together.progress, together.noise)]
    for *samples, progress, noise in zip(*each, strict=True):
        yield Batch(*samples, together.stage, together.horizon, progress, noise, together.deal)


def crop_flip(x: Tensor, noise: Tensor) -> Tensor:
    """Random crop after padding by an eighth of the side with black, and a horizontal flip; noise (3, B)."""
    height, width = x.shape[-2:]
    pad = height // 8
    padded = F.pad(x, (pad, pad, pad, pad))
    shift = (noise[:2] * (2 * pad + 1)).long()
    down = torch.arange(height, device=x.device) + shift[0][:, None]
    right = torch.arange(width, device=x.device)
    right = torch.where(noise[2][:, None] < 0.5, right, right.flip(0)) + shift[1][:, None]
    picked = padded.gather(2, down[:, None, :, None].expand(-1, x.shape[1], -1, padded.shape[-1]))
    return picked.gather(3, right[:, None, None, :].expand(-1, x.shape[1], height, -1))


def turn(x: Tensor, angle: Tensor) -> Tensor:
    """Rotate counter-clockwise by angle (B,) radians about the centre, bilinear, black outside."""
    c, s, o = angle.cos(), angle.sin(), torch.zeros_like(angle)
    affine = torch.stack([torch.stack([c, -s, o], -1), torch.stack([s, c, o], -1)], -2).to(x.dtype)
    grid = F.affine_grid(affine, x.shape, align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


# ---------------------------------------------------------------- chance


def generator(seed: int, purpose: str) -> torch.Generator:
    """The generator of one purpose of one run: no draw of one purpose ever moves another."""
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


# ---------------------------------------------------------------- dealing


class Hand(NamedTuple):
    """One run's tasks, on the host. Pools hold image numbers; task t's rows are image + N * t."""

    deal: Deal
    train: list[Tensor]  # [task] (n,)
    validation: list[Tensor]
    test: list[Tensor]
    names: list[str]  # of the outputs

    def first(self, k: int) -> "Hand":
        """The first k tasks, as they stand in the whole stream: with the same outputs, so with the same network."""
        deal = self.deal
        part = Deal(deal.label[:k], deal.active[:k, :k], deal.unlearnt[:k], deal.permutation[:k], deal.angle[:k])
        return Hand(part, self.train[:k], self.validation[:k], self.test[:k], self.names)


def split_seed(settings: Mapping[str, Any]) -> int:
    return settings["seed"] if settings["split.seed"] is None else settings["split.seed"]


def class_groups(images: Images, settings: Mapping[str, Any]) -> list[list[int]]:
    """Class numbers a task. An even split in drawn order is dealt from a permutation that belongs to the seed."""
    groups = split.deal(images.classes, settings)
    if settings["split.order"] != "seed":
        return groups
    classes = torch.tensor([k for group in groups for k in group])
    drawn = classes[torch.randperm(len(classes), generator=generator(split_seed(settings), "class order"))].tolist()
    size = len(groups[0])
    return [drawn[i : i + size] for i in range(0, len(drawn), size)]


def tables(groups: Sequence[Sequence[int]], classes: int, settings: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """label (T, K), active (T, T, C), unlearnt (T, C): the one place that knows task-, domain- and class-incremental.

    task: a task's own outputs answer, always. domain: all tasks share the outputs. class: the outputs of all classes
    seen so far answer, or of all classes (`active`).
    """
    shared = settings["scenario"] == "domain"
    T, sizes = len(groups), [len(group) for group in groups]
    starts = [0 if shared else sum(sizes[:t]) for t in range(T)]
    C = max(sizes) if shared else sum(sizes)
    label = torch.zeros(T, classes, dtype=torch.long)
    own = torch.zeros(T, C, dtype=torch.bool)
    for t, group in enumerate(groups):
        label[t, list(group)] = torch.arange(starts[t], starts[t] + len(group))
        own[t, starts[t] : starts[t] + len(group)] = True
    seen = torch.stack([own[: s + 1].any(0) for s in range(T)])[:, None].expand(T, T, C)
    everything = torch.ones(T, T, C, dtype=torch.bool)
    by_scenario = {"task": own.expand(T, T, C), "domain": everything}
    by_scenario["class"] = seen if settings["active"] == "seen" else everything
    active = by_scenario[settings["scenario"]].clone()
    return label, active, active[0] | own


def output_names(groups: Sequence[Sequence[int]], classes: Sequence[str], settings: Mapping[str, Any]) -> list[str]:
    """What each output stands for: a class, or, where tasks share outputs, one class of every task."""
    if settings["split"] != "classes":
        return [classes[k] for group in (groups[:1] if settings["scenario"] == "domain" else groups) for k in group]
    if settings["scenario"] == "domain":
        return ["/".join(classes[k] for k in place) for place in zip(*groups, strict=True)]
    return [classes[k] for group in groups for k in group]


def permutations(settings: Mapping[str, Any], pixels: int) -> Tensor:
    """(T, H * W): the first task's pixels stay, every other task has an order of its own."""
    draw = generator(split_seed(settings), "permutations")
    return torch.stack(
        [torch.arange(pixels)] + [torch.randperm(pixels, generator=draw) for _ in range(settings["tasks"] - 1)]
    )


def angles(settings: Mapping[str, Any]) -> Tensor:
    """(T,) radians: uniform in [0, max_angle) (Buzzega et al. 2020), or evenly spaced from 0 with order=fixed."""
    T, most = settings["tasks"], settings["split.max_angle"] * torch.pi / 180
    if settings["split.order"] == "fixed":
        return torch.arange(T) * (most / T)
    return torch.rand(T, generator=generator(split_seed(settings), "angles")) * most


def hold_out(numbers: Tensor, labels: Tensor, share: float, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """image numbers -> (for training, for validation): the same share of each class, one at least for training."""
    kept, held = [], []
    for k in labels[numbers].unique().tolist():
        mine = numbers[labels[numbers] == k]
        mine = mine[torch.randperm(len(mine), generator=draw)]
        n = min(round(share * len(mine)), len(mine) - 1) if share > 0 else 0
        held.append(mine[:n])
        kept.append(mine[n:])
    return torch.cat(kept).sort().values, torch.cat(held).sort().values


def of_classes(numbers: Tensor, labels: Tensor, group: Sequence[int]) -> Tensor:
    """Those of the image numbers whose class is in the group."""
    return numbers[torch.isin(labels[numbers], torch.tensor(group))]


def draw_hand(images: Images, settings: Mapping[str, Any]) -> Hand:
    """One run's tasks. UsageError where a task would be left without a picture."""
    refuse_many_tasks(images, settings)
    by_class = settings["split"] == "classes"
    everything = list(range(len(images.classes)))
    groups = class_groups(images, settings) if by_class else [everything] * settings["tasks"]
    deal = Deal(*tables(groups, len(images.classes), settings), *transforms(images, settings))
    draw = generator(split_seed(settings), "validation")
    train, validation = hold_out(torch.arange(images.train), images.y, settings["validation"], draw)
    test = torch.arange(images.train, len(images.y))
    pools = [share_out(numbers, images.y, groups) for numbers in (train, validation, test)]
    hand = Hand(deal, *pools, output_names(groups, images.classes, settings))
    refuse_empty(hand, settings)
    return hand if settings["first_tasks"] is None else hand.first(settings["first_tasks"])


def refuse_many_tasks(images: Images, settings: Mapping[str, Any]) -> None:
    """The tables grow with the square of the tasks, and with their cube where every task has outputs of its own."""
    T, K = settings["tasks"], len(images.classes)
    outputs = K if settings["scenario"] == "domain" or settings["split"] == "classes" else T * K
    pixels = images.x.shape[-1] * images.x.shape[-2] if settings["split"] == "permuted" else 0
    needed = 2 * T * T * outputs + 8 * T * (K + pixels)
    refuse_without_room(needed, f"tasks={T} (which outputs answer after each, for each)", "fewer tasks")


def transforms(images: Images, settings: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """permutation (T, H * W) or (T, 0), angle (T,) or (0,)."""
    T, pixels = settings["tasks"], images.x.shape[-1] * images.x.shape[-2]
    still = torch.zeros(T, 0, dtype=torch.long)
    permutation = permutations(settings, pixels) if settings["split"] == "permuted" else still
    return permutation, angles(settings) if settings["split"] == "rotated" else torch.zeros(0)


def share_out(numbers: Tensor, labels: Tensor, groups: Sequence[Sequence[int]]) -> list[Tensor]:
    """Image numbers a task; tasks of the same classes share one tensor."""
    pools = {tuple(group): of_classes(numbers, labels, group) for group in groups}
    return [pools[tuple(group)] for group in groups]


def refuse_empty(hand: Hand, settings: Mapping[str, Any]) -> None:
    for t, (train, test, validation) in enumerate(zip(hand.train, hand.test, hand.validation, strict=True), 1):
        if not len(train) or not len(test):
            kind = "training" if not len(train) else "test"
            raise UsageError(
                f"Task {t} has no {kind} pictures: its classes need at least one each in training and test."
            )
        if settings["validation"] > 0 and not len(validation):
            raise UsageError(
                f"validation={settings['validation']} leaves task {t} without a validation picture: "
                f"a class has too few; try a larger fraction, or validation=0."
            )
        if settings["drop_last"] and len(train) < settings["batch_size"]:
            raise UsageError(
                f"drop_last=true with batch_size={settings['batch_size']} leaves task {t} nothing to learn from: "
                f"it has {len(train)} training pictures; type drop_last=false, or batch_size={len(train)} or less."
            )


# ---------------------------------------------------------------- on the device


def pad_rows(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """[(n_r,)] -> rows (R, n), weight (R, n): filled up with row 0 at weight 0."""
    n = max(len(r) for r in rows)
    padded = torch.stack([F.pad(r, (0, n - len(r))) for r in rows])
    weight = torch.stack([(torch.arange(n) < len(r)) for r in rows])
    return padded, weight.float()


def normalisation(images: Images, normalize: bool) -> tuple[Tensor, Tensor]:
    """scale and shift (C, 1, 1) in float64: mean 0 and deviation 1 a channel over the training images, or [0, 1]."""
    channels = images.x.shape[1]
    if not normalize:
        return torch.full((channels, 1, 1), 1 / 255, dtype=torch.float64), torch.zeros(
            channels, 1, 1, dtype=torch.float64
        )
    share = images.histogram / images.histogram.sum(1, keepdim=True).double()
    values = torch.arange(256, dtype=torch.float64)
    mean = (share * values).sum(1)
    deviation = ((share * values**2).sum(1) - mean**2).clamp(min=0).sqrt()
    deviation = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
    return (1 / deviation)[:, None, None], (-mean / deviation)[:, None, None]


def place(
    images: Images, settings: Mapping[str, Any], tasks: int, outputs: int, device: str, dtype: torch.dtype
) -> Data:
    """The images on the device."""
    scale, shift = (v.to(device, dtype) for v in normalisation(images, settings["dataset.normalize"]))
    if len(scale) == 1:
        scale, shift = scale[0, 0, 0], shift[0, 0, 0]
    augment = settings["augment"] == "crop_flip"
    kinds = outputs * tasks if settings["scenario"] == "domain" else outputs
    return Data(images.x.to(device), images.y.to(device), scale, shift, tasks, outputs, kinds, augment)
