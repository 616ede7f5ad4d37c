"""Gradient projection memory, GPM (Saha, Garg & Roy 2021): steps leave what layers computed for old tasks as it is.

The output of a layer is W r for its inputs r. A change of W that is orthogonal to the inputs of old tasks changes no
output for them. After a task, the main directions of the inputs of every layer are added to the memory M of the layer:

    R: inputs of `samples` samples, in columns      R' = R - M M^T R = U S V^T      (eqs. 5, 8 and 9)
    M <- [M, U_1 ... U_k]      the least k for which |R|^2 - |R'|^2 + S_1^2 + ... + S_k^2 >= threshold |R|^2
    W <- W + delta (I - M M^T)      delta: the step of the optimizer

The authors project the gradient of plain SGD; here the step is projected, which is the same for SGD, and holds with
momentum, Adam and weight decay too. There is one threshold for all layers and tasks; in the authors' code each layer
has its own, such as .95, .99 and .99 for Permuted MNIST, and after the first task one direction fewer is taken than
eq. 5 says. Of a convolution, r is what one position of the kernel sees. A bias is the weight of an input that is always
1 (our reading; their networks have none). In the output layer the rows of outputs that answered before are projected,
and new ones are free. Norms are trained by the first task alone. At threshold 0 the memory stays empty, nothing is
projected and norms go on being trained: this is finetuning. In a stack it is so to the last bit; a run that is alone on
a CPU takes delta as (theta + delta) - theta, which rounds where the step is larger than the weight.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clrun.strategy import (
    Batch,
    BatchNormMode,
    HealthRows,
    Knobs,
    Network,
    Pool,
    Strategy,
    Weights,
    Window,
    format_value,
)

# Samples whose inputs are computed at once.
CHUNK_SAMPLES = 64


def is_projected(layer: nn.Module) -> bool:
    """Return whether the inputs of a layer have a memory: a linear layer, or a convolution of all channels."""
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)


class InputWeights(Weights):
    """Weights that append the inputs (n, in) of every projected layer to `seen`."""

    def __init__(
        self,
        pieces: Mapping[str, Tensor],
        mode: BatchNormMode,
        layers: Mapping[str, nn.Module],
        seen: dict[str, Tensor],
    ):
        super().__init__(pieces, mode)
        self.layers, self.seen = layers, seen

    def forward_hook(self, name: str, x: Tensor, z: Tensor, window: Window | None = None) -> Tensor:
        if name in self.layers and is_projected(self.layers[name]):
            self.seen[name] = self.vectors(self.layers[name], x, window)
        return z

    @staticmethod
    def vectors(layer: nn.Module, x: Tensor, window: Window | None) -> Tensor:
        """Return the inputs (B, positions, in) of a layer for x (B, ...)."""
        if isinstance(layer, nn.Conv2d):
            assert window is not None  # a convolution states it
            return F.unfold(x, layer.weight.shape[2:], window.dilation, window.padding, window.stride).mT
        return x.reshape(len(x), -1, x.shape[-1])


@dataclass(frozen=True)
class GPM(Strategy):
    """Gradient projection memory.

    Its state is M M^T of every layer, of as many numbers as the square of its inputs, however many tasks there are.
    `samples` is the number of samples whose inputs are looked at after a task.
    """

    samples: int = 300

    class Hyper(NamedTuple):
        threshold: Tensor  # () share of the inputs' squared norm that the memory holds

    class State(NamedTuple):
        projections: dict[str, Tensor]  # {layer: (in, in)} M M^T; with an input more for the bias
        learnt: Tensor  # () int64: the number of tasks learnt

    @classmethod
    def incompatibility(cls, network: Network, optimizer: str, knobs: Knobs) -> str | None:
        if network.statistics():
            return (
                "batch norm keeps one set of running statistics, which later tasks overwrite and old ones would be "
                f"answered with; {network.no_statistics}."
            )
        return None

    def init(self, theta: Tensor) -> State:
        pieces = self.net.layout.view(theta)
        sizes = {name: self.matrix(pieces, name).shape[1] for name in self.projected_layers}
        learnt = torch.zeros((), dtype=torch.long, device=theta.device)
        return self.State({name: theta.new_zeros(size, size) for name, size in sizes.items()}, learnt)

    @property
    def projected_layers(self) -> list[str]:
        """The names of the layers that have a memory and whose weight is trained."""
        layers, shapes = self.net.network.layers, self.net.layout.shapes
        return [name for name, layer in layers.items() if is_projected(layer) and f"{name}.weight" in shapes]

    @staticmethod
    def matrix(pieces: Mapping[str, Tensor], name: str) -> Tensor:
        """Return weight and bias of a layer as one matrix (out, in), the bias as its last column."""
        weight, bias = pieces[f"{name}.weight"].flatten(1), pieces.get(f"{name}.bias")
        return weight if bias is None else torch.cat([weight, bias[:, None]], 1)

    def restrict(self, delta: Tensor, g: Tensor, theta: Tensor, state: State, hp: Hyper, batch: Batch) -> Tensor:
        """Return the step delta (P,) times I - M M^T for every layer, and 0 for norms once a memory holds something.

        A layer whose memory is empty takes its part of delta as it is, since x - 0 is x to the last bit. After a task
        the first layer's memory holds something unless the threshold is 0: then that of no layer does.
        """
        pieces = self.net.layout.view(delta)
        held = state.projections[self.projected_layers[0]].diagonal().any()  # M M^T is 0 where its diagonal is
        changed = {name: torch.where(held, 0, piece) for name, piece in pieces.items()}
        answered = learnt_outputs(batch)
        for name in self.projected_layers:
            step = self.matrix(pieces, name)
            projected = step - step @ state.projections[name]
            if name == "head":
                projected = torch.where(answered[:, None], projected, step)
            shape = pieces[f"{name}.weight"].shape
            changed[f"{name}.weight"] = projected[:, : shape[1:].numel()].reshape(shape)
            if f"{name}.bias" in pieces:
                changed[f"{name}.bias"] = projected[:, -1]
        return self.net.layout.flat(changed)

    def after_phase(self, phase: str, theta: Tensor, state: State, hp: Hyper, pool: Pool) -> tuple[Tensor, State]:
        """Return theta, and the state with the main directions of the task's inputs in every memory."""
        inputs = self.inputs(theta, pool.first(self.samples))
        grown = {
            name: grown_projection(projection, inputs[name], hp.threshold)
            for name, projection in state.projections.items()
        }
        return theta, self.State(grown, pool.stage + 1)

    def inputs(self, theta: Tensor, pool: Pool) -> dict[str, Tensor]:
        """Return the inputs (n, in) in float64 of every layer with a memory; rows of zeros stand for no sample."""
        chunks: dict[str, list[Tensor]] = {name: [] for name in self.projected_layers}
        for batch in self.data.chunks(pool, self.data.share(CHUNK_SAMPLES)):
            seen: dict[str, Tensor] = {}

            def reader(pieces: Mapping[str, Tensor], mode: BatchNormMode, seen: dict[str, Tensor] = seen) -> Weights:
                return InputWeights(pieces, mode, self.net.network.layers, seen)

            self.net.read_by(reader, theta, batch.x)
            for name, vectors in chunks.items():
                r = seen[name].double()
                if f"{name}.bias" in self.net.layout.shapes:
                    r = torch.cat([r, torch.ones_like(r[..., :1])], -1)
                vectors.append((r * batch.weight[:, None, None]).flatten(0, 1))
        return {name: torch.cat(vectors) for name, vectors in chunks.items()}

    def health(self, state: State, hp: Hyper) -> dict[str, Tensor]:
        taken = torch.stack([p.diagonal().mean() for p in state.projections.values()])
        return {"memory_share": taken.mean(), "fullest_memory": taken.max(), "emptiest_memory": taken.min()}

    @classmethod
    def warnings(cls, health: HealthRows, knobs: Knobs) -> list[str]:
        threshold = f"at threshold={format_value(knobs['threshold'])}"
        if len(health) > 1 and all(row["fullest_memory"] == 0 for row in health):
            return [f"{threshold} no direction entered GPM's memory, so it did nothing: this is finetuning"]
        full = [row["task"] for row in health[:-1] if row["emptiest_memory"] >= 1 - 1e-6]
        if full:
            when = f"after task {full[0]:g}"
            return [f"{threshold} the memory held every direction {when}: later tasks trained no hidden layer"]
        return []


def grown_projection(projection: Tensor, inputs: Tensor, threshold: Tensor) -> Tensor:
    """Return M M^T (in, in) with the main directions of inputs (n, in) that the memory lacks (eqs. 5 and 9)."""
    there = inputs.square().sum().isfinite() & projection.isfinite().all()
    inputs = torch.where(there, inputs, 0)  # a matrix that is not finite raises an error, in a stack for all runs
    known = torch.where(there, projection, 0).to(inputs.dtype)
    rest = inputs - inputs @ known
    energy, directions = principal(rest)
    total = inputs.square().sum()
    held_before = (total - energy.sum() + energy.cumsum(0) - energy).clamp(min=0)  # with all directions before this one
    enough = total * threshold
    needed = (held_before < enough) & (energy > 1e-12 * total)
    chosen = directions * needed
    return torch.where(there, known + chosen @ chosen.mT, torch.nan).to(projection.dtype)


def principal(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Return the squared singular values (k,), largest first, of vectors (n, in), and their directions (in, k).

    k is the smaller of n and in: the smaller of the two products is decomposed.
    """
    n, size = vectors.shape
    if size <= n:
        energy, directions = torch.linalg.eigh(vectors.mT @ vectors)
        return energy.flip(0).clamp(min=0), directions.flip(1)
    energy, sides = torch.linalg.eigh(vectors @ vectors.mT)
    energy = energy.flip(0).clamp(min=0)
    tiny = torch.finfo(energy.dtype).tiny
    return energy, vectors.mT @ sides.flip(1) / energy.clamp(min=tiny).sqrt()


def learnt_outputs(batch: Batch) -> Tensor:
    """Return the outputs (C,) bool that answered in a task learnt before."""
    when_learnt = batch.tables.active.diagonal()  # (C, T)
    past = torch.arange(when_learnt.shape[1], device=when_learnt.device) < batch.stage
    return (when_learnt & past).any(1)
