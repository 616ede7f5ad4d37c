"""PackNet (Mallya & Lazebnik 2018): several networks packed into one set of weights.

A task trains every weight that is still free. It then keeps the share `keep` of them that is largest in magnitude,
layer by layer, sets the others to zero and trains what it kept a second time, as long as the first. What it kept never
changes again. Task t is answered by the weights of the tasks up to it:

    f_t(x) = f(theta * 1[owner <= t], x)        theta <- theta + delta * 1[owner == stage]

so later tasks cannot change it, whatever the optimizer (the authors zero gradients, which holds under plain SGD alone).
As in the paper, biases and norm parameters belong to the first task, and a task's own outputs are not pruned. Our
reading: outputs that several tasks share (domain- and class-incremental streams) are packed like any other layer.
"""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from clrun.strategy import Batch, HealthRows, Knobs, Network, Pool, Strategy, TaskTables, format_value


class PackNet(Strategy):
    """PackNet.

    Its state is the owner of every parameter, 2 P bytes, and the number of tasks learnt. The owner of a free weight is
    the next task. Batches must be of one task each, as the batches of this method's stream are.
    """

    phases: ClassVar[tuple[str, ...]] = ("train", "retrain")

    class Hyper(NamedTuple):
        keep: Tensor  # () share of a layer's free weights that a task keeps

    class State(NamedTuple):
        owner: Tensor  # (P,) int16: the task, from 0, that a parameter belongs to
        learnt: Tensor  # () int64: the number of tasks learnt

    @classmethod
    def incompatibility(cls, network: Network, optimizer: str, knobs: Knobs) -> str | None:
        if [*network.layers] == ["head"]:
            return f"it shares out the weights of hidden layers, and this network has none; {network.no_taps}."
        if network.statistics():
            return (
                "batch norm keeps one set of running statistics, which later tasks overwrite and old ones would be "
                f"answered with; {network.no_statistics}."
            )
        return None

    def init(self, theta: Tensor) -> State:
        owner = torch.zeros_like(theta, dtype=torch.int16)
        return self.State(owner, torch.zeros((), dtype=torch.long).to(theta.device))

    def logits(self, theta: Tensor, state: State, hp: Hyper, x: Tensor, t: Tensor) -> Tensor:
        """Return f(theta * 1[owner <= t], x), with the t of the first sample."""
        return self.net(torch.where(state.owner <= t[0], theta, 0), x)

    def restrict(self, delta: Tensor, g: Tensor, theta: Tensor, state: State, hp: Hyper, batch: Batch) -> Tensor:
        """Return delta * 1[owner == stage]."""
        return torch.where(state.owner == batch.stage, delta, 0)

    def after_phase(self, phase: str, theta: Tensor, state: State, hp: Hyper, pool: Pool) -> tuple[Tensor, State]:
        """Return theta with pruned weights set to 0, and the state with their next owner."""
        if phase == "retrain":
            return theta, state
        pieces, owners = self.net.layout.view(theta), self.net.layout.view(state.owner)
        released = {
            name: self.released(name, weight, owners[name] == pool.stage, hp, pool) for name, weight in pieces.items()
        }
        passed_on = self.net.layout.flat({name: mask for name, (mask, _) in released.items()})
        pruned = self.net.layout.flat({name: mask for name, (_, mask) in released.items()})
        return torch.where(pruned, 0, theta), self.State(state.owner + passed_on, pool.stage + 1)

    def adopt(self, theta: Tensor, state: State, hp: Hyper, added: Tensor, learnt: Tensor, tables: TaskTables) -> State:
        """Return the state in which the next task owns what is new: its outputs."""
        return state._replace(owner=torch.where(added, learnt.to(state.owner.dtype), state.owner))

    def released(self, name: str, weight: Tensor, trained: Tensor, hp: Hyper, pool: Pool) -> tuple[Tensor, Tensor]:
        """Return masks of the entries of one parameter that pass on to the next task, and of those set to zero.

        `trained` is the mask of the entries that the task trained. Masks have the shape of `weight`.
        """
        none = torch.zeros_like(trained)
        of_other_outputs, candidates = none, trained
        if name.startswith("head."):
            answers, alone = (mask.view(-1, *[1] * (weight.dim() - 1)) for mask in task_outputs(pool))
            of_other_outputs, candidates = trained & ~answers, trained & answers & ~alone
        if not self.is_packed(name):
            return of_other_outputs, none
        pruned = candidates & ~largest(weight.abs(), candidates, hp.keep)
        return pruned | of_other_outputs, pruned

    def is_packed(self, name: str) -> bool:
        """Return whether a parameter is shared out among tasks: the weight of a linear layer or a convolution."""
        layer, _, parameter = name.rpartition(".")
        return parameter == "weight" and isinstance(self.net.network.layers[layer], nn.Linear | nn.Conv2d)

    def health(self, state: State, hp: Hyper) -> dict[str, Tensor]:
        hidden = self.net.layout.where(lambda name: self.is_packed(name) and not name.startswith("head."), state.owner)
        taken = (hidden & (state.owner == state.learnt - 1)).sum()
        free = (hidden & (state.owner >= state.learnt)).sum()
        return {"taken_share": taken / hidden.sum(), "free_share": free / hidden.sum()}

    @classmethod
    def warnings(cls, health: HealthRows, knobs: Knobs) -> list[str]:
        keep = f"at keep={format_value(knobs['keep'])}"
        full = [row["task"] for row in health[:-1] if row["free_share"] == 0]
        if full:
            return [f"{keep} no weight was free after task {full[0]:g}: later tasks trained nothing but their outputs"]
        if any(row["taken_share"] == 0 for row in health):
            return [f"{keep} a task kept no weight, so there was nothing that answers it; type a larger keep"]
        return []


def task_outputs(pool: Pool) -> tuple[Tensor, Tensor]:
    """Return masks (C,) bool of the outputs that answer in the pool's task, and of those that answer in no other."""
    answers = pool.tables.active.diagonal()  # (C, T): of each task when it is learnt
    of_task = answers.gather(1, pool.stage.expand(len(answers), 1))[:, 0]
    return of_task, of_task & (answers.sum(1) == 1)


def largest(score: Tensor, candidates: Tensor, share: Tensor) -> Tensor:
    """Return a mask of the `share` of the candidates whose score (>= 0) is largest; of equal ones the first."""
    order = torch.where(candidates, score, -1).flatten().argsort(descending=True, stable=True)
    rank = order.argsort().view(score.shape)
    return candidates & (rank < (share * candidates.sum()).round())
