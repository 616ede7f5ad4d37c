"""The orders in which tasks take classes, labels and domains, by the settings of a run."""

import numpy as np
import torch

from clrun.data.samples import Samples
from clrun.data.seeding import generator
from clrun.data.values import Values


def split_seed(settings: Values) -> int:
    """Return the seed of what the split draws: `split.seed`, or the run's."""
    return settings["seed"] if settings["split.seed"] is None else settings["split.seed"]


def class_order(classes: int, settings: Values) -> list[int] | None:
    """Return the numbers of the classes in the order in which tasks take them; None where that is the data set's or
    the one that was listed."""
    if settings["split.order"] == "fixed":
        return None
    if settings["split.order"] == "seed1993":  # by NumPy's generator, as in the code of Hou et al. 2019 and since
        return np.random.RandomState(1993).permutation(classes).tolist()
    return torch.randperm(classes, generator=generator(split_seed(settings), "class order")).tolist()


def label_orders(classes: int, settings: Values) -> list[list[int]]:
    """Return for each task the class that each label stands for; the first task has them in their own order."""
    random = generator(split_seed(settings), "labels")
    drawn = [torch.randperm(classes, generator=random).tolist() for _ in range(settings["tasks"] - 1)]
    return [list(range(classes)), *drawn]


def domain_order(images: Samples, settings: Values) -> list[int]:
    """Return the numbers of the domains in the order of the tasks."""
    if settings["split.order"] != "seed":
        return list(range(len(images.domains)))
    random = generator(split_seed(settings), "domain order")
    return torch.randperm(len(images.domains), generator=random).tolist()
