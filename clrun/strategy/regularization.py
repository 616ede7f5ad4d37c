"""What methods with a quadratic pull towards past weights (EWC, SI, MAS) share: how they account for themselves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from clrun.strategy.base import Strategy, Tree

NEGLIGIBLE = 1e-12  # of the loss


@dataclass(frozen=True)
class QuadraticPenalty(Strategy):
    """`quadratic` is the pull; `importance` says how much each weight is held."""

    shares: ClassVar[tuple[str, ...]] = ("penalty",)
    strength: ClassVar[str] = "lambda"  # the knob that scales the penalty
    importance_name: ClassVar[str] = "importance"  # its name in health.csv

    def importance(self, state: Tree) -> Tensor:
        """(P,)"""
        raise NotImplementedError

    def health(self, state, hp):
        held, name = self.importance(state), self.importance_name
        zero_share = (held == 0).to(held.dtype).mean()
        return {f"{name}_sum": held.sum(), f"{name}_max": held.max(), f"{name}_zero_share": zero_share}

    @classmethod
    def warnings(cls, health: Sequence[Mapping[str, float]], knobs: Mapping[str, Any]) -> list[str]:
        name, strength = cls.__name__, knobs[cls.strength]
        if strength == 0 or len(health) < 2:
            return []
        if all(row[f"{cls.importance_name}_max"] == 0 for row in health):
            told = f"{name} found no weight important (its {cls.importance_name} is all zero), so it did nothing"
            return [f"{told}: this is finetuning"]
        if all(row["penalty_over_loss"] <= NEGLIGIBLE for row in health[1:]):
            told = f"at {cls.strength}={strength:g} {name}'s penalty never passed {NEGLIGIBLE:g} of the loss"
            return [f"{told}: this is finetuning"]
        return []
