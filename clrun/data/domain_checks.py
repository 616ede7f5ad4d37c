"""Whether the domains of a data set can be tasks, by which classes each has. No sample is needed for that."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from clrun.system.errors import UsageError

# Data sets whose domains have classes of their own, by design. With scenario=domain, the first class of each shares an
# output, and so on; of any other data set that would be a mistake in the names of classes.
OF_OWN_CLASSES = ("several",)


class Cells(NamedTuple):
    """Which classes the domains have in each part."""

    domains: Sequence[str]
    classes: Sequence[str]
    train: np.ndarray  # (domains, classes) bool
    test: np.ndarray  # (domains, classes) bool


def checked_number(cells: Cells | None, dataset: str, scenario: str, tasks: int | None, first_tasks: int | None) -> int:
    """Return the number of domains. cells: None where there are none. Raise UsageError where
    there are none, where `tasks` is another number, and where a domain lacks a class. tasks, first_tasks: as typed."""
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
    if scenario == "domain" and dataset in OF_OWN_CLASSES:
        refuse_unequal_domains(cells)
    elif scenario == "domain":
        refuse_missing_classes(cells)
    else:
        refuse_one_part(cells)
    if scenario == "task":
        refuse_one_class(cells)
    return count


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


def refuse_unequal_domains(cells: Cells) -> None:
    """Raise UsageError where domains that have classes of their own have not equally many to share outputs."""
    counts = cells.train.sum(1).tolist()
    other = next((k for k, count in enumerate(counts) if count != counts[0]), None)
    if other is not None:
        raise UsageError(
            f"scenario=domain: tasks share their outputs, and {cells.domains[0]} has {counts[0]} classes but "
            f"{cells.domains[other]} has {counts[other]}; leave one of them out, or type scenario=class or "
            "scenario=task."
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
