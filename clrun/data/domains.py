"""Tasks that are domains: each has the samples that the data set states for the domain, and their classes.

With scenario=domain, every domain must have all classes, since the tasks share their outputs.
"""

import torch
from torch import Tensor

from clrun.data.samples import Samples
from clrun.system.errors import UsageError


def number_of_domains(samples: Samples, dataset: str, scenario: str, tasks: int | None, first_tasks: int | None) -> int:
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
    train, test = (classes_in(samples, part) for part in (slice(None, samples.train), slice(samples.train, None)))
    if scenario == "domain":
        refuse_missing_classes(samples, train, test)
    else:
        refuse_one_part(samples, train, test)
    if scenario == "task":
        refuse_one_class(samples, train)
    return count


def classes_in(samples: Samples, part: slice) -> Tensor:
    """Return whether each domain has a sample of each class in this part: (domains, K) bool."""
    assert samples.domain is not None
    classes, domains = len(samples.classes), len(samples.domains)
    cells = (samples.domain * classes + samples.y)[part]
    return torch.bincount(cells, minlength=classes * domains).view(domains, classes) > 0


def classes_of_domains(samples: Samples) -> list[list[int]]:
    """Return the class numbers of each domain, in the order of the classes."""
    return [of_one.nonzero().flatten().tolist() for of_one in classes_in(samples, slice(None, samples.train))]


def refuse_missing_classes(samples: Samples, train: Tensor, test: Tensor) -> None:
    """Raise UsageError where a domain lacks a class in a part. train, test: (domains, K) bool, what there is."""
    for part, has in (("training", train), ("test", test)):
        absent = (~has).nonzero().tolist()
        if absent:
            name, label = samples.domains[absent[0][0]], samples.classes[absent[0][1]]
            raise UsageError(
                f"split=domains: domain {name} has no {part} sample of class {label}; with scenario=domain, every "
                "domain needs all classes in both parts. Add some, leave the class or the domain out of the data, or "
                "type scenario=class or scenario=task, for which a domain may have classes of its own."
            )


def refuse_one_part(samples: Samples, train: Tensor, test: Tensor) -> None:
    """Raise UsageError where a domain has a class in one part alone. train, test: (domains, K) bool, what there is."""
    for part, other, absent in (("training", "test", test & ~train), ("test", "training", train & ~test)):
        places = absent.nonzero().tolist()
        if places:
            name, label = samples.domains[places[0][0]], samples.classes[places[0][1]]
            raise UsageError(
                f"split=domains: domain {name} has no {part} sample of class {label}, but {other} samples; add some, "
                "or leave the class out of the domain in both parts."
            )


def refuse_one_class(samples: Samples, has: Tensor) -> None:
    """Raise UsageError where a domain has one class only, so that nothing is to be told apart when the task is known.

    has: (domains, K) bool.
    """
    single = (has.sum(1) < 2).nonzero().flatten().tolist()
    if single:
        label = samples.classes[int(has[single[0]].nonzero()[0])]
        raise UsageError(
            f"scenario=task: the domain {samples.domains[single[0]]} has the one class {label}, which leaves nothing "
            "to tell apart; type scenario=class, or leave the domain out of the data."
        )


def split_by_domain(numbers: Tensor, domain: Tensor, order: list[int]) -> list[Tensor]:
    """Return the image numbers of each task, which is a domain, in this order of the domains."""
    of_each = domain[numbers]
    return [numbers[of_each == k] for k in order]
