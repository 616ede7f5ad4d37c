"""Adversarial memory units over EWC (Wen & Itti 2018, arXiv 1805.07441; 2019, arXiv 1906.10528).

Every task t has H memory units M in R^H for every hidden layer l of K units, and weights W in R^(H x K) from them into
the layer:

    h_l = relu(A_l h_{l-1} + b_l + M[t,l] W[t,l])          in a conv net one number per channel
    M[t,l] <- M[t,l] - eps sign(dL/dM[t,l])          direction=beneficial; + for adversarial
    L = L_t + EWC's penalty on the shared weights; W[t,l] by the optimizer

so a task is answered by the shared weights and its own units, and must be given at test time.

Quoted from the abstracts: "We use adversarial subspaces from previous tasks to enable learning of new tasks with less
interference" (2018, there with EWC); "task-dependent memory (biasing) units", trained in "the most beneficial
directions", "in a manner inspired by recent work on adversarial examples" (2019). From the authors' later code of that
layer: M is initially zero, W uniform in +-1/sqrt(H), the product is added right after the convolution, M moves by the
sign of its gradient, W by its plain gradient. (Their step is the learning rate times their epsilon, 0.2; here eps is
the whole step, under any optimizer. They add to transposed axes; here to channels.)

Our interpretation, as neither paper's method section was at hand: units at every hidden layer, or at every block's end;
EWC's form and strength; old units stay fixed while a new task trains; direction=adversarial, which follows the 2018
title to the letter and raises the loss; and memory=class, for "the essence of each class": a task's units are the sum
of one set for each of its classes, and the set of class c moves along the gradient of -log p(c|x) over the samples of c
alone, a targeted step towards c.

Controls: direction=gradient moves the same units by plain descent, M - eps dL/dM; direction=random never moves them,
they are initially +eps or -eps at random, and only W learns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from clrun.strategies.ewc import EWC
from clrun.strategy import Aux, Batch, Gaussian, HealthRows, Knobs, Network, cross_entropy

# The step of a memory unit, in units of eps, for its gradient g.
STEPS: dict[str, Callable[[Tensor], Tensor]] = {
    "beneficial": lambda g: -g.sign(),
    "adversarial": lambda g: g.sign(),
    "gradient": lambda g: -g,
    "random": torch.zeros_like,
}


@dataclass(frozen=True)
class AMN(EWC):
    """Adversarial memory units over EWC.

    Its state is that of EWC. theta gains H (1 + K) floats per task and hidden layer of K units, or H (C + K) with C
    outputs if memory=class. `direction` is one of `STEPS`, `units` is H, and `memory` is "task" or "class".
    """

    reads_once: ClassVar[bool] = True

    direction: str = "beneficial"
    units: int = 50
    memory: str = "task"

    class Hyper(NamedTuple):
        lambda_: Tensor  # () strength of EWC's penalty
        gamma: Tensor  # () decay in online EWC
        eps: Tensor  # () step of a memory unit

    @classmethod
    def incompatibility(cls, network: Network, optimizer: str, knobs: Knobs) -> str | None:
        if not network.taps:
            return f"its units push hidden layers, and this network has none; {network.no_taps}."
        if network.statistics():
            return (
                "batch norm keeps one set of running statistics, and a task's units move what it sees, so that old "
                f"tasks would be answered with those of the newest; {network.no_statistics}."
            )
        return super().incompatibility(network, optimizer, knobs)

    @classmethod
    def trainables(cls, network: Network, tasks: int, knobs: Knobs) -> dict[str, Tensor]:
        H, sets = knobs["units"], len(network.parameters()["head.weight"]) if knobs["memory"] == "class" else 1
        size = knobs["eps"] if knobs["direction"] == "random" else 0.0
        memory = {f"memory.{i}": size * torch.randn(tasks, sets, H).sign() for i in range(len(network.widths))}
        ways = {
            f"way.{i}": torch.empty(tasks, H, K).uniform_(-(H**-0.5), H**-0.5) for i, K in enumerate(network.widths)
        }
        return memory | ways

    # ---------------------------------------------------------------- the network with its memory

    def memories(self, theta: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return M (T, sets, H) and W (T, H, K) of each hidden layer."""
        pieces = self.net.layout.view(theta)
        return [(pieces[f"memory.{i}"], pieces[f"way.{i}"]) for i in range(len(self.net.network.widths))]

    def biased_logits(self, theta: Tensor, x: Tensor, biases: Sequence[Tensor]) -> Tensor:
        """Return the logits (B, outputs) of x with biases (B, K) of each sample added to each hidden layer."""
        return self.net(theta, x, before=lambda i, z: z + biases[i].view(*z.shape[:2], *[1] * (z.dim() - 2)))

    def logits(self, theta: Tensor, state: Gaussian, hp: Hyper, x: Tensor, t: Tensor) -> Tensor:
        """Return the logits (B, outputs) with the memory of tasks t."""
        return self.biased_logits(theta, x, [(M.sum(1, keepdim=True) @ W)[t, 0] for M, W in self.memories(theta)])

    def loss(self, theta: Tensor, state: Gaussian, hp: Hyper, batch: Batch) -> tuple[Tensor, Aux]:
        """Return the cross entropy with the memory of the batch's tasks; EWC's penalty is in `quadratic`."""
        bias = self.bias_by_class if self.memory == "class" else self.bias_by_task
        biases = [bias(M, W, batch) for M, W in self.memories(theta)]
        largest = torch.cat([M.flatten() for M, _ in self.memories(theta)]).abs().max()
        rms = batch.mean(torch.cat(biases, 1).square().mean(1)).sqrt()
        aux = {"memory_max": largest.detach(), "push_rms": rms.detach()}
        return cross_entropy(self.biased_logits(theta, batch.x, biases), batch), aux

    @staticmethod
    def bias_by_task(M: Tensor, W: Tensor, batch: Batch) -> Tensor:
        """Return M[t] W[t] (B, K) of each sample's task t."""
        return (M @ W)[batch.t, 0]

    @staticmethod
    def bias_by_class(M: Tensor, W: Tensor, batch: Batch) -> Tensor:
        """Return the sum over classes of M[t, c] W[t] (B, K), of which only the set of a sample's class has a gradient.

        The term `of_class` is zero in value and carries that gradient.
        """
        of_class = ((M - M.detach()) @ W.detach())[batch.t, batch.y]
        return (M.detach().sum(1, keepdim=True) @ W)[batch.t, 0] + of_class

    # ---------------------------------------------------------------- training

    def restrict(self, delta: Tensor, g: Tensor, theta: Tensor, state: Gaussian, hp: Hyper, batch: Batch) -> Tensor:
        """Return the step with eps times a `STEPS` entry for memory units, and 0 for units and ways of other tasks.

        Other tasks' units stay fixed whatever momentum or weight decay the optimizer has.
        """
        steps, gradients = self.net.layout.view(delta), self.net.layout.view(g)
        steps |= {name: hp.eps * STEPS[self.direction](gradients[name]) for name in steps if is_memory(name)}
        present = torch.arange(self.data.tasks, device=theta.device)[:, None, None] == batch.stage
        steps |= {name: torch.where(present, steps[name], 0) for name in steps if is_added(name)}
        return self.net.layout.flat(steps)

    @classmethod
    def warnings(cls, health: HealthRows, knobs: Knobs) -> list[str]:
        idle = knobs["eps"] > 0 and any(row["memory_max"] == 0 for row in health)
        of_memory = ["the memory units never left zero, so they did nothing"] if idle else []
        return of_memory + [f"of the EWC in it: {text}" for text in super().warnings(health, knobs)]


def is_memory(name: str) -> bool:
    """Return whether a parameter holds memory units M."""
    return name.startswith("memory.")


def is_added(name: str) -> bool:
    """Return whether a parameter holds memory units M or their weights W."""
    return name.startswith(("memory.", "way."))
