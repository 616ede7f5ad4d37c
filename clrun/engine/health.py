"""What the signals of a stage say about it: their means, and the first step that was not finite."""

import torch
from torch import Tensor

from clrun.engine.state import NORM, Divergence


def nonfinite_steps(signals: dict[str, Tensor], weights: Tensor) -> list[int]:
    """The steps, from 1, of which something was not finite: the gradient's norm where it was looked at, or the loss. A
    loss that is not finite is the work of the step before."""
    norms = (~signals[NORM].isfinite() & (weights > 0)).nonzero()[:, 0] + 1
    losses = (~signals["loss"].isfinite()).nonzero()[:, 0].clamp(min=1)
    return sorted({*norms.tolist(), *losses.tolist()})


def first_divergence(signals: dict[str, Tensor], weights: Tensor, whole: bool, sound: bool) -> Divergence | None:
    """signals {name: (S,)}, weights (S,) of `monitoring_weights`; whole, sound: whether theta and the optimiser's state
    are finite at the end."""
    diverged = not whole or not bool(signals["loss"].isfinite().all())
    if not diverged and sound:
        return None
    return Divergence(min(nonfinite_steps(signals, weights), default=len(signals["loss"])), diverged)


FIRST, LOOK = 4, 16  # they are found at the first steps of a pass, then at every sixteenth


def is_monitored(step: int) -> bool:
    """Whether the signals that cost a pass over theta are found at this step of a pass, from 1."""
    return step <= FIRST or step % LOOK == 0


def monitoring_weights(steps: int) -> Tensor:
    """(S,) float64: how many steps of a pass each one stands for, those that are not looked at for none."""
    weights = [(1.0 if step <= FIRST else LOOK) * is_monitored(step) for step in range(1, steps + 1)]
    return torch.tensor(weights, dtype=torch.float64)


def monitored_mean(values: Tensor, weights: Tensor) -> float:
    """values, weights (S,) -> the mean over all steps, from those that were looked at."""
    seen = weights > 0
    return (values[seen].double() @ weights[seen] / weights.sum()).item()
