"""All tasks at once: L(theta) = sum_t L_t(theta). The upper bound; it needs all data from the start."""

from collections.abc import Sequence

from clrun.strategy import MultiTask


class Joint(MultiTask):
    """The first stage sees every task, with the training time of all; the later ones have nothing left to learn."""

    def visible(self, stage: int) -> Sequence[int]:
        return range(self.data.tasks) if stage == 0 else ()
