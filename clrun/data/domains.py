"""Tasks that are domains: each has all classes, and the samples that the data set states for the domain."""

import torch
from torch import Tensor

from clrun.data.samples import Samples
from clrun.system.errors import UsageError


def number_of_domains(samples: Samples, dataset: str, tasks: int | None, first_tasks: int | None) -> int:
    """Return the number of domains that a data set states. tasks, first_tasks: as typed, None where they are not.

    Raise UsageError where the data set states none, where `tasks` is another number, and where a domain lacks a class.
    """
    if samples.domain is None:
        raise UsageError(
            f"split=domains: dataset={dataset} states no domains; give the domain of each sample as task_train and "
            "task_test in the file of dataset=arrays, or by dataset.domain=COLUMN of dataset=table, or type another "
            "split."
        )
    count = len(samples.domains)
    if tasks is not None and tasks != count:
        raise UsageError(
            f"tasks={tasks}: the data set has {count} domains, and each is a task; leave tasks out, or type "
            f"first_tasks={min(tasks, count)}."
        )
    if first_tasks is not None and first_tasks > count:
        raise UsageError(f"first_tasks={first_tasks}: the stream has {count} tasks; type at most as many.")
    refuse_missing_classes(samples, samples.domain)
    return count


def refuse_missing_classes(samples: Samples, domain: Tensor) -> None:
    """Raise UsageError where a domain has no training or no test sample of a class."""
    classes, domains = len(samples.classes), len(samples.domains)
    cell = domain * classes + samples.y
    for part, cells in (("training", cell[: samples.train]), ("test", cell[samples.train :])):
        absent = (torch.bincount(cells, minlength=classes * domains) == 0).nonzero().flatten().tolist()
        if absent:
            name, label = samples.domains[absent[0] // classes], samples.classes[absent[0] % classes]
            raise UsageError(
                f"split=domains: domain {name} has no {part} sample of class {label}; every domain needs all classes "
                "in both parts. Add some, leave the class or the domain out of the data, or type split=classes."
            )


def split_by_domain(numbers: Tensor, domain: Tensor, order: list[int]) -> list[Tensor]:
    """Return the image numbers of each task, which is a domain, in this order of the domains."""
    of_each = domain[numbers]
    return [numbers[of_each == k] for k in order]
