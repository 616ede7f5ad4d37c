"""What iCaRL, WA and BiC share: training on the task's samples and a memory together, with the last network as teacher.

The memory holds *exemplars*: samples of past tasks alone, the same number of each class. Each epoch goes through them
and through the task's samples, all shuffled together. An output is *old* if a sample of an earlier task has it as its
label, and *new* if one of the present task has and none of an earlier one. Where no output is new, as in a stream in
which classes come back, the last network teaches everything, and nothing is learnt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from clrun.data.batches import Batch, Pool
from clrun.models import RunningStatistics
from clrun.strategy.base import NEGLIGIBLE, HealthRows, Knobs, Tree, later_tasks
from clrun.strategy.ranked import AnyMemory
from clrun.strategy.replay import CHUNK, Replay, buffer_stats


class Past(NamedTuple):
    """What is kept of earlier tasks: exemplars, the network as it was, and which outputs are old and new."""

    memory: AnyMemory
    teacher: Tensor  # (P,) theta when the last task ended
    statistics: RunningStatistics  # those of the teacher, which answers in evaluation mode
    old: Tensor  # (C,) bool
    new: Tensor  # (C,) bool


@dataclass(frozen=True)
class Exemplars(Replay):
    """A base class for methods that train on exemplars and new samples together.

    A task has two passes: in the first, `meet`, no step is taken, and the state learns which outputs are new. The state
    of a subclass has a field `past`. What is kept of a class is chosen when its task ends.
    """

    phases: ClassVar[tuple[str, ...]] = ("meet", "train")
    fits_weights: ClassVar[bool] = True
    memory_policy: str = "herding"

    def no_past(self, theta: Tensor) -> Past:
        """Return what there is before the first task."""
        statistics = {name: v.to(theta) for name, v in self.net.network.statistics().items()}
        none = torch.zeros(self.data.outputs, dtype=torch.bool, device=theta.device)
        return Past(self.empty(theta), theta, statistics, none, none)

    def trained_rows(self, phase: str, state: Tree, own: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the task's samples and the exemplars as one; none in the pass that meets the task."""
        if phase == "meet":
            return [own[0][:0]]
        memory = state.past.memory
        return [torch.cat([*own, memory.rows[: int(memory.held)].cpu()])]

    def trained_samples(self, stage: int, classes: Sequence[Sequence[int]]) -> int | None:
        return sum(classes[stage]) + self.held_of(classes[:stage])

    def met(self, past: Past, pool: Pool) -> Past:
        """Return the past as it is while a task is trained on: the outputs of its samples that are not old are new."""
        label = self.data.index(pool.tables, pool.rows, pool.weight).y
        at = torch.where(pool.weight > 0, label, self.data.outputs)  # the last entry collects those that are not there
        mask = torch.zeros(self.data.outputs + 1, dtype=torch.bool, device=at.device)
        return past._replace(new=mask.scatter(0, at, True)[:-1] & ~past.old)

    def passed(self, past: Past, theta: Tensor, pool: Pool) -> Past:
        """Return the past after a task, with exemplars of it and with theta (P,) as the teacher of the next one."""
        assert self.net.statistics is not None  # the network is in evaluation mode
        memory = self.offer_task(past.memory, pool, theta)
        return Past(memory, theta, self.net.statistics, past.old | past.new, past.new)

    def teacher_logits(self, past: Past, x: Tensor) -> Tensor:
        """Return the logits (B, C) of the network as it was before this task."""
        return self.net.eval_mode(past.statistics)(past.teacher, x)

    def held_batches(self, memory: AnyMemory, pool: Pool) -> list[Batch]:
        """Return all M slots of a memory as batches, those that are not in use with weight 0."""
        noise = pool.noise[:, :1].expand(-1, len(memory.rows))
        held = pool._replace(rows=memory.rows, weight=memory.used.to(pool.weight), noise=noise)
        return list(self.data.chunks(held, self.data.share(CHUNK)))

    def exemplar_share(self, batch: Batch) -> Tensor:
        """Return the share () of the samples of a batch that are exemplars."""
        return batch.mean((batch.t < batch.stage).to(batch.mean_weight))

    def past_stats(self, past: Past) -> dict[str, Tensor]:
        """Return columns of health.csv: the outputs that were new in the task that has ended, and the memory's."""
        return {"new_outputs": past.new.sum()} | buffer_stats(self.data, past.memory)

    @classmethod
    def warnings(cls, health: HealthRows, knobs: Knobs) -> list[str]:
        found = cls.memory_warnings(health)
        if without_new := [str(int(row["task"])) for row in later_tasks(health) if row["new_outputs"] == 0]:
            tasks = f"task {without_new[0]}" if len(without_new) == 1 else f"the tasks {', '.join(without_new)}"
            nothing = "no weight learns anything then, as the network before the task is the target of all outputs"
            found.append(f"no class of {tasks} was new, and {nothing}; where classes come back, type strategy=er")
        if taught_nothing(health):
            found.append(
                f"the distillation never passed 1e-12 of the loss, so {cls.__name__} learnt nothing from its teacher"
            )
        return found

    @classmethod
    def memory_warnings(cls, health: HealthRows) -> list[str]:
        """Return what a reader must know if the exemplars had no effect."""
        later = later_tasks(health)
        if not later:
            return []
        if all(row["memory_fill"] == 0 for row in health):
            return [f"the memory stayed empty, so {cls.__name__} had no exemplars"]
        if all(row["exemplar_share"] == 0 for row in later):
            return [f"no exemplar was ever trained on, so {cls.__name__} had nothing of earlier tasks"]
        return []


def taught_nothing(health: HealthRows) -> bool:
    """Return whether the distillation had no part in the loss of any later task with new outputs.

    Other tasks say nothing: where no output is new, a student that is its teacher has nothing to learn, and its
    distillation is what rounding leaves. Neither do tasks without a loss, such as those of a single class each in a
    task-incremental stream.
    """
    later = [row for row in later_tasks(health) if row["new_outputs"] > 0 and row["loss"] > 0]
    return bool(later) and all(row["distillation"] <= NEGLIGIBLE * row["loss"] for row in later)


def distillation(old: Tensor, new: Tensor, outputs: Tensor, temperature: Tensor) -> Tensor:
    """Return the KL divergence (B,) of the student's softmax from the teacher's over some `outputs` (C,) bool, at a
    temperature (); 0 where there are no outputs.

    old and new are the logits (B, C) of teacher and student.
    """
    masked = torch.where(outputs, torch.stack([old, new]) / temperature, -torch.inf)
    p, q = torch.where(outputs.any(), masked, 0).log_softmax(-1)
    return torch.where(outputs, p.exp() * (p - q), 0).sum(-1)
