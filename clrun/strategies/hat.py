"""Hard attention to the task (Serra et al. 2018).

Every task has a gate for every unit (in a conv net: channel), from an embedding e_l[t] of its own:

    h_l <- a_l h_l,   a_l = sigmoid(s e_l[t])          s from 1/smax towards smax within each epoch (eqs. 1, 4)
    used_l = max over the tasks learnt of a_l          (eq. 2)
    theta_l,ij <- theta_l,ij + delta_l,ij (1 - min(used_l,i, used_l-1,j))          (eq. 3)
    L = L_t + lambda sum_l,i a_l,i (1 - used_l,i) / sum_l,i (1 - used_l,i)          (eqs. 6, 7)
    dL/de <- dL/de smax (cosh(s e) + 1) / (s (cosh(e) + 1)),   |e| <= 6          (eq. 5)

Inputs count as used. So do the outputs of tasks learnt (our reading, which covers outputs that tasks share).

Exactness. The authors mask gradients, which holds under plain SGD alone; the step is masked here. They answer with
sigmoid(smax e), and where that lies strictly between 0 and 1 the factor 1 - min(used, used) does too, so that weights
under such gates drift, and old answers with them. With gates=binary (the default, our reading) a task is answered, and
remembered, by the limit 1[e > 0]: then whatever reaches an old task's answer has a factor of exactly 0, and everything
else a gate of exactly 0. gates=sigmoid is the authors'.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clrun.data.stream import Batch
from clrun.strategy import Strategy, cross_entropy, gradient_of

REACH = 6.0  # of an embedding


COSH = 50.0  # beyond, cosh is taken to be flat


@dataclass(frozen=True)
class HAT(Strategy):
    """State: for every unit, how much the tasks learnt use it. theta gains an embedding a task and unit."""

    gates: str = "binary"

    class Hyper(NamedTuple):
        lambda_: Tensor  # () of the pull to few gates
        smax: Tensor  # () the sharpest sigmoid

    class State(NamedTuple):
        used: tuple[Tensor, ...]  # (width,) each, a layer

    @classmethod
    def incompatibility(cls, network, optimizer, knobs):
        if not network.taps:
            return "it gates hidden layers, and this network has none; type model.widths=[100,100]."
        if [*network.layers] != [*network.taps, "head"]:
            return (
                "its rule is for layers in a chain; a residual network has inner channels without a gate, and its "
                "norms mix gated channels with free ones, so old answers would change; type model=mlp or model=cnn."
            )
        return None

    @classmethod
    def trainables(cls, network, tasks, knobs):
        return {f"gate.{i}": torch.randn(tasks, width) for i, width in enumerate(network.widths)}

    def init(self, theta):
        return self.State(tuple(theta.new_zeros(width) for width in self.net.network.widths))

    # ------------------------------------------------------------ the network under its gates

    def embeddings(self, theta: Tensor) -> list[Tensor]:
        """(T, width) a layer."""
        return [e for name, e in self.net.layout.view(theta).items() if is_gate(name)]

    def settled(self, theta: Tensor, hp: Hyper) -> list[Tensor]:
        """(T, width) a layer: the gates that answer."""
        if self.gates == "binary":
            return [(e > 0).to(e.dtype) for e in self.embeddings(theta)]
        return [(hp.smax * e).sigmoid() for e in self.embeddings(theta)]

    def gated(self, theta: Tensor, gates: Sequence[Tensor], x: Tensor, t: Tensor) -> Tensor:
        return self.net(theta, x, lambda i, h: h * gates[i][t].view(*h.shape[:2], *[1] * (h.dim() - 2)))

    def logits(self, theta, state, hp, x, t):
        return self.gated(theta, self.settled(theta, hp), x, t)

    # ------------------------------------------------------------ training

    def loss(self, theta, state, hp, batch):
        gates = [(sharpness(hp, batch) * e).sigmoid() for e in self.embeddings(theta)]
        fit = cross_entropy(self.gated(theta, gates, batch.x, batch.t), batch)
        now, free = torch.cat([row(a, batch.stage) for a in gates]), 1 - torch.cat(state.used)
        open_share = now @ free / free.sum().clamp(min=1)
        return fit + hp.lambda_ * open_share, {"open_share": open_share}

    def gradient(self, theta, state, hp, batch):
        g, loss, aux = gradient_of(self.loss, theta, state, hp, batch)
        s = sharpness(hp, batch)
        even = hp.smax / s * ((s * theta).clamp(-COSH, COSH).cosh() + 1) / (theta.clamp(-REACH, REACH).cosh() + 1)
        return torch.where(self.net.layout.where(is_gate, theta), g * even, g), loss, aux

    def restrict(self, delta, g, theta, state, hp, batch):
        free = self.net.layout.flat(self.freedom(state, batch))
        clamped = (theta + delta).clamp(-REACH, REACH) - theta
        delta = torch.where(self.net.layout.where(is_gate, theta), clamped, delta)
        return torch.where(free > 0, delta * free, 0)

    def freedom(self, state: State, batch: Batch) -> dict[str, Tensor]:
        """1 - min(used above, used below) for every entry of theta; of embeddings, 1 for the task's own."""
        shapes = self.net.layout.shapes
        free = {
            name: (torch.arange(shape[0], device=batch.stage.device) == batch.stage).to(state.used[0].dtype)[:, None]
            for name, shape in shapes.items()
            if is_gate(name)
        }
        below = state.used[0].new_ones(())
        for layer, used in zip(self.net.network.layers, (*state.used, answered(batch)), strict=True):
            shape = shapes[f"{layer}.weight"]
            inputs = below.repeat_interleave(shape[1] // below.numel())  # a channel is many inputs, once flattened
            least = torch.minimum(used[:, None], inputs)
            free[f"{layer}.weight"] = (1 - least).view(*least.shape, *[1] * (len(shape) - 2))
            free[f"{layer}.bias"] = 1 - used
            below = used
        return free

    def after_phase(self, phase, theta, state, hp, pool):
        now = [row(a, pool.stage) for a in self.settled(theta, hp)]
        return theta, self.State(tuple(torch.maximum(u, a) for u, a in zip(state.used, now, strict=True)))

    # ------------------------------------------------------------ what happened

    def health(self, state, hp):
        used = torch.cat(state.used)
        return {"used_share": used.mean(), "undecided_share": (used * (1 - used) > 0).to(used.dtype).mean()}

    @classmethod
    def warnings(cls, health: Sequence[Mapping[str, float]], knobs: Mapping[str, Any]) -> list[str]:
        full = [row["task"] for row in health[:-1] if row["used_share"] >= 1]
        if full:
            return [
                f"at lambda={knobs['lambda']:g} every unit was in use after task {full[0]:g}: later tasks trained "
                "nothing but their gates and outputs; type a larger lambda or a wider network"
            ]
        if health and health[-1]["used_share"] < 1e-6:
            return [f"at lambda={knobs['lambda']:g} no gate opened, so no unit was used; type a smaller lambda"]
        return []


def is_gate(name: str) -> bool:
    return name.startswith("gate.")


def sharpness(hp: HAT.Hyper, batch: Batch) -> Tensor:
    """s ()."""
    return 1 / hp.smax + (hp.smax - 1 / hp.smax) * batch.progress.to(hp.smax.dtype)


def row(table: Tensor, number: Tensor) -> Tensor:
    """table (T, width), number () -> (width,)."""
    return table[number[None]][0]


def answered(batch: Batch) -> Tensor:
    """(C,) 1 for the outputs that answered in a task learnt before."""
    as_learnt = batch.tables.active.diagonal()  # (C, T)
    past = torch.arange(as_learnt.shape[1], device=as_learnt.device) < batch.stage
    return (as_learnt & past).any(1).to(batch.x.dtype)
