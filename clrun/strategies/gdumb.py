"""GDumb (Prabhu et al. 2020): greedily keep a balanced memory, and train a new network on the memory alone.

    after task t:   theta_t = argmin_theta L(M_t; theta), from new initial parameters

M_t holds the same number of samples of each class so far, as far as there are any. (In the paper samples come one by
one, and one that has no room takes the place of a sample of the largest class; here those of a task are drawn uniformly
when it ends.) Nothing is learnt but from the memory, and nothing is carried over: what a method gains over it, it gains
by learning from the stream.

`epochs` counts rounds over the memory. Left out: the restarts of the paper's cosine schedule (`schedule=cosine` falls
once), and cutmix, which the paper does not use on MNIST.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from clrun.strategy import AnyMemory, HealthRows, Knobs, Pool, Replay, buffer_stats


@dataclass(frozen=True)
class GDumb(Replay):
    """GDumb. Its state is the memory of M row numbers with their keys: 16 M bytes and the images."""

    memory_policy: str = "balanced"
    phases: ClassVar[tuple[str, ...]] = ("collect", "train")
    restart: ClassVar[bool] = True
    one_pass: ClassVar[bool] = False  # it reads the stream once in any case; its rounds are over the memory

    class State(NamedTuple):
        memory: AnyMemory

    def init(self, theta: Tensor) -> State:
        return self.State(self.empty(theta))

    def trained_rows(self, phase: str, state: State, own: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return what the memory holds; nothing as long as it is to be filled."""
        return [state.memory.rows[: int(state.memory.held) if phase == "train" else 0]]

    def trained_samples(self, stage: int, classes: Sequence[Sequence[int]]) -> int:
        return self.held_of(classes[: stage + 1])

    def after_phase(self, phase: str, theta: Tensor, state: State, hp: Any, pool: Pool) -> tuple[Tensor, State]:
        if phase == "train":
            return theta, state
        return theta, self.State(self.offer_task(state.memory, pool, theta))

    def health(self, state: State, hp: Any) -> dict[str, Tensor]:
        return buffer_stats(self.data, state.memory)

    @classmethod
    def warnings(cls, health: HealthRows, knobs: Knobs) -> list[str]:
        if any(row["memory_fill"] == 0 for row in health):
            return ["the memory stayed empty, so GDumb trained on nothing"]
        return []
