"""Training goes on with all tasks so far, interleaved: L(theta) = sum_{k<=t} L_k(theta). Keeps all data."""

from collections.abc import Sequence

from clrun.strategy import MultiTask


class Cumulative(MultiTask):
    """The network of the last stage, trained further: the t-th stage costs t times the first (multi-task learning)."""

    def visible(self, stage: int) -> Sequence[int]:
        return range(stage + 1)
