"""Context-dependent gating, XdG (Masse, Grant & Freedman 2018): every task uses its own random part of the units.

    h_l <- a_l[t] h_l      a_l[t] in {0, 1}, drawn once: `gated` of the units of layer l are 0 for task t

in hidden layers; of a convolution, channels are gated. Two tasks share (1 - gated) of the units that each has open, by
chance, and change each other's answers through these alone. The paper combines it with EWC or SI on what is shared;
here it is alone. Inputs and the output layer are not gated.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from clrun.strategy import HealthRows, Knobs, Network, Strategy, format_value


@dataclass(frozen=True)
class XdG(Strategy):
    """Context-dependent gating. Its state is a gate for every task and hidden unit, one byte each."""

    needs_boundaries: ClassVar[bool] = True  # the gates are those of the sample's task

    gated: float = 0.8

    class State(NamedTuple):
        gates: tuple[Tensor, ...]  # (T, width) bool of each hidden layer

    @classmethod
    def incompatibility(cls, network: Network, optimizer: str, knobs: Knobs) -> str | None:
        if not network.taps:
            return f"it gates hidden layers, and this network has none; {network.no_taps}."
        if network.statistics():
            return (
                "batch norm keeps one set of running statistics, those of the newest task's units, with which old "
                f"tasks would be answered; {network.no_statistics}."
            )
        return None

    def draws(self) -> dict[str, Tensor]:
        """Return the gates (T, width) bool of each hidden layer, with one unit open at least.

        They are drawn task by task, so that a task has the same gates however many tasks come after it.
        """
        widths = self.net.network.widths
        noise = torch.rand(self.data.tasks, sum(widths)).split(list(widths), 1)
        return {str(i): self.opened(of_layer) for i, of_layer in enumerate(noise)}

    def opened(self, noise: Tensor) -> Tensor:
        """Return gates (T, width) bool of one layer by noise (T, width): of every task, as many units are open."""
        width = noise.shape[1]
        open_units = max(1, width - round(self.gated * width))
        return noise.argsort(1).argsort(1) < open_units

    def init_drawn(self, theta: Tensor, drawn: Mapping[str, Tensor]) -> State:
        return self.State(tuple(drawn[str(i)] for i in range(len(self.net.network.widths))))

    def logits(self, theta: Tensor, state: State, hp: Any, x: Tensor, t: Tensor) -> Tensor:
        """Return the logits (B, outputs) with the hidden layers multiplied by the gates of tasks t."""

        def gate(i: int, h: Tensor) -> Tensor:
            return h * state.gates[i][t].to(h.dtype).view(*h.shape[:2], *[1] * (h.dim() - 2))

        return self.net(theta, x, gate)

    def health(self, state: State, hp: Any) -> dict[str, Tensor]:
        gates = torch.cat(state.gates, 1).to(torch.get_default_dtype())
        shared = gates @ gates.mT / gates.sum(1).clamp(min=1)
        others = ~torch.eye(len(gates), dtype=torch.bool, device=gates.device)
        overlap = torch.where(others, shared, 0).sum() / others.sum().clamp(min=1)
        return {"open_units_share": gates.mean(), "gate_overlap": overlap}

    @classmethod
    def warnings(cls, health: HealthRows, knobs: Knobs) -> list[str]:
        if len(health) < 2 or knobs["gated"] == 0 or any(row["gate_overlap"] < 1 for row in health):
            return []
        return [f"at gated={format_value(knobs['gated'])} all tasks have the same gates, so nothing is separated"]
