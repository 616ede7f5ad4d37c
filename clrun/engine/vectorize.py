"""From one run to R runs: functions by `torch.vmap`, values by an axis in front."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from clrun.data.batches import Batch, Pool, StepContext
from clrun.strategy import Tree

PER_RUN = 0  # the number of the axis of the runs: each run has a value of its own
SHARED = None  # no axis of runs: all runs have the same value


def axes_of(kind: Any, *shared: str) -> Any:
    """Return a named tuple of this class that holds the axis of each field, as `torch.vmap` takes it: SHARED for the
    fields that are named, PER_RUN for the others. Raise TypeError for a name that is no field."""
    unknown = set(shared) - set(kind._fields)
    if unknown:
        raise TypeError(
            f"{kind.__name__} has the fields {', '.join(kind._fields)}, and not {', '.join(sorted(unknown))}"
        )
    return kind._make(SHARED if name in shared else PER_RUN for name in kind._fields)


CONTEXT_AXES: StepContext = axes_of(StepContext, "stage", "horizon")
BATCH_AXES: Batch = axes_of(Batch, "stage", "horizon", "smoothing")
POOL_AXES: Pool = axes_of(Pool, "stage", "horizon", "outputs", "labels")
CONSOLIDATION_AXES = (PER_RUN, PER_RUN, POOL_AXES)  # of the arguments of a consolidation: runs, hp, pool


@dataclass(frozen=True)
class Vectorizer:
    """A rule that turns functions and values of one run into those of a stack of R runs.

    With R > 1 every tensor has a leading axis R. A single run has no such axis, and its functions stay as they are:
    `vmap` costs time, and imports PyTorch's compiler.
    """

    runs: int  # R
    device: torch.device

    @property
    def alone(self) -> bool:
        """Whether there is a single run, whose tensors have no axis R."""
        return self.runs == 1

    def vectorize(self, function: Callable[..., Any], in_dims: Any = 0) -> Callable[..., Any]:
        """Return a function of one run as a function of all. in_dims: as `torch.vmap` takes it; None: shared by all."""
        return function if self.alone else torch.vmap(function, in_dims)

    def stack_trees(self, trees: Sequence[Tree]) -> Tree:
        """Return [r] trees of tensors of equal shapes as one tree on the device."""
        if self.alone:
            return tree_map(lambda v: v.to(self.device), trees[0])
        return tree_map(lambda *v: torch.stack(v).to(self.device), *trees)

    def unstack_to_host(self, values: Tensor) -> Tensor:
        """Return what the runs computed as (R, ...) on the host, for a single run (1, ...)."""
        return (values[None] if self.alone else values).cpu()
