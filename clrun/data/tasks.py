"""The tasks of a run: which images belong to each, what their labels are, and which outputs may answer.

An "image" is one entry of the data set, be it a picture, a series or a row of a table; a sample is an image in a task.
All of it follows from the seed (`split.seed`, where one is given), on the host, before any training.

Shapes: T tasks, K classes in the data set, C outputs of the network.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from clrun.data import arrivals, split
from clrun.data.augmentation import refuse_without_colours
from clrun.data.coming import (
    angles_of_images,
    arrivals_of,
    blurred_classes,
    outputs_that_come,
    present_classes,
    seen_from,
    without_later,
)
from clrun.data.domains import classes_of_domains, split_by_domain
from clrun.data.orders import class_order, domain_order, label_orders, split_seed
from clrun.data.samples import Samples, refuse_unless_pictures
from clrun.data.seeding import generator
from clrun.data.values import Values
from clrun.system.errors import UsageError
from clrun.system.machine import refuse_if_too_large
from clrun.system.text import format_value


class TaskTables(NamedTuple):
    """What distinguishes the tasks of a run from those of another, as tensors."""

    label: Tensor  # (T, K) int64: the output that stands for class k in task t
    active: Tensor  # (T, T, C) bool [tasks seen - 1, task]: the outputs that may answer
    unlearnt: Tensor  # (T, C) bool [task]: the outputs that may answer before any training
    permutation: Tensor  # (T, H * W) int64: order of the pixels, or of features (T, F); (T, 0) where they stay
    angle: Tensor  # (T,) radians; (0,) where tasks are not rotated
    turned: Tensor  # (N,) radians: of each image by itself; (0,) where pictures do not turn one by one


class TaskStream(NamedTuple):
    """One run's tasks, on the host. Pools hold image numbers; a sample's row number is image + N * task."""

    tables: TaskTables
    train: list[Tensor]  # [task] (n,) int64: of the task itself, whenever they come
    validation: list[Tensor]  # [task] (n,) int64
    test: list[Tensor]  # [task] (n,) int64
    names: list[str]  # of the outputs
    groups: list[list[int]]  # [task] the class numbers, in the order of the outputs
    learnt: int = 0  # number of tasks, the first ones, that an earlier run has learnt
    arrivals: list[Tensor] | None = None  # [stage] (n,) rows that come in it; None: those of the stage's own task
    seen_from: Sequence[int] = ()  # [task] the first stage after which all of its classes have been seen; (): its own

    def rows(self, stage: int, images: int) -> Tensor:
        """Return the rows (n,) of the samples that come in a stage, where there are so many images."""
        return self.train[stage] + images * stage if self.arrivals is None else self.arrivals[stage]

    @property
    def sizes(self) -> list[int]:
        """The number of samples that come in each stage."""
        return [len(part) for part in (self.train if self.arrivals is None else self.arrivals)]

    @property
    def labels(self) -> list[dict[int, int]]:
        """The output of each class of each task, by the number of the class."""
        return [{k: int(label[k]) for k in group} for label, group in zip(self.tables.label, self.groups, strict=True)]

    @property
    def class_count(self) -> int:
        """The number of outputs that a class of these tasks has; `names` may have more, for tasks that are left out."""
        return len({output for task in self.labels for output in task.values()})

    def first(self, k: int) -> "TaskStream":
        """Return the first k tasks with the outputs of the whole stream, and so for the same network."""
        label, active, unlearnt, permutation, angle, turned = self.tables
        tables = TaskTables(label[:k], active[:k, :k], unlearnt[:k], permutation[:k], angle[:k], turned)
        pools = self.train[:k], self.validation[:k], self.test[:k]
        arrivals = None if self.arrivals is None else self.arrivals[:k]
        return TaskStream(tables, *pools, self.names, self.groups[:k], self.learnt, arrivals, self.seen_from[:k])


class EarlierTasks(NamedTuple):
    """The k tasks that an earlier run has learnt, from which a run goes on."""

    labels: list[dict[str, int]]  # [task] class name -> output
    names: list[str]  # of the outputs, some of which may not be learnt yet
    permutation: Tensor  # (k, H * W), (k, F) or (k, 0): as in `TaskTables`
    angle: Tensor  # (k,) or (0,)

    @property
    def classes(self) -> list[str]:
        """The names of all classes that were learnt, in the order of their outputs."""
        return list(dict.fromkeys(name for task in self.labels for name in task))


NO_TASKS = EarlierTasks([], [], torch.zeros(0, 0, dtype=torch.long), torch.zeros(0))


def make_tasks(images: Samples, settings: Values, earlier: EarlierTasks = NO_TASKS) -> TaskStream:
    """Return one run's tasks: those that an earlier run has learnt, if there are any, and its own.

    The classes of earlier tasks are among those of `images`, of which there need not be a sample. Raise UsageError
    where a task of the run's own would have no image, or where its images cannot be turned or augmented.
    """
    refuse_other_than_pictures(images, settings)
    refuse_many_tasks(images, settings)
    new, k = classes_of_tasks(images, settings, earlier), len(earlier.labels)
    numbers = {name: number for number, name in enumerate(images.classes)}
    groups = [[numbers[name] for name in task] for task in earlier.labels] + new
    names, outputs = outputs_of_tasks(new, images.classes, settings, earlier)
    random = generator(split_seed(settings), "validation")
    train, validation = hold_out(torch.arange(images.train), images.y, settings["validation"], random)
    test = torch.arange(images.train, len(images.y) - images.carried)
    of_tasks = drawn_samples(pools(train, images, groups, settings), settings)
    whole = arrivals_of(of_tasks, images, groups, settings)
    rows = without_later(whole, settings, len(images.y))
    come = outputs if rows is None else outputs_that_come(rows, images, groups, outputs)
    label, active, unlearnt = label_tables(groups, outputs, come, len(names), len(images.classes), settings)
    orders, turned = pixel_orders(images, settings, earlier), angles_of_images(whole, images, settings)
    tables = TaskTables(label, active, unlearnt, orders, angles(settings, earlier), turned)
    stream = TaskStream(
        tables,
        of_tasks,
        pools(validation, images, groups, settings),
        pools(test, images, groups, settings),
        names,
        groups,
        k,
        rows,
        () if rows is None else seen_from(outputs, come),
    )
    refuse_empty(stream, settings)
    return stream if settings["first_tasks"] is None else stream.first(k + settings["first_tasks"])


def pools(numbers: Tensor, images: Samples, groups: Sequence[Sequence[int]], settings: Values) -> list[Tensor]:
    """Return the image numbers of each task: those of its classes, or of its domain."""
    if settings["split"] != "domains" or images.domain is None:
        return split_by_task(numbers, images.y, groups)
    return split_by_domain(numbers, images.domain, domain_order(images, settings))


def drawn_samples(train: list[Tensor], settings: Values) -> list[Tensor]:
    """Return the images [task] (n,) of each task: as many as split.period says, drawn for each task, or all.

    Raise UsageError where there are not so many.
    """
    period = settings.get("split.period", None)
    if period is None:
        return train
    fewest = min(map(len, train))
    if period > fewest:
        raise UsageError(f"split.period={period}: a task has {fewest} training samples; type at most as many.")
    random = generator(split_seed(settings), "period")
    return [pool[torch.randperm(len(pool), generator=random)[:period]].sort().values for pool in train]


def classes_of_tasks(images: Samples, settings: Values, earlier: EarlierTasks = NO_TASKS) -> list[list[int]]:
    """Return the class numbers of each task of the run's own: all where the split is permuted or rotated, those of a
    domain by domains.

    `clrun.config.check_values` has assigned the classes before, to refuse what does not fit without reading an image;
    only here is the order of classes that are not listed drawn.
    """
    groups = split.assign_classes(images.classes, settings, earlier.classes)
    if settings.get("split.stochastic", None) is True:
        return [of_task.classes for of_task in blurred_classes(images, settings)]
    if split.returning(settings):
        return arrivals.first_seen(present_classes(images, settings))
    if settings["split"] == "domains":
        of_domains = classes_of_domains(images)
        return [of_domains[k] for k in domain_order(images, settings)]
    if groups is None and settings["split"] == "relabelled":
        return label_orders(len(images.classes), settings)
    if groups is None:
        return [list(range(len(images.classes)))] * settings["tasks"]
    order = class_order(len(images.classes), settings)
    if order is None:
        return groups
    new = sorted(k for group in groups for k in group)  # all classes, but for those that an earlier run has learnt
    drawn = dict(zip(new, (k for k in order if k in {*new}), strict=True))
    return [[drawn[k] for k in group] for group in groups]


def outputs_of_tasks(
    groups: Sequence[Sequence[int]], classes: Sequence[str], settings: Values, earlier: EarlierTasks
) -> tuple[list[str], list[list[int]]]:
    """Return what each output stands for, and the outputs of each task, first the earlier ones, in the order of its
    classes. groups: the class numbers of each task of the run's own.

    This is the one place that gives outputs to classes. task: a task has outputs of its own. domain: all tasks share
    the outputs. class: a class has one output; where the tasks of a split have the same classes, one for each task. An
    output that the earlier run has for a class, and has not learnt, is that of the class.
    """
    names, outputs = list(earlier.names), [list(task.values()) for task in earlier.labels]
    if settings["scenario"] == "domain":
        outputs += [list(range(len(group))) for group in groups]
        return shared_names(groups, classes, settings, earlier), outputs
    shares = settings["scenario"] == "class" and settings["split"] == "classes"
    for group in groups:
        taken = set() if shares else {output for task in outputs for output in task}
        free = {name: o for o, name in reversed([*enumerate(names)]) if o not in taken} if earlier.names else {}
        new = [classes[k] for k in group if classes[k] not in free]
        free |= {name: len(names) + i for i, name in enumerate(new)}
        names += new
        outputs.append([free[classes[k]] for k in group])
    return names, outputs


def shared_names(
    groups: Sequence[Sequence[int]], classes: Sequence[str], settings: Values, earlier: EarlierTasks
) -> list[str]:
    """Return what each output stands for where tasks share outputs: a class of every task ("cat/dog"), or the one class
    that it is in all of them. Raise UsageError where a task has not as many classes as the earlier ones."""
    sizes = {len(group) for group in groups} | {len(task) for task in earlier.labels}
    if len(sizes) > 1:
        raise UsageError(
            f"scenario=domain: tasks share their outputs, and the earlier run has {len(earlier.names)}; list as many "
            "classes a task in split.classes."
        )
    if settings["split"] == "relabelled":
        return [f"label {i}" for i in range(len(groups[0]))]
    if settings["split"] != "classes" and earlier.names:
        return earlier.names
    former = [[name] for name in earlier.names] or [[] for _ in groups[0]]
    shared = [[*before, *(classes[group[i]] for group in groups)] for i, before in enumerate(former)]
    return ["/".join(dict.fromkeys(names)) for names in shared]


def label_tables(
    groups: Sequence[Sequence[int]],
    outputs: Sequence[Sequence[int]],
    come: Sequence[Sequence[int]],
    C: int,
    classes: int,
    settings: Values,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return label (T, K), active (T, T, C) and unlearnt (T, C).

    This is the one place that distinguishes task-, domain- and class-incremental streams.

    task: the outputs of a task alone answer for it. domain: all tasks share the outputs. class: the outputs of all
    classes seen so far answer, or those of all classes (key `active`). come: the outputs [stage] of the samples that
    come in each stage, which are those of the task itself unless boundaries are blurred.
    """
    T = len(groups)
    label = torch.zeros(T, classes, dtype=torch.long)
    of_task, of_stage = torch.zeros(2, T, C, dtype=torch.bool)
    for t, (group, of_group) in enumerate(zip(groups, outputs, strict=True)):
        label[t, list(group)] = torch.tensor(of_group, dtype=torch.long)
        of_task[t, list(of_group)] = True
        of_stage[t, list(come[t])] = True
    seen = of_stage.cummax(0).values[:, None].expand(T, T, C)
    everything = torch.ones(T, T, C, dtype=torch.bool)
    by_scenario = {"task": of_task.expand(T, T, C), "domain": everything}
    by_scenario["class"] = seen if settings["active"] == "seen" else everything
    active = by_scenario[settings["scenario"]].clone()
    return label, active, active[0] | of_task


def pixel_orders(images: Samples, settings: Values, earlier: EarlierTasks = NO_TASKS) -> Tensor:
    """Return the order of the pixels in each task (T, H * W), the first task's as they are; (T, 0) if not permuted.

    What is permuted of samples of another shape are the features (T, F) or the steps of a series (T, L).
    """
    tasks, pixels = len(earlier.labels) + settings["tasks"], images.positions
    if settings["split"] != "permuted":
        return torch.zeros(tasks, 0, dtype=torch.long)
    random = generator(split_seed(settings), "permutations")
    drawn = [torch.randperm(pixels, generator=random) for _ in range(tasks - 1)]
    orders = torch.stack([torch.arange(pixels), *drawn])
    return torch.cat([earlier.permutation, orders[len(earlier.labels) :]]) if earlier.labels else orders


def angles(settings: Values, earlier: EarlierTasks = NO_TASKS) -> Tensor:
    """Return the angle of each task (T,) in radians; (0,) if not rotated.

    Angles are uniform in [0, max_angle) (Buzzega et al. 2020) or, with split.order=fixed, evenly spaced from 0.
    """
    if settings["split"] != "rotated":
        return torch.zeros(0)
    tasks, largest = len(earlier.labels) + settings["tasks"], settings["split.max_angle"] * torch.pi / 180
    if settings["split.order"] == "fixed":
        drawn = torch.arange(tasks) * (largest / tasks)
    else:
        drawn = torch.rand(tasks, generator=generator(split_seed(settings), "angles")) * largest
    return torch.cat([earlier.angle, drawn[len(earlier.labels) :]])


def hold_out(numbers: Tensor, labels: Tensor, share: float, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the image numbers for training and those for validation.

    The same share of each class is for validation, but at least one image of each is for training.
    """
    kept, held = [], []
    for k in labels[numbers].unique().tolist():
        of_class = numbers[labels[numbers] == k]
        of_class = of_class[torch.randperm(len(of_class), generator=random)]
        n = min(round(share * len(of_class)), len(of_class) - 1) if share > 0 else 0
        held.append(of_class[:n])
        kept.append(of_class[n:])
    return torch.cat(kept).sort().values, torch.cat(held).sort().values


def split_by_task(numbers: Tensor, labels: Tensor, groups: Sequence[Sequence[int]]) -> list[Tensor]:
    """Return the image numbers of each task; tasks of the same classes share one tensor."""
    distinct = {tuple(sorted(group)) for group in groups}
    of = labels[numbers]
    by_group = {group: numbers[torch.isin(of, torch.tensor(group, dtype=labels.dtype))] for group in distinct}
    return [by_group[tuple(sorted(group))] for group in groups]


def refuse_other_than_pictures(images: Samples, settings: Values) -> None:
    """Raise UsageError where samples are to be turned, cropped or flipped and are no pictures."""
    if settings["split"] == "rotated":
        refuse_unless_pictures(images.shape, "split=rotated", "type split=permuted or split=classes")
    if split.circling(settings):
        refuse_unless_pictures(images.shape, f"split.circle={settings['split.circle']}", "leave split.circle out")
    if settings["augment"] != "none":
        refuse_unless_pictures(images.shape, f"augment={format_value(settings['augment'])}", "leave augment out")
        refuse_without_colours(images, settings["augment"])


def refuse_many_tasks(images: Samples, settings: Values) -> None:
    """Raise UsageError where the tables do not fit into memory.

    They grow with the square of the tasks, and with their cube where every task has outputs of its own.
    """
    T, K = settings["tasks"], len(images.classes)
    outputs = K if settings["scenario"] == "domain" or settings["split"] == "classes" else T * K
    pixels = images.positions if settings["split"] == "permuted" else 0
    needed = 2 * T * T * outputs + 8 * T * (K + pixels)
    refuse_if_too_large(needed, f"tasks={T} (which outputs answer after each, for each)", "fewer tasks")


def refuse_empty(stream: TaskStream, settings: Values) -> None:
    """Raise UsageError where a task has no image for training, testing or validation, or less than a batch."""
    pools = list(zip(stream.sizes, stream.test, stream.validation, stream.groups, strict=True))
    for t, (train, test, validation, group) in list(enumerate(pools, 1))[stream.learnt :]:
        if not train or (group and not len(test)):
            kind = "training" if not train else "test"
            raise UsageError(
                f"Task {t} has no {kind} samples: its classes need at least one each in training and test."
                + (" Type another split.seed, or fewer tasks." if split.drawn_freely(settings) else "")
            )
        if settings["validation"] > 0 and group and not len(validation):
            raise UsageError(
                f"validation={settings['validation']} leaves task {t} without a validation sample: "
                f"a class has too few; try a larger fraction, or validation=0."
            )
        size = settings["batch_size"]
        batch = size[t - 1 - stream.learnt] if isinstance(size, list) else size
        if settings["drop_last"] and train < batch:
            raise UsageError(
                f"drop_last=true with batch_size={batch} leaves task {t} nothing to learn from: "
                f"it has {train} training samples; type drop_last=false, or batch_size={train} or less."
            )
