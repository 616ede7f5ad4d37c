"""Who is informed while a stack is trained."""

from clrun.engine.state import PartialStage, TrainState


class TrainingListener:
    """An object whose methods `Stack.learn` calls on the way. These do nothing; a subclass overrides those it wants."""

    def pass_started(self, stage: int, steps: int) -> None:
        """A pass over the task of `stage` begins; its longest run takes `steps` steps."""

    def steps_taken(self, steps: int) -> None:
        """So many more steps of the pass are done."""

    def block_ended(self, current: TrainState, partial: PartialStage) -> None:
        """A block of steps is done. Training can continue from `current` and `partial`, whose tensors never change."""
