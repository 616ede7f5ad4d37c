"""PackNet (Mallya & Lazebnik 2018): several networks packed into one set of weights.

A task trains every weight that is still free, keeps the share `keep` of them that is largest in magnitude, layer by
layer, sets the others to zero and trains what it kept a second time, as long as the first. What it kept never moves
again. Task t is answered by the weights of the tasks up to it:

    f_t(x) = f(theta * 1[owner <= t], x)        theta <- theta + delta * 1[owner == stage]

so later tasks cannot change it, whatever the optimiser (the authors zero gradients, which holds under plain SGD alone).
As in the paper, biases and norm parameters belong to the first task, and a task's own outputs are not pruned. Our
reading: outputs that several tasks share (domain- and class-incremental streams) are packed like any other layer.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from clrun.data.stream import Pool
from clrun.strategy import Strategy


class PackNet(Strategy):
    """State: the owner of every parameter, 2 bytes each. A free weight is owned by the task that comes next."""

    phases = ("train", "retrain")

    class Hyper(NamedTuple):
        keep: Tensor  # () share of the free weights of a layer that a task takes for good

    class State(NamedTuple):
        owner: Tensor  # (P,) int16
        learnt: Tensor  # () int64: tasks

    @classmethod
    def incompatibility(cls, network, optimizer, knobs):
        if not network.taps:
            return "it shares out the weights of hidden layers, and this network has none; type model.widths=[100,100]."
        if any(isinstance(layer, nn.BatchNorm2d) for layer in network.layers.values()):
            return (
                "batch norm keeps one set of running statistics, which later tasks overwrite and old ones would be "
                "answered with; type model.norm=group."
            )
        return None

    def init(self, theta):
        owner = torch.zeros_like(theta, dtype=torch.int16)
        return self.State(owner, torch.zeros((), dtype=torch.long).to(theta.device))

    def logits(self, theta, state, hp, x, t):
        """All of t are one task: every batch of this method's stream is."""
        return self.net(torch.where(state.owner <= t[0], theta, 0), x)

    def restrict(self, delta, g, theta, state, hp, batch):
        return torch.where(state.owner == batch.stage, delta, 0)

    def after_phase(self, phase, theta, state, hp, pool):
        if phase == "retrain":
            return theta, state
        pieces, owners = self.net.layout.view(theta), self.net.layout.view(state.owner)
        fates = {name: self.fate(name, w, owners[name] == pool.stage, hp, pool) for name, w in pieces.items()}
        passed, pruned = (self.net.layout.flat({name: fate[i] for name, fate in fates.items()}) for i in (0, 1))
        return torch.where(pruned, 0, theta), self.State(state.owner + passed, pool.stage + 1)

    def fate(self, name: str, w: Tensor, mine: Tensor, hp: Hyper, pool: Pool) -> tuple[Tensor, Tensor]:
        """Of one leaf's entries that are the task's to train (`mine`): passed on to the next task, and set to zero."""
        nothing, others = mine & False, mine & False
        candidates = mine
        if name.startswith("head."):
            answers, alone = (rows.view(-1, *[1] * (w.dim() - 1)) for rows in outputs(pool))
            others, candidates = mine & ~answers, mine & answers & ~alone
        if not self.packed(name):
            return others, nothing
        pruned = candidates & ~largest(w.abs(), candidates, hp.keep)
        return pruned | others, pruned

    def packed(self, name: str) -> bool:
        layer, _, kind = name.rpartition(".")
        return kind == "weight" and isinstance(self.net.network.layers[layer], nn.Linear | nn.Conv2d)

    def health(self, state, hp):
        hidden = self.net.layout.where(lambda name: self.packed(name) and not name.startswith("head."), state.owner)
        taken, free = ((hidden & mine).sum() for mine in (state.owner == state.learnt - 1, state.owner >= state.learnt))
        return {"taken_share": taken / hidden.sum(), "free_share": free / hidden.sum()}

    @classmethod
    def warnings(cls, health: Sequence[Mapping[str, float]], knobs: Mapping[str, Any]) -> list[str]:
        keep = f"at keep={knobs['keep']:g}"
        full = [row["task"] for row in health[:-1] if row["free_share"] == 0]
        if full:
            return [f"{keep} no weight was free after task {full[0]:g}: later tasks trained nothing but their outputs"]
        if any(row["taken_share"] == 0 for row in health):
            return [f"{keep} a task kept no weight, so there was nothing that answers it; type a larger keep"]
        return []


def outputs(pool: Pool) -> tuple[Tensor, Tensor]:
    """(C,) bool: the outputs that answer in the pool's task; those of them that answer in no other."""
    answers = pool.tables.active.diagonal()  # (C, T): as each task is learnt
    now = answers.gather(1, pool.stage.expand(len(answers), 1))[:, 0]
    return now, now & (answers.sum(1) == 1)


def largest(score: Tensor, among: Tensor, share: Tensor) -> Tensor:
    """bool: the `share` of the entries in `among` whose score (>= 0) is largest; of equals the first."""
    order = torch.where(among, score, -1).flatten().argsort(descending=True, stable=True)
    rank = order.argsort().view(score.shape)
    return among & (rank < (share * among.sum()).round())
