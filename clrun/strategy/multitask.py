"""What methods that keep all data (joint, cumulative, scratch) share: how they account for themselves."""

from collections.abc import Mapping, Sequence
from typing import Any

from clrun.strategy.base import Strategy


class MultiTask(Strategy):
    """Its signal `others_share` is the share of the samples that are of other tasks than the one now being learnt."""

    def loss(self, theta, state, hp, batch):
        fit, aux = super().loss(theta, state, hp, batch)
        return fit, aux | {"others_share": batch.mean((batch.t != batch.stage).to(fit))}

    @classmethod
    def warnings(cls, health: Sequence[Mapping[str, float]], knobs: Mapping[str, Any]) -> list[str]:
        seen = [row["others_share"] for row in health if "others_share" in row]
        if len(health) < 2 or any(share > 0 for share in seen):
            return []
        return [
            f"{cls.__name__} never saw a sample of another task than the one being learnt: this is not {cls.__name__}"
        ]
