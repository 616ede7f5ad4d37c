"""Tasks that are domains: each has the samples that the data set states for the domain, and their classes.

With scenario=domain, every domain must have all classes, since the tasks share their outputs. torch is not imported
here, so that folders of pictures can be refused before they are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from clrun.data.samples import Samples
from clrun.system.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor


class Cells(NamedTuple):
    """Which classes the domains have in each part."""

    domains: Sequence[str]
    classes: Sequence[str]
    train: np.ndarray  # (domains, classes) bool
    test: np.ndarray  # (domains, classes) bool


def number_of_domains(samples: Samples, dataset: str, scenario: str, tasks: int | None, first_tasks: int | None) -> int:
    """Return the number of domains that a data set states. tasks, first_tasks: as typed, None where they are not.

    Raise UsageError where the data set states none, where `tasks` is another number, and where a domain lacks a class.
    """
    cells = None if samples.domain is None else cells_of(samples)
    return checked_number(cells, dataset, scenario, tasks, first_tasks)


def checked_number(cells: Cells | None, dataset: str, scenario: str, tasks: int | None, first_tasks: int | None) -> int:
    """Return the number of domains. cells: None where there are none. Raise UsageError as `number_of_domains` does."""
    if cells is None:
        raise UsageError(
            f"split=domains: dataset={dataset} states no domains; give the domain of each sample as task_train and "
            "task_test in the file of dataset=arrays, by dataset.domain=COLUMN of dataset=table, or by the folders "
            "<domain>/<class>/ of dataset=image_folder, or type another split."
        )
    count = len(cells.domains)
    if tasks is not None and tasks != count:
        raise UsageError(
            f"tasks={tasks}: the data set has {count} domains, and each is a task; leave tasks out, or type "
            f"first_tasks={min(tasks, count)}."
        )
    if first_tasks is not None and first_tasks > count:
        raise UsageError(f"first_tasks={first_tasks}: the stream has {count} tasks; type at most as many.")
    if scenario == "domain":
        refuse_missing_classes(cells)
    else:
        refuse_one_part(cells)
    if scenario == "task":
        refuse_one_class(cells)
    return count


def cells_of(samples: Samples) -> Cells:
    """Return which classes the domains of a data set have."""
    parts = (classes_in(samples, part) for part in (slice(None, samples.train), slice(samples.train, None)))
    return Cells(samples.domains, samples.classes, *parts)


def classes_in(samples: Samples, part: slice) -> np.ndarray:
    """Return whether each domain has a sample of each class in this part: (domains, K) bool."""
    assert samples.domain is not None
    classes, domains = len(samples.classes), len(samples.domains)
    cells = (samples.domain * classes + samples.y)[part].numpy()
    return np.bincount(cells, minlength=classes * domains).reshape(domains, classes) > 0


def classes_of_domains(samples: Samples) -> list[list[int]]:
    """Return the class numbers of each domain, in the order of the classes."""
    return [np.flatnonzero(of_one).tolist() for of_one in classes_in(samples, slice(None, samples.train))]


def refuse_missing_classes(cells: Cells) -> None:
    """Raise UsageError where a domain lacks a class in a part."""
    for part, has in (("training", cells.train), ("test", cells.test)):
        absent = np.argwhere(~has).tolist()
        if absent:
            name, label = cells.domains[absent[0][0]], cells.classes[absent[0][1]]
            raise UsageError(
                f"split=domains: domain {name} has no {part} sample of class {label}; with scenario=domain, every "
                "domain needs all classes in both parts. Add some, leave the class or the domain out of the data, or "
                "type scenario=class or scenario=task, for which a domain may have classes of its own."
            )


def refuse_one_part(cells: Cells) -> None:
    """Raise UsageError where a domain has a class in one part alone."""
    train, test = cells.train, cells.test
    for part, other, absent in (("training", "test", test & ~train), ("test", "training", train & ~test)):
        places = np.argwhere(absent).tolist()
        if places:
            name, label = cells.domains[places[0][0]], cells.classes[places[0][1]]
            raise UsageError(
                f"split=domains: domain {name} has no {part} sample of class {label}, but {other} samples; add some, "
                "or leave the class out of the domain in both parts."
            )


def refuse_one_class(cells: Cells) -> None:
    """Raise UsageError where a domain has one class only, so that nothing is to be told apart when the task is
    known."""
    single = np.flatnonzero(cells.train.sum(1) < 2).tolist()
    if single:
        label = cells.classes[int(np.flatnonzero(cells.train[single[0]])[0])]
        raise UsageError(
            f"scenario=task: the domain {cells.domains[single[0]]} has the one class {label}, which leaves nothing "
            "to tell apart; type scenario=class, or leave the domain out of the data."
        )


def split_by_domain(numbers: Tensor, domain: Tensor, order: list[int]) -> list[Tensor]:
    """Return the image numbers of each task, which is a domain, in this order of the domains."""
    of_each = domain[numbers]
    return [numbers[of_each == k] for k in order]
