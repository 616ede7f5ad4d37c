"""iCaRL (Rebuffi et al. 2017): exemplars by herding, distillation, and the nearest mean of exemplars answers.

    train on (x, y) of the task and of the memory together (algorithm 3):
        L(theta) = sum_{o old} BCE(z_o(x), sigmoid z_o(x; theta*)) + sum_{o new} BCE(z_o(x), 1[y = o])
    keep by herding (algorithms 4 and 5), see clrun/strategy/herding.py
    answer (algorithm 1):   y = argmin_o || phi(x) - mu_o ||,    mu_o = the mean of phi over the exemplars of o

BCE is the binary cross entropy of a logit, theta* the network before this task, and phi the inputs of the last layer,
divided by their norm, as are the means. An output that could answer before and has no class yet counts as new. A
class without exemplars, for which the memory is too small, has no mean and is not answered.

With a memory_per_class, as in van de Ven et al. 2022, each class has as many exemplars from the start. In task-
incremental runs, what answers is the nearest mean of the task's own classes.

As far as we read the code of van de Ven et al. 2022, it differs twice: the target of an old output is sigmoid(z_o / 2),
and the mean that herding comes near to is divided by its norm. Neither is in the code of Rebuffi et al.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clrun.strategy import (
    Aux,
    Batch,
    Exemplars,
    HealthRows,
    Knobs,
    Network,
    Past,
    Pool,
    class_means,
    lowered,
    one_hot,
    smoothed,
)


@dataclass(frozen=True)
class ICaRL(Exemplars):
    """iCaRL.

    Its state is the memory of M row numbers with their keys (16 M bytes and the images), the network before the task
    (4 P bytes in float32), and the means of the exemplars (4 C D bytes for D features).
    """

    class State(NamedTuple):
        past: Past
        means: Tensor  # (C, D) of norm 1; 0 for outputs without exemplars

    @classmethod
    def incompatibility(cls, network: Network, optimizer: str, knobs: Knobs) -> str | None:
        if [*network.layers] == ["head"]:
            return "it answers by the features of a hidden layer, and this network has none; type model=mlp."
        return super().incompatibility(network, optimizer, knobs)

    def init(self, theta: Tensor) -> State:
        return self.State(self.no_past(theta), theta.new_zeros(self.data.outputs, self.net.feature_count))

    def loss(self, theta: Tensor, state: State, hp: Any, batch: Batch) -> tuple[Tensor, Aux]:
        """Return the mean over samples of the binary cross entropies, summed over the outputs."""
        z = self.logits(theta, state, hp, batch.x, batch.t)
        old = state.past.old
        teacher = self.teacher_logits(state.past, batch.x)
        hard = smoothed(one_hot(batch.y, self.data.outputs).to(z), batch.active, batch.smoothing)
        soft = teacher.sigmoid()
        bce = F.binary_cross_entropy_with_logits(z, torch.where(old, soft, hard), reduction="none")
        least = F.binary_cross_entropy_with_logits(teacher, soft, reduction="none")  # that of the teacher itself
        distilled = batch.mean(torch.where(old, bce - least, 0).sum(-1)).detach()
        fit = batch.mean(torch.where(batch.active | old | state.past.new, bce, 0).sum(-1))
        return fit, {"distillation": distilled, "exemplar_share": self.exemplar_share(batch)}

    def scores(self, theta: Tensor, state: State, hp: Any, x: Tensor, t: Tensor) -> Tensor:
        """Return phi(x) . mu_o, which is largest for the nearest mean; the logits as long as there is no mean."""
        known = state.means.square().sum(-1) > 0
        near = F.normalize(self.net.features(theta, x), dim=1) @ state.means.T
        return torch.where(known.any(), lowered(near, known), self.net(theta, x))

    def after_phase(self, phase: str, theta: Tensor, state: State, hp: Any, pool: Pool) -> tuple[Tensor, State]:
        """Return theta, and the state with the exemplars of the task and the means of all."""
        if phase == "meet":
            return theta, state._replace(past=self.met(state.past, pool))
        past = self.passed(state.past, theta, pool)
        batches = self.held_batches(past.memory, pool)
        phi = F.normalize(torch.cat([self.net.features(theta, batch.x) for batch in batches]), dim=1)
        y, weight = torch.cat([batch.y for batch in batches]), torch.cat([batch.weight for batch in batches])
        return theta, self.State(past, F.normalize(class_means(phi, y, weight, self.data.outputs), dim=1))

    def health(self, state: State, hp: Any) -> dict[str, Tensor]:
        means = (state.means.square().sum(-1) > 0).sum()
        return {"means": means} | self.past_stats(state.past)

    @classmethod
    def warnings(cls, health: HealthRows, knobs: Knobs) -> list[str]:
        if any(row["means"] == 0 for row in health):
            return ["no class had a mean of exemplars, so the network's outputs answered"]
        return super().warnings(health, knobs)
