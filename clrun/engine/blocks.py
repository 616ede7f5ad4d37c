"""The number of steps that are taken as one block, in which the host reads no result of a step.

Within a block nothing is evaluated or written, and only the number of steps taken is reported, so that the host does
not wait for a GPU. An interrupted run can continue from the end of a block.
"""

from dataclasses import dataclass

BLOCK_STEPS = 512  # steps of a block, at most; the indices of their samples are on the device beforehand
BLOCK_SECONDS = 2.0  # seconds that a block may take: what an interrupted run loses at most
FIRST_BLOCK_STEPS = 8  # steps of a stack's first block, before the time of a step is measured


@dataclass(frozen=True)
class BlockSizes:
    """The rule for the size of blocks.

    A block ends at every multiple of `block_steps` steps of a pass and at every evaluation. It has fewer steps where
    these would take longer than `block_seconds`. The results of a run do not depend on the sizes.
    """

    evaluate_every: int  # steps of the run between evaluations; 0: none within a task
    block_steps: int = BLOCK_STEPS
    block_seconds: float = BLOCK_SECONDS

    def size(self, start: int, step: int, seconds_per_step: float | None) -> int:
        """Return the number of steps of the next block.

        start: steps of the pass so far; step: steps of the run so far; seconds_per_step: None if not yet measured.
        """
        return min(self.to_boundary(start), self.to_evaluation(step), self.affordable(seconds_per_step))

    def to_boundary(self, start: int) -> int:
        """Return the steps to the next multiple of `block_steps`."""
        return self.block_steps - start % self.block_steps

    def to_evaluation(self, step: int) -> int:
        """Return the steps to the next evaluation within a task."""
        return self.evaluate_every - step % self.evaluate_every if self.evaluate_every else self.block_steps

    def affordable(self, seconds_per_step: float | None) -> int:
        """Return the steps that `block_seconds` allow, at least one."""
        if seconds_per_step is None:
            return FIRST_BLOCK_STEPS
        return max(1, int(self.block_seconds / max(seconds_per_step, self.block_seconds / self.block_steps)))

    def is_boundary(self, start: int) -> bool:
        """Return whether a block ends after `start` steps of a pass however fast the steps are."""
        return start % self.block_steps == 0
