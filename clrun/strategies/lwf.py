"""Learning without forgetting (Li & Hoiem 2016, eqs. 2 and 3): the network as it was teaches the one that learns.

    L(theta) = L_t(theta) + lambda * sum_{u<t} mean_x KL( p_u(x; theta*) || p_u(x; theta) )

x are the new task's inputs, theta* the network before this task, and p_u the softmax of logits / temperature over the
outputs that answered for old task u. The paper writes a cross entropy, which is this KL plus the teacher's entropy: the
gradient is the same, and the KL is 0 where nothing changed. No factor temperature^2 (as in the paper) unless asked for.

What the old outputs are, by `heads`:
    per_head   a softmax for each old task, over its own outputs, summed. Where old tasks share outputs (in domain- and
               class-incremental streams), that is t-1 times the one softmax that they share.
    together   one softmax over all the outputs of old tasks, counted once.
van de Ven et al. 2022 have per_head in task- and domain-, together in class-incremental streams (there with active=all,
so that outputs not seen yet are distilled too), lambda = 1, temperature 2, no temperature^2.

Left out: the paper's warm-up of a new head, with the rest frozen, before each task.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clrun.data.stream import Batch
from clrun.models import Statistics
from clrun.strategy import Strategy, cross_entropy, log_softmax


@dataclass(frozen=True)
class LwF(Strategy):
    """State: the teacher, P floats, and its batch norm's statistics: it is at rest, as it was last evaluated."""

    heads: str = "per_head"
    temperature_squared: bool = False

    class Hyper(NamedTuple):
        lambda_: Tensor  # ()
        temperature: Tensor  # ()

    class State(NamedTuple):
        teacher: Tensor  # (P,) theta*
        statistics: Statistics

    def init(self, theta):
        at_birth = self.net.network.statistics()
        return self.State(theta, {name: v.to(theta) for name, v in at_birth.items()})

    def loss(self, theta, state, hp, batch):
        new = self.logits(theta, state, hp, batch.x, batch.t)
        old = self.net.eval_mode(state.statistics)(state.teacher, batch.x)
        factor = hp.lambda_ * hp.temperature.square() if self.temperature_squared else hp.lambda_
        distillation = factor * self.drift(old / hp.temperature, new / hp.temperature, batch)
        return cross_entropy(new, batch) + distillation, {"distillation": distillation}

    def drift(self, old: Tensor, new: Tensor, batch: Batch) -> Tensor:
        """Softened logits (B, C) of teacher and student -> (): sum over the softmaxes of old tasks of their KL."""
        outputs, there = self.softmaxes(batch)
        p, q = log_softmax(old[:, None], outputs), log_softmax(new[:, None], outputs)  # (B, K, C)
        kl = (p.exp() * (p - q)).sum(-1)
        return batch.mean((kl * there).sum(-1))

    def softmaxes(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The outputs (K, C) that answered for old tasks before this one, and which of the K there are (K,)."""
        outputs = batch.tables.active[(batch.stage - 1).clamp(min=0)[None]][0]  # (T, C)
        past = torch.arange(len(outputs), device=outputs.device) < batch.stage
        if self.heads == "per_head":
            return outputs, past
        return (outputs & past[:, None]).any(0, keepdim=True), past.any(0, keepdim=True)

    def after_phase(self, phase, theta, state, hp, pool):
        return theta, self.State(theta, self.net.statistics)

    @classmethod
    def warnings(cls, health: Sequence[Mapping[str, float]], knobs: Mapping[str, Any]) -> list[str]:
        if knobs["lambda"] == 0 or len(health) < 2:
            return []
        if all(row["distillation"] <= 1e-12 * row["loss"] for row in health[1:]):
            return [
                f"at lambda={knobs['lambda']:g} LwF's distillation never passed 1e-12 of the loss: this is finetuning"
            ]
        return []
