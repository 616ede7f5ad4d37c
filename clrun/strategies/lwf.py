"""Learning without forgetting (Li & Hoiem 2016, eqs. 2 and 3): the network before a task is the teacher of the next.

    L(theta) = L_t(theta) + lambda * sum_{u<t} mean_x KL( p_u(x; theta*) || p_u(x; theta) )

where x are the new task's inputs, theta* are the parameters before this task (the teacher), and p_u is the softmax of
logits / temperature over the outputs that answered for old task u. The paper writes a cross entropy, which is this KL
plus the teacher's entropy: the gradient is the same, and the KL is 0 where nothing changed. There is no factor
temperature^2, as in the paper, unless `temperature_squared`.

`heads` says what the old outputs are:
    per_head   a softmax for each old task over its own outputs, summed. Where old tasks share outputs (in domain- and
               class-incremental streams), that is t-1 times the one softmax that they share.
    together   one softmax over all the outputs of old tasks, counted once.
van de Ven et al. 2022 have per_head in task- and domain-, together in class-incremental streams (there with active=all,
so that outputs not seen yet are distilled too), lambda = 1, temperature 2, no temperature^2.

Left out: the paper's warm-up of a new head, with the other parameters frozen, before each task.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from clrun.strategy import (
    NEGLIGIBLE,
    Aux,
    Batch,
    HealthRows,
    Knobs,
    Pool,
    RunningStatistics,
    Strategy,
    TaskTables,
    cross_entropy,
    format_value,
    later_tasks,
    log_softmax,
)


@dataclass(frozen=True)
class LwF(Strategy):
    """Learning without forgetting.

    Its state is the teacher (P,), 4 P bytes in float32, and the running statistics of the teacher's batch norms: the
    teacher answers in evaluation mode.
    """

    heads: str = "per_head"
    temperature_squared: bool = False

    class Hyper(NamedTuple):
        lambda_: Tensor  # () strength of the distillation
        temperature: Tensor  # ()

    class State(NamedTuple):
        teacher: Tensor  # (P,) theta*
        statistics: RunningStatistics

    def init(self, theta: Tensor) -> State:
        initial = self.net.network.statistics()
        return self.State(theta, {name: v.to(theta) for name, v in initial.items()})

    def loss(self, theta: Tensor, state: State, hp: Hyper, batch: Batch) -> tuple[Tensor, Aux]:
        """Return L_t(theta) + lambda * KL, summed over the softmaxes of old tasks."""
        new = self.logits(theta, state, hp, batch.x, batch.t)
        old = self.net.eval_mode(state.statistics)(state.teacher, batch.x)
        factor = hp.lambda_ * hp.temperature.square() if self.temperature_squared else hp.lambda_
        distillation = factor * self.divergence(old / hp.temperature, new / hp.temperature, batch)
        return cross_entropy(new, batch) + distillation, {"distillation": distillation}

    def divergence(self, old: Tensor, new: Tensor, batch: Batch) -> Tensor:
        """Return the KL divergence () of the student's from the teacher's softmaxes, summed over those of old tasks.

        old and new are the logits (B, C) of teacher and student, divided by the temperature.
        """
        outputs, exists = self.old_softmaxes(batch)
        p, q = log_softmax(old[:, None], outputs), log_softmax(new[:, None], outputs)  # (B, K, C)
        kl = (p.exp() * (p - q)).sum(-1)
        return batch.mean((kl * exists).sum(-1))

    def old_softmaxes(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the outputs (K, C) bool of each softmax before this task, and which of the K there are (K,) bool."""
        outputs = batch.tables.active[(batch.stage - 1).clamp(min=0)[None]][0]  # (T, C)
        past = torch.arange(len(outputs), device=outputs.device) < batch.stage
        if self.heads == "per_head":
            return outputs, past
        return (outputs & past[:, None]).any(0, keepdim=True), past.any(0, keepdim=True)

    def after_phase(self, phase: str, theta: Tensor, state: State, hp: Hyper, pool: Pool) -> tuple[Tensor, State]:
        """Return theta, and the state with theta as the teacher of the next task."""
        assert self.net.statistics is not None  # the network is in evaluation mode
        return theta, self.State(theta, self.net.statistics)

    def adopt(self, theta: Tensor, state: State, hp: Hyper, added: Tensor, learnt: Tensor, tables: TaskTables) -> State:
        """Return the state with theta, the earlier run's network, as the teacher, which is all that it needs."""
        assert self.net.statistics is not None  # the network is in evaluation mode
        return self.State(theta, self.net.statistics)

    @classmethod
    def warnings(cls, health: HealthRows, knobs: Knobs) -> list[str]:
        later = later_tasks(health)
        if knobs["lambda"] == 0 or not later:
            return []
        if all(row["distillation"] <= NEGLIGIBLE * row["loss"] for row in later):
            strength = format_value(knobs["lambda"])
            return [f"at lambda={strength} LwF's distillation never passed 1e-12 of the loss: this is finetuning"]
        return []
