"""Continual backpropagation (Dohare et al. 2024, "Loss of plasticity in deep continual learning", algorithm 1).

Every hidden unit i of layer l has a utility and an age, which counts steps:

    u_i <- decay u_i + (1 - decay) mean_batch |h_i| sum_k |w_ik|      w_ik: its weights into the next layer
    c_l <- c_l + replacement * (number of units of age above maturity)      if c_l > 1: c_l <- c_l - 1, and

the unit of least utility among those begins anew: its incoming weights are drawn again, its outgoing weights become 0,
its age and utility too. A new unit so changes no output, and is safe from being replaced until it is mature. A step
replaces one unit of a layer at most, also where c_l is above 2; what is left of c_l waits for later steps. Where more
than one unit of a layer comes due in a step, c_l grows without end, which a warning says. Of a convolution a unit is a
channel, and h_i its mean over positions.

Which unit is replaced in a step follows from utilities and ages before that step: the paper updates both first, so a
unit is replaced one step later here.

The authors draw anew from their initial distribution; here from a uniform one with the range that the layer's initial
weights had, and likewise for biases, which their code sets to 0. It divides utilities by 1 - decay^age, as Adam does
its moments; ours are as above. It also has a line by which the next layer's biases take over the mean output of a
replaced unit. This mean is set to 0 before, so that the line adds nothing (lop/algos/gnt.py), and it is left out. The
optimizer's state for what begins anew is as before training, except Adam's counter of steps, which all weights share.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from clrun.strategy import Aux, Batch, HealthRows, Knobs, Network, Strategy, cross_entropy, format_value, uniform

# c_l at the end above which a warning is given: it is 1 at most where a step replaces all that comes due.
WAITING = 2


class Layer(NamedTuple):
    """What continual backpropagation knows about the units of one hidden layer."""

    utility: Tensor  # (width,)
    age: Tensor  # (width,) steps since the unit began
    due: Tensor  # () c_l, the units that are due to be replaced
    range: Tensor  # (2,) largest absolute value of the layer's initial weights and biases


@dataclass(frozen=True)
class CBP(Strategy):
    """Continual backpropagation. Its state is two numbers for every hidden unit and three for every hidden layer."""

    class Hyper(NamedTuple):
        replacement: Tensor  # () share of the mature units that becomes due in a step
        decay: Tensor  # () of the utility
        maturity: Tensor  # () steps before a unit may be replaced

    class State(NamedTuple):
        layers: tuple[Layer, ...]
        replaced: Tensor  # () units that have been replaced

    @classmethod
    def incompatibility(cls, network: Network, optimizer: str, knobs: Knobs) -> str | None:
        if not network.taps:
            return f"it replaces units of hidden layers, and this network has none; {network.no_taps}."
        if [*network.layers] != [*network.taps, "head"]:
            return (
                "it sets the weights that leave a unit to zero, which is for layers in a chain without norms; in a "
                "residual network a channel has other ways out; type model=mlp or model=cnn without model.norm."
            )
        return None

    def init(self, theta: Tensor) -> State:
        pieces = self.net.layout.view(theta)
        layers = [self.new_layer(pieces, name) for name in self.net.network.taps]
        return self.State(tuple(layers), theta.new_zeros(()))

    @staticmethod
    def new_layer(pieces: Mapping[str, Tensor], name: str) -> Layer:
        """Return the units of a hidden layer before the first step."""
        weight, bias = pieces[f"{name}.weight"], pieces.get(f"{name}.bias")
        zeros = weight.new_zeros(len(weight))
        largest = [v.abs().max() if v is not None else zeros.sum() for v in (weight, bias)]
        return Layer(zeros, zeros, zeros.sum(), torch.stack(largest))

    def loss(self, theta: Tensor, state: State, hp: Hyper, batch: Batch) -> tuple[Tensor, Aux]:
        """Return the cross entropy; aux has mean |h_i| sum_k |w_ik| (width,) of every hidden layer."""
        activity: dict[int, Tensor] = {}

        def record(i: int, h: Tensor) -> Tensor:
            by_sample = h.detach().abs().flatten(2).mean(-1) if h.dim() > 2 else h.detach().abs()
            activity[i] = batch.mean_weight.to(h.dtype) @ by_sample
            return h

        fit = cross_entropy(self.net(theta, batch.x, record), batch)
        pieces = self.net.layout.view(theta.detach())
        contributions = {f"contribution.{i}": v * self.outgoing(pieces, i, len(v)) for i, v in activity.items()}
        return fit, contributions

    def outgoing(self, pieces: Mapping[str, Tensor], i: int, width: int) -> Tensor:
        """Return the sum (width,) of the absolute weights that leave each unit of hidden layer i."""
        return self.by_unit(pieces[f"{self.following(i)}.weight"], width).abs().sum((0, 2))

    def following(self, i: int) -> str:
        """Return the name of the layer after hidden layer i."""
        return [*self.net.network.layers][i + 1]

    @staticmethod
    def by_unit(weight: Tensor, width: int) -> Tensor:
        """Return the weights of a layer as (out, units of the layer before, inputs that a unit gives)."""
        return weight.reshape(len(weight), width, -1)

    def chosen(self, layer: Layer, hp: Hyper) -> tuple[Tensor, Tensor]:
        """Return which unit (width,) bool of a layer is replaced in this step, one at most, and c_l () after it."""
        mature = layer.age > hp.maturity
        due = layer.due + hp.replacement * mature.sum()
        now = (due > 1) & mature.any()
        least = torch.where(mature, layer.utility, torch.inf).argmin()
        one = torch.arange(len(mature), device=mature.device) == least
        return one & now, torch.where(now, due - 1, due)

    def renewal_due(self, state: State, hp: Hyper) -> Tensor:
        """Return whether a unit of any layer is replaced in this step."""
        return torch.stack([self.chosen(layer, hp)[0].any() for layer in state.layers]).any()

    def renew(self, theta: Tensor, state: State, hp: Hyper, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the weights into and out of the replaced units, and their new values."""
        pieces = self.net.layout.view(theta)
        random = self.net.layout.view(2 * uniform(batch.noise[:2, 0], len(theta)).to(theta.dtype) - 1)
        masks = {name: torch.zeros_like(piece, dtype=torch.bool) for name, piece in pieces.items()}
        values = {name: torch.zeros_like(piece) for name, piece in pieces.items()}
        for i, (name, layer) in enumerate(zip(self.net.network.taps, state.layers, strict=True)):
            unit, _ = self.chosen(layer, hp)
            for parameter, largest in zip(("weight", "bias"), layer.range, strict=True):
                key = f"{name}.{parameter}"
                if key in pieces:
                    here = unit.view(-1, *[1] * (pieces[key].dim() - 1))
                    values[key] = torch.where(here, largest * random[key], values[key])
                    masks[key] = masks[key] | here
            key = f"{self.following(i)}.weight"
            leaves = unit[None, :, None].expand_as(self.by_unit(pieces[key], len(unit))).reshape(pieces[key].shape)
            values[key], masks[key] = torch.where(leaves, 0, values[key]), masks[key] | leaves
        return self.net.layout.flat(masks), self.net.layout.flat(values)

    def after_step(self, state: State, hp: Hyper, batch: Batch, aux: Aux) -> State:
        """Return the state with utilities and ages after this step, those of the replaced units at 0."""
        layers, replaced = [], state.replaced
        for i, layer in enumerate(state.layers):
            unit, due = self.chosen(layer, hp)
            utility = hp.decay * layer.utility + (1 - hp.decay) * aux[f"contribution.{i}"]
            layers.append(Layer(torch.where(unit, 0, utility), torch.where(unit, 0, layer.age + 1), due, layer.range))
            replaced = replaced + unit.sum()
        return self.State(tuple(layers), replaced)

    def health(self, state: State, hp: Hyper) -> dict[str, Tensor]:
        utility = torch.cat([layer.utility for layer in state.layers])
        due = torch.stack([layer.due for layer in state.layers]).max()
        useless = (utility == 0).to(utility.dtype).mean()
        return {"replaced_units": state.replaced, "useless_share": useless, "most_units_due": due}

    @classmethod
    def warnings(cls, health: HealthRows, knobs: Knobs) -> list[str]:
        if knobs["replacement"] == 0 or not health:
            return []
        rate, last = f"at replacement={format_value(knobs['replacement'])}", health[-1]
        if last["replaced_units"] == 0:
            return [f"{rate} no unit was ever replaced: this is finetuning; type a larger one"]
        if last["most_units_due"] > WAITING:
            return [
                f"{rate} more units came due than the one of a layer that a step replaces, so that "
                f"{last['most_units_due']:.0f} of one layer were waiting at the end; type a smaller one"
            ]
        return []
