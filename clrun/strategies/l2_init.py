"""Regenerative regularization, or L2 Init (Kumar, Marklund & Van Roy 2023, "Maintaining plasticity", eq. 1).

    L(theta) = L_t(theta) + lambda * ||theta - theta_0||^2      theta_0: the initial parameters

The pull is towards the initial parameters, not towards zero: a network near them learns new tasks as a fresh one does.
It is meant for the loss of plasticity in long streams, and not for remembering: what was learnt fades.
"""

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from clrun.strategy import NEGLIGIBLE, HealthRows, Knobs, Pool, Quadratic, Strategy, format_value


class L2Init(Strategy):
    """L2 Init. Its state is the initial parameters, 4 P bytes in float32, and two numbers."""

    shares: ClassVar[tuple[str, ...]] = ("penalty",)
    needs_boundaries: ClassVar[bool] = False  # what it does at the end of a task is to measure a distance

    class Hyper(NamedTuple):
        lambda_: Tensor  # () strength of the pull

    class State(NamedTuple):
        initial: Tensor  # (P,) theta_0
        distance: Tensor  # () of theta from theta_0, over the norm of theta_0, after the last task

    def init(self, theta: Tensor) -> State:
        return self.State(theta, theta.new_zeros(()))

    def quadratic(self, state: State, hp: Hyper) -> Quadratic:
        """Return lambda ||theta - theta_0||^2."""
        return Quadratic(2 * hp.lambda_, state.initial, torch.ones_like(state.initial))

    def after_phase(self, phase: str, theta: Tensor, state: State, hp: Hyper, pool: Pool) -> tuple[Tensor, State]:
        distance = (theta - state.initial).norm() / state.initial.norm()
        return theta, state._replace(distance=distance)

    def health(self, state: State, hp: Any) -> dict[str, Tensor]:
        return {"distance_from_start": state.distance} if self.data.told else {}

    @classmethod
    def warnings(cls, health: HealthRows, knobs: Knobs) -> list[str]:
        if knobs["lambda"] == 0 or not health or any(row["penalty_over_loss"] > NEGLIGIBLE for row in health):
            return []
        strength = format_value(knobs["lambda"])
        return [
            f"at lambda={strength} the pull to the initial weights never passed 1e-12 of the loss: this is finetuning"
        ]
