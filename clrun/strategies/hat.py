"""Hard attention to the task (Serra et al. 2018).

Every task t has a gate a_l for every unit of every hidden layer l (in a conv net: for every channel), from an
embedding e_l[t]:

    h_l <- a_l h_l,   a_l = sigmoid(s e_l[t])          s from 1/smax towards smax within each epoch (eqs. 1, 4)
    used_l = max over the tasks learnt of a_l          (eq. 2)
    theta_l,ij <- theta_l,ij + delta_l,ij (1 - min(used_l,i, used_l-1,j))          (eq. 3)
    L = L_t + lambda sum_l,i a_l,i (1 - used_l,i) / sum_l,i (1 - used_l,i)          (eqs. 6, 7)
    dL/de <- dL/de smax (cosh(s e) + 1) / (s (cosh(e) + 1)),   |e| <= 6          (eq. 5)

Inputs count as used. So do the outputs of tasks learnt (our interpretation, which covers outputs that tasks share).

Exactness. The authors mask gradients, which holds under plain SGD alone; here the step is masked. They answer with
sigmoid(smax e), and where that lies strictly between 0 and 1 the factor 1 - min(used, used) does too, so that weights
under such gates drift, and old answers with them. With gates=binary (the default, our interpretation) a task is
answered, and remembered, by the limit 1[e > 0]: then whatever reaches an old task's answer has a factor of exactly 0,
and everything else a gate of exactly 0. gates=sigmoid is the authors'.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from clrun.strategy import (
    Aux,
    Batch,
    HealthRows,
    Knobs,
    Network,
    Pool,
    Strategy,
    cross_entropy,
    format_value,
    gradient_of,
)

# The bound on the absolute value of an embedding.
EMBEDDING_BOUND = 6.0

# Arguments of cosh are clamped to this absolute value, against overflow.
COSH_BOUND = 50.0


@dataclass(frozen=True)
class HAT(Strategy):
    """Hard attention to the task.

    Its state is, for every unit, how much the tasks learnt use it: 4 bytes in float32. theta gains an embedding per
    task and unit. `gates` is "binary" or "sigmoid".
    """

    gates: str = "binary"

    class Hyper(NamedTuple):
        lambda_: Tensor  # () strength of the regularizer that keeps gates closed
        smax: Tensor  # () the largest factor s of the sigmoid

    class State(NamedTuple):
        used: tuple[Tensor, ...]  # (width,) of each hidden layer, in [0, 1]

    @classmethod
    def incompatibility(cls, network: Network, optimizer: str, knobs: Knobs) -> str | None:
        if not network.taps:
            return f"it gates hidden layers, and this network has none; {network.no_taps}."
        if [*network.layers] != [*network.taps, "head"]:
            return (
                "its rule is for layers in a chain without norms: shortcuts pass a gate by, and norms mix gated "
                "channels with free ones, so old answers would change; type model=mlp or model=cnn without model.norm, "
                "or leave both out of a network of your own."
            )
        return None

    @classmethod
    def trainables(cls, network: Network, tasks: int, knobs: Knobs) -> dict[str, Tensor]:
        return {f"gate.{i}": torch.randn(tasks, width) for i, width in enumerate(network.widths)}

    def init(self, theta: Tensor) -> State:
        return self.State(tuple(theta.new_zeros(width) for width in self.net.network.widths))

    # ---------------------------------------------------------------- the network with its gates

    def embeddings(self, theta: Tensor) -> list[Tensor]:
        """Return the embeddings (T, width) of each hidden layer."""
        return [e for name, e in self.net.layout.view(theta).items() if is_gate(name)]

    def final_gates(self, theta: Tensor, hp: Hyper) -> list[Tensor]:
        """Return the gates (T, width) of each hidden layer with which tasks are answered and remembered."""
        if self.gates == "binary":
            return [(e > 0).to(e.dtype) for e in self.embeddings(theta)]
        return [(hp.smax * e).sigmoid() for e in self.embeddings(theta)]

    def gated_logits(self, theta: Tensor, gates: Sequence[Tensor], x: Tensor, t: Tensor) -> Tensor:
        """Return the logits (B, outputs) of x with the hidden layers multiplied by the gates (T, width) of tasks t."""
        return self.net(theta, x, lambda i, h: h * gates[i][t].view(*h.shape[:2], *[1] * (h.dim() - 2)))

    def logits(self, theta: Tensor, state: State, hp: Hyper, x: Tensor, t: Tensor) -> Tensor:
        """Return the logits (B, outputs) with the final gates of tasks t."""
        return self.gated_logits(theta, self.final_gates(theta, hp), x, t)

    # ---------------------------------------------------------------- training

    def loss(self, theta: Tensor, state: State, hp: Hyper, batch: Batch) -> tuple[Tensor, Aux]:
        """Return L_t + lambda times the share of free units that the task's gates open (eqs. 6 and 7)."""
        gates = [(sharpness(hp, batch) * e).sigmoid() for e in self.embeddings(theta)]
        fit = cross_entropy(self.gated_logits(theta, gates, batch.x, batch.t), batch)
        of_task, free = torch.cat([row(a, batch.stage) for a in gates]), 1 - torch.cat(state.used)
        open_share = of_task @ free / free.sum().clamp(min=1)
        return fit + hp.lambda_ * open_share, {"open_share": open_share}

    def gradient(self, theta: Tensor, state: State, hp: Hyper, batch: Batch) -> tuple[Tensor, Tensor, Aux]:
        """Return the gradient with that of the embeddings compensated for the factor s (eq. 5)."""
        g, loss, aux = gradient_of(self.loss, theta, state, hp, batch)
        s = sharpness(hp, batch)
        numerator = (s * theta).clamp(-COSH_BOUND, COSH_BOUND).cosh() + 1
        factor = hp.smax / s * numerator / (theta.clamp(-EMBEDDING_BOUND, EMBEDDING_BOUND).cosh() + 1)
        return torch.where(self.net.layout.where(is_gate, theta), g * factor, g), loss, aux

    def restrict(self, delta: Tensor, g: Tensor, theta: Tensor, state: State, hp: Hyper, batch: Batch) -> Tensor:
        """Return the step times 1 - min(used, used) (eq. 3), with the embeddings kept in their bounds."""
        free = self.net.layout.flat(self.free_shares(state, batch))
        clamped = (theta + delta).clamp(-EMBEDDING_BOUND, EMBEDDING_BOUND) - theta
        delta = torch.where(self.net.layout.where(is_gate, theta), clamped, delta)
        return torch.where(free > 0, delta * free, 0)

    def free_shares(self, state: State, batch: Batch) -> dict[str, Tensor]:
        """Return 1 - min(used_l, used_l-1) for every parameter, by name.

        For embeddings it is 1 in the row of the present task and 0 in the others.
        """
        shapes = self.net.layout.shapes
        free = {
            name: (torch.arange(shape[0], device=batch.stage.device) == batch.stage).to(state.used[0].dtype)[:, None]
            for name, shape in shapes.items()
            if is_gate(name)
        }
        below = state.used[0].new_ones(())  # inputs count as used
        for layer, used in zip(self.net.network.layers, (*state.used, learnt_outputs(batch)), strict=True):
            shape = shapes[f"{layer}.weight"]
            inputs = below.repeat_interleave(shape[1] // below.numel())  # a flattened channel is several inputs
            least = torch.minimum(used[:, None], inputs)
            free[f"{layer}.weight"] = (1 - least).view(*least.shape, *[1] * (len(shape) - 2))
            free[f"{layer}.bias"] = 1 - used
            below = used
        return free

    def after_phase(self, phase: str, theta: Tensor, state: State, hp: Hyper, pool: Pool) -> tuple[Tensor, State]:
        """Return theta, and the state with the maximum of `used` and the task's gates (eq. 2)."""
        of_task = [row(a, pool.stage) for a in self.final_gates(theta, hp)]
        return theta, self.State(tuple(torch.maximum(u, a) for u, a in zip(state.used, of_task, strict=True)))

    # ---------------------------------------------------------------- reports

    def health(self, state: State, hp: Hyper) -> dict[str, Tensor]:
        used = torch.cat(state.used)
        return {"used_share": used.mean(), "undecided_share": (used * (1 - used) > 0).to(used.dtype).mean()}

    @classmethod
    def warnings(cls, health: HealthRows, knobs: Knobs) -> list[str]:
        strength = format_value(knobs["lambda"])
        full = [row["task"] for row in health[:-1] if row["used_share"] >= 1]
        if full:
            return [
                f"at lambda={strength} every unit was in use after task {full[0]:g}: later tasks trained nothing but "
                "their gates and outputs; type a larger lambda or a wider network"
            ]
        if health and health[-1]["used_share"] < 1e-6:
            return [f"at lambda={strength} no gate opened, so no unit was used; type a smaller lambda"]
        return []


def is_gate(name: str) -> bool:
    """Return whether a parameter is an embedding."""
    return name.startswith("gate.")


def sharpness(hp: HAT.Hyper, batch: Batch) -> Tensor:
    """Return s (), which grows linearly from 1/smax to smax within each epoch (eq. 4)."""
    return 1 / hp.smax + (hp.smax - 1 / hp.smax) * batch.progress.to(hp.smax.dtype)


def row(table: Tensor, number: Tensor) -> Tensor:
    """Return row `number` () of a table (T, width): (width,)."""
    return table[number[None]][0]


def learnt_outputs(batch: Batch) -> Tensor:
    """Return 1 for the outputs that answered in a task learnt before, else 0: (C,)."""
    when_learnt = batch.tables.active.diagonal()  # (C, T)
    past = torch.arange(when_learnt.shape[1], device=when_learnt.device) < batch.stage
    return (when_learnt & past).any(1).to(batch.x.dtype)
