"""The base class of methods that train on the data of several tasks at once (joint, cumulative, scratch)."""

from typing import Any

from torch import Tensor

from clrun.data.batches import Batch
from clrun.strategy.base import HealthRows, Knobs, Strategy, Tree
from clrun.strategy.gradients import Aux


class MultiTask(Strategy):
    """A base class for methods that override `visible`, which says the tasks of each stage.

    Its signal `others_share` is the share of samples of other tasks than the one being learnt; a run in which it is
    always zero did not do what the method promises and is given a warning.
    """

    def loss(self, theta: Tensor, state: Tree, hp: Any, batch: Batch) -> tuple[Tensor, Aux]:
        fit, aux = super().loss(theta, state, hp, batch)
        return fit, aux | {"others_share": batch.mean((batch.t != batch.stage).to(fit))}

    @classmethod
    def warnings(cls, health: HealthRows, knobs: Knobs) -> list[str]:
        shares = [row["others_share"] for row in health if "others_share" in row]
        if len(health) < 2 or any(share > 0 for share in shares):
            return []
        return [
            f"{cls.__name__} never saw a sample of another task than the one being learnt: this is not {cls.__name__}"
        ]
