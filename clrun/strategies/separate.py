"""A network of its own for every task: theta_t minimises L_t(theta_t) alone, and answers for task t alone.

Nothing can be forgotten and nothing is transferred. It costs T networks, and the task must be given at test time.
"""

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from clrun.strategy import (
    Aux,
    Batch,
    HealthRows,
    Knobs,
    Pool,
    RunningStatistics,
    Strategy,
    cross_entropy,
)


class Separate(Strategy):
    """Separate networks.

    theta is the network being trained, with new initial values at every stage. The state holds the networks of all
    tasks, 4 T P bytes in float32, and their batch norm's running statistics.
    """

    restart: ClassVar[bool] = True
    fits_weights: ClassVar[bool] = True  # the weights that a task ends with are those that answer it from then on

    class State(NamedTuple):
        thetas: Tensor  # (T, P); those of later tasks are the untrained network
        statistics: RunningStatistics  # {name: (T, ...)} of each network's batch norm
        stage: Tensor  # () int64: the task that theta belongs to

    def init(self, theta: Tensor) -> State:
        T, initial = self.data.tasks, self.net.network.statistics()
        statistics = {name: v.to(theta).expand(T, *v.shape).clone() for name, v in initial.items()}
        return self.State(theta.repeat(T, 1), statistics, torch.zeros((), dtype=torch.long, device=theta.device))

    def loss(self, theta: Tensor, state: State, hp: Any, batch: Batch) -> tuple[Tensor, Aux]:
        return cross_entropy(self.net(theta, batch.x), batch), {}

    def after_step(self, state: State, hp: Any, batch: Batch, aux: Aux) -> State:
        return state._replace(stage=batch.stage)

    def after_phase(self, phase: str, theta: Tensor, state: State, hp: Any, pool: Pool) -> tuple[Tensor, State]:
        thetas, statistics = self.networks(theta, state)
        return theta, state._replace(thetas=thetas, statistics=statistics)

    def networks(self, theta: Tensor, state: State) -> tuple[Tensor, RunningStatistics]:
        """Return parameters (T, P) and statistics {name: (T, ...)} of all tasks' networks, theta (P,) among them.

        The network must be in evaluation mode, with the running statistics of theta.
        """
        trained = torch.arange(self.data.tasks, device=theta.device) == state.stage
        current = self.net.statistics or {}  # without batch norm there are none

        def replaced(stored: Tensor, new: Tensor) -> Tensor:
            return torch.where(trained.view(-1, *[1] * new.dim()), new, stored)

        statistics = {name: replaced(stored, current[name]) for name, stored in state.statistics.items()}
        return replaced(state.thetas, theta), statistics

    def logits(self, theta: Tensor, state: State, hp: Any, x: Tensor, t: Tensor) -> Tensor:
        """Return the logits (B, outputs) of each sample by the network of its task t."""
        thetas, statistics = self.networks(theta, state)
        by_task = [{name: v[task] for name, v in statistics.items()} for task in range(self.data.tasks)]
        answers = [self.net.eval_mode(s)(theta, x) for theta, s in zip(thetas, by_task, strict=True)]
        z = torch.stack(answers, 1)  # (B, T, C)
        return z.gather(1, t[:, None, None].expand(-1, 1, z.shape[-1]))[:, 0]

    def health(self, state: State, hp: Any) -> dict[str, Tensor]:
        newest = state.thetas[state.stage[None]][0]
        distance = (state.thetas - newest).norm(dim=1) / newest.norm()
        earlier = torch.arange(self.data.tasks, device=distance.device) < state.stage
        return {"networks": state.stage + 1, "nearest_network": torch.where(earlier, distance, 1).min().clamp(max=1)}

    @classmethod
    def warnings(cls, health: HealthRows, knobs: Knobs) -> list[str]:
        if any(row["nearest_network"] == 0 for row in health[1:]):
            return ["two tasks have one and the same network, so they are not separate"]
        return []
