"""Tasks that are domains: each has the samples that the data set states for the domain, and their classes.

With scenario=domain, every domain must have all classes, since the tasks share their outputs.
"""

import numpy as np
from torch import Tensor

from clrun.data.domain_checks import Cells, checked_number
from clrun.data.samples import Samples


def number_of_domains(samples: Samples, dataset: str, scenario: str, tasks: int | None, first_tasks: int | None) -> int:
    """Return the number of domains that a data set states. tasks, first_tasks: as typed, None where they are not.

    Raise UsageError where the data set states none, where `tasks` is another number, and where a domain lacks a class.
    """
    cells = None if samples.domain is None else cells_of(samples)
    return checked_number(cells, dataset, scenario, tasks, first_tasks)


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


def split_by_domain(numbers: Tensor, domain: Tensor, order: list[int]) -> list[Tensor]:
    """Return the image numbers of each task, which is a domain, in this order of the domains."""
    of_each = domain[numbers]
    return [numbers[of_each == k] for k in order]
