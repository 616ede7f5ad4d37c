"""A network for every task: theta_t minimises L_t(theta_t) alone, and answers for task t alone.

Nothing can be forgotten and nothing is carried over; it costs T networks, and the task must be told at test.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from clrun.models import Statistics
from clrun.strategy import Strategy, cross_entropy


class Separate(Strategy):
    """theta is the network being trained, fresh at every stage; the state keeps one a task."""

    restart: ClassVar[bool] = True

    class State(NamedTuple):
        thetas: Tensor  # (T, P); those of tasks to come are the untrained network
        statistics: Statistics  # {name: (T, width)} of each network's batch norm
        stage: Tensor  # () the task that theta belongs to

    def init(self, theta):
        T, born = self.data.tasks, self.net.network.statistics()
        statistics = {name: v.to(theta).repeat(T, 1) for name, v in born.items()}
        return self.State(theta.repeat(T, 1), statistics, torch.zeros((), dtype=torch.long, device=theta.device))

    def loss(self, theta, state, hp, batch):
        return cross_entropy(self.net(theta, batch.x), batch), {}

    def after_step(self, state, hp, batch, aux):
        return state._replace(stage=batch.stage)

    def after_phase(self, phase, theta, state, hp, pool):
        thetas, statistics = self.networks(theta, state)
        return theta, state._replace(thetas=thetas, statistics=statistics)

    def networks(self, theta: Tensor, state: State) -> tuple[Tensor, Statistics]:
        """(T, P) and {name: (T, width)} with theta in its place; the network is at rest."""
        here = torch.arange(self.data.tasks, device=theta.device)[:, None] == state.stage
        current = self.net.statistics
        statistics = {name: torch.where(here, current[name], kept) for name, kept in state.statistics.items()}
        return torch.where(here, theta, state.thetas), statistics

    def logits(self, theta, state, hp, x, t):
        thetas, statistics = self.networks(theta, state)
        rest = [{name: v[task] for name, v in statistics.items()} for task in range(self.data.tasks)]
        answers = [self.net.eval_mode(s)(theta, x) for theta, s in zip(thetas, rest, strict=True)]
        z = torch.stack(answers, 1)  # (B, T, C)
        return z.gather(1, t[:, None, None].expand(-1, 1, z.shape[-1]))[:, 0]

    def health(self, state, hp):
        newest = state.thetas[state.stage[None]][0]
        apart = (state.thetas - newest).norm(dim=1) / newest.norm()
        earlier = torch.arange(self.data.tasks, device=apart.device) < state.stage
        return {"networks": state.stage + 1, "nearest_network": torch.where(earlier, apart, 1).min().clamp(max=1)}

    @classmethod
    def warnings(cls, health: Sequence[Mapping[str, float]], knobs: Mapping[str, Any]) -> list[str]:
        if any(row["nearest_network"] == 0 for row in health[1:]):
            return ["two tasks have one and the same network, so they are not separate"]
        return []
