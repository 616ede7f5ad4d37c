"""Which samples come when, by the settings of a run. How they are dealt to the stages is in arrivals.py."""

from collections.abc import Sequence

import torch
from torch import Tensor

from clrun.data import arrivals, split
from clrun.data.orders import class_order, split_seed
from clrun.data.samples import Samples
from clrun.data.values import Values


def arrivals_of(
    train: Sequence[Tensor], images: Samples, groups: Sequence[Sequence[int]], settings: Values
) -> list[Tensor] | None:
    """Return the rows (n,) that come in each stage; None where those are the samples of the stage's own task.

    train: the images [task] (n,) of each task.
    """
    seed = split_seed(settings)
    if split.circling(settings):
        return arrivals.in_circles(train, images.y, present_classes(images, settings), seed)
    if split.returning(settings):
        return arrivals.repeated(train, images.y, present_classes(images, settings), seed)
    if settings.get("split.stochastic", None) is True:
        return arrivals.stochastic(train, images.y, blurred_classes(images, settings), settings["split.blurry"], seed)
    if settings.get("split.blurry", None) is not None:
        share, disjoint = settings["split.blurry"], settings["split.disjoint"] or 0.0
        return arrivals.blurred(train, images.y, groups, share, disjoint, seed)
    if settings.get("boundaries", None) is False:
        return arrivals.gradual(train, len(images.y), settings["overlap"], seed)
    return None


def without_later(rows: list[Tensor] | None, settings: Values, images: int) -> list[Tensor] | None:
    """Return the rows (n,) of each stage, of the first `first_tasks` without samples of later tasks that would come
    early; there are so many images."""
    k = settings["first_tasks"]
    if rows is None or k is None:
        return rows
    return [part[part < k * images] if stage < k else part for stage, part in enumerate(rows)]


def present_classes(images: Samples, settings: Values) -> list[list[int]]:
    """Return the classes of each task of a stream in which classes come back."""
    if split.circling(settings):
        return arrivals.circled(circle(images, settings), settings["tasks"])
    if settings["split.slots"] is None:
        chances = settings["split.occurrence"], settings["split.recurrence"]
        return arrivals.sampled_experiences(len(images.classes), settings["tasks"], *chances, split_seed(settings))
    numbers = len(images.classes), settings["tasks"], settings["split.slots"]
    return arrivals.experiences(*numbers, split_seed(settings))


def circle(images: Samples, settings: Values) -> list[int]:
    """Return the classes of split.circle in order: the first of all."""
    count, names = settings["split.circle"], images.classes
    return (class_order(len(names), settings) or list(range(len(names))))[:count]


def angles_of_images(rows: Sequence[Tensor] | None, images: Samples, settings: Values) -> Tensor:
    """Return the angle of each image (N,) in radians where pictures turn one by one as they come; (0,) elsewhere.
    rows: as of `arrivals_of`, of the whole stream."""
    if rows is None or not split.circling(settings):
        return torch.zeros(0)
    return arrivals.turned_as_they_come(rows, images.y, circle(images, settings), split_seed(settings))


def blurred_classes(images: Samples, settings: Values) -> list[arrivals.Blurred]:
    """Return the disjoint and the blurry classes of each task, where their number is drawn."""
    order = class_order(len(images.classes), settings) or list(range(len(images.classes)))
    share = settings["split.disjoint"] or 0.0
    return arrivals.stochastic_classes(order, settings["tasks"], share, split_seed(settings))


def outputs_that_come(
    rows: Sequence[Tensor], images: Samples, groups: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]]
) -> list[list[int]]:
    """Return the outputs [stage] of the samples that come in each stage. rows: as of `arrivals_of`."""
    classes, N = len(images.classes), len(images.y)
    of_class = {t * classes + k: o for t, group in enumerate(groups) for k, o in zip(group, outputs[t], strict=True)}
    seen = [torch.unique(part // N * classes + images.y[part % N]).tolist() for part in rows]
    return [sorted({of_class[cell] for cell in cells}) for cells in seen]


def seen_from(outputs: Sequence[Sequence[int]], come: Sequence[Sequence[int]]) -> list[int]:
    """Return the first stage [task] after which there was a sample of every output of the task. come: the outputs
    [stage] of the samples that come."""
    first: dict[int, int] = {}
    for stage, of_stage in enumerate(come):
        first |= {o: stage for o in of_stage if o not in first}
    return [max((first.get(o, len(come)) for o in group), default=task) for task, group in enumerate(outputs)]
