"""Joint training on all tasks at once, L(theta) = sum_t L_t(theta). It is the usual upper bound and needs all data."""

from collections.abc import Sequence
from typing import ClassVar

from clrun.strategy import MultiTask


class Joint(MultiTask):
    """Joint training: the first stage trains on every task, for the training time of all; the later stages do nothing.

    It has no state.
    """

    needs_boundaries: ClassVar[bool] = False

    def visible(self, stage: int) -> Sequence[int]:
        return range(self.data.tasks) if stage == 0 else ()
