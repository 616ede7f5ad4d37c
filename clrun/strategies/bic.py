"""Bias correction (Wu et al. 2019): two numbers a task undo the preference for the newest classes.

    stage 1, on (x, y) of the task and of the memory together (eqs. 1 to 3):
        L(theta) = (1 - w) CE(x, y; theta) + w KL( p_old(x; theta*) || p_old(x; theta) ),    w = n_old / (n_old + n_new)
    stage 2, on the validation part V of the memory (eqs. 4 and 5):
        alpha_t, beta_t = argmin CE(V),    where the logits of the task's outputs are  alpha_t z_o + beta_t

p_old is the softmax of logits / temperature over the old outputs, theta* the network before this task with its
corrections, and n the number of outputs. The paper writes a cross entropy to p_old(x; theta*) in place of the KL
divergence; the two differ by a constant, so they have the same gradient. Once found, alpha_t and beta_t stay, in
training and in answering.

V is a share of the memory, with the same number of samples of each class, which are drawn before their task is trained
on and never trained on. Of a class, no more than that share is held out, so that a memory which is large beside the
task leaves it samples to train on; that is our addition. Stage 2 is a convex problem in two unknowns. It is solved by
Newton's method, where the paper takes steps of SGD; a ridge of 1e-3 ((alpha - 1)^2 + beta^2) / 2 keeps both finite
where V has no errors.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
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
    RankedMemory,
    TaskTables,
    buffer_stats,
    cross_entropy,
    distillation,
    later_tasks,
    log_softmax,
    losses,
    named,
    one_hot,
    ranks,
)

RIDGE = 1e-3
NEWTON_STEPS = 20
HALVINGS = 12  # of a step: the longest is taken that does not raise the loss
ROUNDING = 1e-12  # a loss that is larger by no more than this share is not larger


@dataclass(frozen=True)
class BiC(Exemplars):
    """Bias correction.

    Its state is two memories, of M row numbers together with their keys (16 M bytes and the images), the network before
    the task (4 P bytes in float32), and alpha, beta and the task of each output.
    """

    validation_share: float = 0.1
    held_out: bool = False  # whether this is the strategy for the memory of what is held out

    class Hyper(NamedTuple):
        temperature: Tensor  # ()

    class State(NamedTuple):
        past: Past
        validation: RankedMemory
        task: Tensor  # (C,) int64: the task that has brought an output; T for none yet
        alpha: Tensor  # (T + 1,)
        beta: Tensor  # (T + 1,)

    @classmethod
    def incompatibility(cls, network: Network, optimizer: str, knobs: Knobs) -> str | None:
        if knobs["memory_size"] < 2:
            return "its memory has a part for training and one for validation; type memory_size=2 or more."
        return super().incompatibility(network, optimizer, knobs)

    @property
    def slots(self) -> int:
        """The number of slots of the memory for training, or of that for validation."""
        held_out = min(max(1, round(self.validation_share * self.memory_size)), self.memory_size - 1)
        return held_out if self.held_out else self.memory_size - held_out

    @property
    def holding_out(self) -> "BiC":
        """The strategy for the memory for validation: drawn uniformly from each class."""
        return replace(self, held_out=True, memory_policy="balanced")

    def init(self, theta: Tensor) -> State:
        T = self.data.tasks
        validation = self.holding_out.empty(theta)
        assert isinstance(validation, RankedMemory)  # as of every policy but the reservoir
        task = torch.full((self.data.outputs,), T, device=theta.device)
        return self.State(self.no_past(theta), validation, task, theta.new_ones(T + 1), theta.new_zeros(T + 1))

    def adopt(self, theta: Tensor, state: State, hp: Any, added: Tensor, learnt: Tensor, tables: TaskTables) -> State:
        """Return the state in which outputs that no task has brought have the T of this run, which has more tasks."""
        return state._replace(task=torch.where(state.past.old, state.task, self.data.tasks))

    def corrected(self, z: Tensor, state: State) -> Tensor:
        """Return the logits (B, C) with the corrections of the tasks that have one."""
        return z * state.alpha.index_select(0, state.task) + state.beta.index_select(0, state.task)

    def logits(self, theta: Tensor, state: State, hp: Any, x: Tensor, t: Tensor) -> Tensor:
        """Return alpha_t z_o + beta_t for each output o, t being the task that has brought it."""
        return self.corrected(self.net(theta, x), state)

    def loss(self, theta: Tensor, state: State, hp: Hyper, batch: Batch) -> tuple[Tensor, Aux]:
        """Return (1 - w) CE + w KL."""
        z = self.logits(theta, state, hp, batch.x, batch.t)
        old, new = state.past.old, state.past.new
        w = old.sum().to(z) / (old | new).sum().clamp(min=1)
        teacher = self.corrected(self.teacher_logits(state.past, batch.x), state)
        kl = batch.mean(distillation(teacher, z, old, hp.temperature))
        signals = {"distillation": kl, "exemplar_share": self.exemplar_share(batch)}
        return (1 - w) * cross_entropy(z, batch) + w * kl, signals

    def trained_rows(self, phase: str, state: State, own: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the task's samples and the exemplars, without what is held out."""
        (rows,) = super().trained_rows(phase, state, own)
        held_out = state.validation.rows[: int(state.validation.held)].to(rows)
        return [rows[~torch.isin(rows, held_out)]]

    def trained_samples(self, stage: int, classes: Sequence[Sequence[int]]) -> None:
        return None  # random numbers decide how many samples of the task are held out where that memory is full

    def after_phase(self, phase: str, theta: Tensor, state: State, hp: Hyper, pool: Pool) -> tuple[Tensor, State]:
        """Return theta, and the state with what is held out of a task that begins, or with exemplars and corrections
        of one that ends."""
        if phase == "meet":
            past = self.met(state.past, pool)
            validation = self.holding_out.offer_task(state.validation, self.offered(state.validation, pool), theta)
            assert isinstance(validation, RankedMemory)  # as it was before
            task = torch.where(past.new & (state.task == self.data.tasks), pool.stage, state.task)
            return theta, state._replace(past=past, validation=validation, task=task)
        trained = pool._replace(weight=pool.weight * ~self.held_out_of(pool, state))
        state = self.solved(theta, state, pool)
        return theta, state._replace(past=self.passed(state.past, theta, trained))

    def offered(self, memory: RankedMemory, pool: Pool) -> Pool:
        """Return a pool with the samples that may be held out: of each class their share, drawn uniformly. At least one
        is held out of a class that has two, and none of a class of one, which would have nothing to train on."""
        own = torch.where(pool.weight > 0, self.data.class_ids(pool.rows), -1)
        ordered = own.sort().values
        number = torch.searchsorted(ordered, own, right=True) - torch.searchsorted(ordered, own)  # of the same class
        limit = (self.validation_share * number).round().clamp(min=1).minimum(number - 1)
        by_key = self.holding_out.keys(memory, pool, pool.weight).argsort(stable=True)
        rank = torch.zeros_like(by_key).scatter(0, by_key, ranks(own.index_select(0, by_key)))
        return pool._replace(weight=pool.weight * (rank < limit))

    def held_out_of(self, pool: Pool, state: State) -> Tensor:
        """Return which samples of a pool (n,) bool are in the memory for validation."""
        return named(state.validation.positions(pool.rows, pool.weight), len(pool.weight))

    def solved(self, theta: Tensor, state: State, pool: Pool) -> State:
        """Return the state with alpha and beta of the task that ends; 1 and 0 in the first task."""
        batches = self.held_batches(state.validation, pool)
        z = torch.cat([self.logits(theta, state, (), batch.x, batch.t) for batch in batches]).double()
        y, active, weight = (torch.cat(v) for v in zip(*((b.y, b.active, b.weight) for b in batches), strict=True))
        own = state.task == pool.stage
        found = least_biased(z, y, active, own, weight.double())
        found = torch.where(state.past.old.any(), found, torch.tensor([1.0, 0.0]).to(found)).to(theta)
        at = torch.arange(len(state.alpha), device=theta.device) == pool.stage
        return state._replace(alpha=torch.where(at, found[0], state.alpha), beta=torch.where(at, found[1], state.beta))

    def health(self, state: State, hp: Hyper) -> dict[str, Tensor]:
        newest = torch.where(state.task < self.data.tasks, state.task, 0).max()[None]
        corrections = {"alpha": state.alpha.index_select(0, newest)[0], "beta": state.beta.index_select(0, newest)[0]}
        of_classes = buffer_stats(self.data, state.validation)["memory_classes"]
        held_out = {"held_out": state.validation.held, "held_out_classes": of_classes}
        return corrections | held_out | self.past_stats(state.past)

    @classmethod
    def warnings(cls, health: HealthRows, knobs: Knobs) -> list[str]:
        of_memory = super().warnings(health, knobs)
        later = later_tasks(health)
        of_memory += too_few_held_out(later)[:1]
        if later and all(row["alpha"] == 1 and row["beta"] == 0 for row in later):
            return [*of_memory, "no bias was ever corrected, so BiC was distillation on exemplars"]
        return of_memory


def too_few_held_out(later: HealthRows) -> list[str]:
    """Return a sentence for each task whose alpha and beta were found without a sample of some classes."""
    counts = [(round(row["task"]), round(row["memory_classes"]), round(row["held_out_classes"])) for row in later]
    return [
        f"alpha and beta of task {task} were found without a sample of {classes - held_out} of {classes} classes: too "
        "few are held out; type a larger memory_size or validation_share"
        for task, classes, held_out in counts
        if held_out < classes
    ]


def least_biased(z: Tensor, y: Tensor, active: Tensor, own: Tensor, weight: Tensor) -> Tensor:
    """Return alpha and beta (2,) of the least mean cross entropy plus the ridge, by Newton's method from (1, 0).

    z (n, C) are logits over the outputs in active (n, C) bool, of which alpha and beta change those in own (C,) bool; y
    (n,) are the labels. weight (n,) is 0 where there is no sample.
    """
    mean_weight = weight / weight.sum().clamp(min=1)
    start = torch.tensor([1.0, 0.0], dtype=z.dtype, device=z.device)
    lengths = 0.5 ** torch.arange(HALVINGS + 1, dtype=z.dtype, device=z.device)

    def changed(ab: Tensor) -> Tensor:
        return torch.where(own, ab[0] * z + ab[1], z)

    def loss(ab: Tensor) -> Tensor:
        return losses(changed(ab), y, active) @ mean_weight + RIDGE / 2 * (ab - start).square().sum()

    ab = start
    for _ in range(NEWTON_STEPS):
        step = newton_step(changed(ab), z, y, active & own, active, mean_weight, ab - start)
        candidates = torch.stack([ab - length * step for length in lengths])
        values = torch.stack([loss(candidate) for candidate in candidates])
        lower = values <= loss(ab) * (1 + ROUNDING)
        longest = lower.long().argmax()[None]  # the first one that is lower; none is where ab is the minimum
        ab = torch.where(lower.any(), candidates.index_select(0, longest)[0], ab)
    return ab


def newton_step(
    changed: Tensor, z: Tensor, y: Tensor, own: Tensor, active: Tensor, mean_weight: Tensor, away: Tensor
) -> Tensor:
    """Return H^-1 g (2,) of the loss of `least_biased`, at logits `changed` (n, C) and (alpha, beta) = (1, 0) + away.

    own (n, C) bool are the outputs that alpha and beta change.
    """
    p = log_softmax(changed, active).exp() * own
    error = p - one_hot(y, z.shape[1]).to(z) * own
    g = torch.stack([(error * z).sum(1) @ mean_weight, error.sum(1) @ mean_weight]) + RIDGE * away
    s0, s1, s2 = p.sum(1), (p * z).sum(1), (p * z.square()).sum(1)
    aa = (s2 - s1.square()) @ mean_weight + RIDGE
    ab = (s1 - s0 * s1) @ mean_weight
    bb = (s0 - s0.square()) @ mean_weight + RIDGE
    determinant = aa * bb - ab.square()
    return torch.stack([bb * g[0] - ab * g[1], aa * g[1] - ab * g[0]]) / determinant
