"""Shrink and perturb (Ash & Adams 2020, "On warm-starting neural network training", section 4).

    theta <- shrink * theta + perturb * theta_new      before every task but the first

theta_new are fresh initial parameters. The paper writes noise from N(0, sigma^2); its authors' code, as here, takes the
noise from the distribution of initial parameters, which fits every layer's scale. The network is evaluated as the task
has left it: it is shrunk when the next task begins. That gives plasticity, not memory.
"""

from typing import Any, NamedTuple

from torch import Tensor

from clrun.strategy import (
    HealthRows,
    Knobs,
    Strategy,
    later_tasks,
)


class ShrinkPerturb(Strategy):
    """Shrink and perturb. Its state is one number."""

    class Hyper(NamedTuple):
        shrink: Tensor  # () what theta is multiplied by
        perturb: Tensor  # () what fresh parameters are multiplied by

    class State(NamedTuple):
        moved: Tensor  # () how far the last such step went, over the norm of theta

    def init(self, theta: Tensor) -> State:
        return self.State(theta.new_zeros(()))

    def begin_stage(self, theta: Tensor, state: State, hp: Hyper, fresh: Tensor) -> tuple[Tensor, State]:
        """Return shrink * theta + perturb * theta_new, and the state with how far that is."""
        new = hp.shrink * theta + hp.perturb * fresh
        return new, self.State((new - theta).norm() / theta.norm())

    def health(self, state: State, hp: Any) -> dict[str, Tensor]:
        return {"reset_distance": state.moved}

    @classmethod
    def warnings(cls, health: HealthRows, knobs: Knobs) -> list[str]:
        later = later_tasks(health)
        if (knobs["shrink"], knobs["perturb"]) == (1, 0) or any(row["reset_distance"] > 0 for row in later):
            return []
        return ["the weights were never shrunk or perturbed: this is finetuning"] if later else []
