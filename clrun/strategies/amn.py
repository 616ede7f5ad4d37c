"""Adversarial memory units over EWC (Wen & Itti 2018, arXiv 1805.07441; 2019, arXiv 1906.10528).

For every task t and hidden layer l of K units, H memory units M in R^H and their way into the layer, W in R^(H x K):

    h_l = relu(A_l h_{l-1} + b_l + M[t,l] W[t,l])          in a conv net one number a channel
    M[t,l] <- M[t,l] - eps sign(dL/dM[t,l])          direction=beneficial; + for adversarial
    L = L_t + EWC's pull on the shared weights; W[t,l] by the optimiser

so a task is answered by the shared weights and its own units, and must be named at test.

Quoted from the abstracts: "We use adversarial subspaces from previous tasks to enable learning of new tasks with less
interference" (2018, there with EWC); "task-dependent memory (biasing) units", trained in "the most beneficial
directions", "in a manner inspired by recent work on adversarial examples" (2019). From the authors' later code of that
layer: M is born zero, W uniform in +-1/sqrt(H), the product is added right after the convolution, M moves by the sign
of its gradient, W by its plain gradient. (Their step is the learning rate times their epsilon, 0.2; here eps is the
whole step, under any optimiser. They add to transposed axes; here to channels.)

Our reading, as neither paper's method section was at hand: units at every hidden layer, or at every block's end;
EWC's form and strength; old units rest while a new task trains; direction=adversarial, which follows the 2018 title to
the letter and raises the loss; and memory=class, for "the essence of each class": a task's units are the sum of one set
for each of its classes, and the set of class c moves along the gradient of -log p(c|x) over the samples of c alone, a
targeted step towards c.

Controls: direction=gradient moves the same units by plain descent, M - eps dL/dM; direction=random never moves them,
they are born +eps or -eps by chance, and only W learns.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from clrun.strategies.ewc import EWC
from clrun.strategy import cross_entropy

STEPS: dict[str, Callable[[Tensor], Tensor]] = {
    "beneficial": lambda g: -g.sign(),
    "adversarial": lambda g: g.sign(),
    "gradient": lambda g: -g,
    "random": torch.zeros_like,
}


@dataclass(frozen=True)
class AMN(EWC):
    """State: EWC's. theta gains H (1 + K) floats a task and layer, or H (C + K) with C outputs where memory=class."""

    reads_once: ClassVar[bool] = True

    direction: str = "beneficial"
    units: int = 50
    memory: str = "task"

    class Hyper(NamedTuple):
        lambda_: Tensor  # () of EWC
        gamma: Tensor  # () of EWC
        eps: Tensor  # () a step of a memory unit

    @classmethod
    def incompatibility(cls, network, optimizer, knobs):
        if not network.taps:
            return "its units push hidden layers, and this network has none; type model.widths=[100,100]."
        if network.statistics():
            return (
                "batch norm keeps one set of running statistics, and a task's units move what it sees, so that old "
                "tasks would be answered with those of the newest; type model.norm=group."
            )
        return super().incompatibility(network, optimizer, knobs)

    @classmethod
    def trainables(cls, network, tasks, knobs):
        H, sets = knobs["units"], network.layers["head"].out_features if knobs["memory"] == "class" else 1
        layers = [*enumerate(network.widths)]
        birth = knobs["eps"] if knobs["direction"] == "random" else 0.0
        memory = {f"memory.{i}": birth * torch.randn(tasks, sets, H).sign() for i, _ in layers}
        return memory | {f"way.{i}": torch.empty(tasks, H, K).uniform_(-(H**-0.5), H**-0.5) for i, K in layers}

    # ------------------------------------------------------------ the network and its memory

    def pushes(self, theta: Tensor) -> list[tuple[Tensor, Tensor]]:
        """M (T, sets, H) and W (T, H, K) of every layer."""
        pieces = self.net.layout.view(theta)
        return [(pieces[f"memory.{i}"], pieces[f"way.{i}"]) for i in range(len(self.net.network.widths))]

    def pushed(self, theta: Tensor, x: Tensor, pushes: Sequence[Tensor]) -> Tensor:
        """pushes: (B, K) a layer."""
        return self.net(theta, x, before=lambda i, z: z + pushes[i].view(*z.shape[:2], *[1] * (z.dim() - 2)))

    def logits(self, theta, state, hp, x, t):
        return self.pushed(theta, x, [(M.sum(1, keepdim=True) @ W)[t, 0] for M, W in self.pushes(theta)])

    def loss(self, theta, state, hp, batch):
        push = self.push_by_class if self.memory == "class" else self.push_by_task
        pushes = [push(M, W, batch) for M, W in self.pushes(theta)]
        largest = torch.cat([M.flatten() for M, _ in self.pushes(theta)]).abs().max()
        push_rms = batch.mean(torch.cat(pushes, 1).square().mean(1)).sqrt()
        aux = {"memory_max": largest.detach(), "push_rms": push_rms.detach()}
        return cross_entropy(self.pushed(theta, batch.x, pushes), batch), aux

    @staticmethod
    def push_by_task(M: Tensor, W: Tensor, batch: Any) -> Tensor:
        return (M @ W)[batch.t, 0]

    @staticmethod
    def push_by_class(M: Tensor, W: Tensor, batch: Any) -> Tensor:
        """The same sum over classes for every sample, but a sample moves the set of its own class alone."""
        of_own = ((M - M.detach()) @ W.detach())[batch.t, batch.y]  # zeros that have a gradient
        return (M.detach().sum(1, keepdim=True) @ W)[batch.t, 0] + of_own

    # ------------------------------------------------------------ its steps

    def restrict(self, delta, g, theta, state, hp, batch):
        """Other tasks' units rest, whatever the optimiser keeps in motion or lets decay."""
        steps, slopes = self.net.layout.view(delta), self.net.layout.view(g)
        steps |= {name: hp.eps * STEPS[self.direction](slopes[name]) for name in steps if is_memory(name)}
        now = torch.arange(self.data.tasks, device=theta.device)[:, None, None] == batch.stage
        steps |= {name: torch.where(now, steps[name], 0) for name in steps if is_added(name)}
        return self.net.layout.flat(steps)

    @classmethod
    def warnings(cls, health: Sequence[Mapping[str, float]], knobs: Mapping[str, Any]) -> list[str]:
        idle = knobs["eps"] > 0 and any(row["memory_max"] == 0 for row in health)
        still = ["the memory units never left zero, so they did nothing"] if idle else []
        return still + [f"of the EWC in it: {text}" for text in super().warnings(health, knobs)]


def is_memory(name: str) -> bool:
    return name.startswith("memory.")


def is_added(name: str) -> bool:
    return name.startswith(("memory.", "way."))
