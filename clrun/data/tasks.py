"""Dealing: which pictures belong to which task of a run, what their labels are, and which outputs may answer.

All of it follows from the seed (`split.seed`, where one is given), on the host, before any training.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clrun.data import split
from clrun.data.datasets import Images
from clrun.data.seeding import generator
from clrun.system.errors import UsageError
from clrun.system.machine import refuse_if_too_large


class TaskTables(NamedTuple):
    """What a run's tasks are made of. T tasks, K classes in the data, C outputs."""

    label: Tensor  # (T, K) int64: the output that stands for class k in task t
    active: Tensor  # (T, T, C) bool [tasks seen - 1, task]: the outputs that may answer
    unlearnt: Tensor  # (T, C) bool: the same before any training
    permutation: Tensor  # (T, H * W) int64: pixel order; (T, 0) where pixels stay
    angle: Tensor  # (T,) radians; (0,) where nothing turns


class TaskStream(NamedTuple):
    """One run's tasks, on the host. Pools hold image numbers; task t's rows are image + N * t."""

    tables: TaskTables
    train: list[Tensor]  # [task] (n,)
    validation: list[Tensor]
    test: list[Tensor]
    names: list[str]  # of the outputs

    def first(self, k: int) -> "TaskStream":
        """The first k tasks, as they stand in the whole stream: with the same outputs, so with the same network."""
        label, active, unlearnt, permutation, angle = self.tables
        part = TaskTables(label[:k], active[:k, :k], unlearnt[:k], permutation[:k], angle[:k])
        return TaskStream(part, self.train[:k], self.validation[:k], self.test[:k], self.names)


def split_seed(settings: Mapping[str, Any]) -> int:
    return settings["seed"] if settings["split.seed"] is None else settings["split.seed"]


def class_groups(images: Images, settings: Mapping[str, Any]) -> list[list[int]]:
    """Class numbers a task. An even split in drawn order is dealt from a permutation that belongs to the seed."""
    groups = split.assign_classes(images.classes, settings)
    if settings["split.order"] != "seed":
        return groups
    classes = torch.tensor([k for group in groups for k in group])
    drawn = classes[torch.randperm(len(classes), generator=generator(split_seed(settings), "class order"))].tolist()
    size = len(groups[0])
    return [drawn[i : i + size] for i in range(0, len(drawn), size)]


def label_tables(
    groups: Sequence[Sequence[int]], classes: int, settings: Mapping[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
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


def make_tasks(images: Images, settings: Mapping[str, Any]) -> TaskStream:
    """One run's tasks. UsageError where a task would be left without a picture."""
    refuse_many_tasks(images, settings)
    by_class = settings["split"] == "classes"
    everything = list(range(len(images.classes)))
    groups = class_groups(images, settings) if by_class else [everything] * settings["tasks"]
    tables = TaskTables(*label_tables(groups, len(images.classes), settings), *transforms(images, settings))
    draw = generator(split_seed(settings), "validation")
    train, validation = hold_out(torch.arange(images.train), images.y, settings["validation"], draw)
    test = torch.arange(images.train, len(images.y))
    pools = [share_out(numbers, images.y, groups) for numbers in (train, validation, test)]
    hand = TaskStream(tables, *pools, output_names(groups, images.classes, settings))
    refuse_empty(hand, settings)
    return hand if settings["first_tasks"] is None else hand.first(settings["first_tasks"])


def refuse_many_tasks(images: Images, settings: Mapping[str, Any]) -> None:
    """The tables grow with the square of the tasks, and with their cube where every task has outputs of its own."""
    T, K = settings["tasks"], len(images.classes)
    outputs = K if settings["scenario"] == "domain" or settings["split"] == "classes" else T * K
    pixels = images.x.shape[-1] * images.x.shape[-2] if settings["split"] == "permuted" else 0
    needed = 2 * T * T * outputs + 8 * T * (K + pixels)
    refuse_if_too_large(needed, f"tasks={T} (which outputs answer after each, for each)", "fewer tasks")


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


def refuse_empty(hand: TaskStream, settings: Mapping[str, Any]) -> None:
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
