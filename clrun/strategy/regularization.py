"""The base class of methods that pull theta towards past values by a quadratic penalty (EWC, SI, MAS)."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from clrun.strategy.base import NEGLIGIBLE, HealthRows, Knobs, Strategy, Tree, later_tasks
from clrun.system.text import format_value


@dataclass(frozen=True)
class QuadraticPenalty(Strategy):
    """A base class for methods with a penalty strength/2 sum_i importance_i (theta_i - anchor_i)^2.

    A subclass overrides `quadratic`, which returns the penalty, and `importance`. The base class reports the importance
    in health.csv and warns if all of it was zero or the penalty was negligible.
    """

    shares: ClassVar[tuple[str, ...]] = ("penalty",)
    strength: ClassVar[str] = "lambda"  # the key that scales the penalty
    importance_name: ClassVar[str] = "importance"  # the start of the columns in health.csv

    def importance(self, state: Tree) -> Tensor:
        """Return the importance (P,) of each entry of theta."""
        raise NotImplementedError

    def health(self, state: Tree, hp: Any) -> dict[str, Tensor]:
        """Return sum and maximum of the importance, and the share of parameters of which it is zero."""
        importance, name = self.importance(state), self.importance_name
        zero_share = (importance == 0).to(importance.dtype).mean()
        return {f"{name}_sum": importance.sum(), f"{name}_max": importance.max(), f"{name}_zero_share": zero_share}

    @classmethod
    def warnings(cls, health: HealthRows, knobs: Knobs) -> list[str]:
        name, strength = cls.__name__, knobs[cls.strength]
        later = later_tasks(health)
        if strength == 0 or not later:
            return []
        if all(row[f"{cls.importance_name}_max"] == 0 for row in health):
            why = f"{name} found no weight important (its {cls.importance_name} is all zero), so it did nothing"
            return [f"{why}: this is finetuning"]
        if all(row["penalty_over_loss"] <= NEGLIGIBLE for row in later):
            why = f"at {cls.strength}={format_value(strength)} {name}'s penalty never passed {NEGLIGIBLE:g} of the loss"
            return [f"{why}: this is finetuning"]
        return []
