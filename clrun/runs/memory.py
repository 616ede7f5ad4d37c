"""How much of a device's memory a stack of runs needs, reckoned from shapes, before any of it is allocated.

    training       R (5 S + 10 P + samples of a step * floats of a sample + the numbers of a block's steps)
    consolidation  R (5 S + 6 P) + samples of a chunk * floats of a sample
    evaluation     R (3 S + 2 P + floats of a method's own answer) + samples of a chunk * floats of a sample

S is all that a run keeps (theta, the states of optimizer and strategy, statistics, an average), P is theta. The
factors are upper bounds of what tests/engine/test_memory.py counts: S once as it is, once as the point from which an
interrupted run goes on, once in the tensors that a graph writes, once as the result of a step and once as it was before
the graph was recorded; P for gradients, penalties and the parts of an optimizer's step. A chunk is shared by the R runs
(`Data.share`), the samples of a step are not. What libraries keep for themselves is not in it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from clrun.data.augmentation import copies_of
from clrun.data.batches import Data
from clrun.engine import hooks
from clrun.engine.blocks import BLOCK_STEPS
from clrun.engine.evaluation import CHUNK_SAMPLES, LEAST
from clrun.models import BatchNormMode, Layout, Net, Network, Weights, Window
from clrun.optimizers import Optimizer
from clrun.runs.build import AUTOCAST, choices, initialize, largest, largest_batch, optimizer_settings
from clrun.runs.prepare import data_without_images
from clrun.runs.prepared import Prepared
from clrun.runs.targets import named_class
from clrun.strategy import Strategy, Tree
from clrun.strategy.base import memories
from clrun.strategy.per_sample import CONV_SAMPLES, GPU_FACTOR, GRADIENT_FLOATS, LINEAR_SAMPLES

FLOAT = 4  # bytes

WINDOW = 9  # entries of the window of a convolution, where a layer does not say

STEP_BYTES = 160  # of a sample of a step in a block: numbers, weight and noise, as drawn and where a graph reads them

POOL_BYTES = 80  # of a sample of a task at its end: its number, weight and noise


@dataclass(frozen=True)
class MemoryNeed:
    """The bytes that a stack needs: of each run, and of what its runs share."""

    training: int
    consolidation: int
    evaluation: int
    chunk: int  # shared, while it consolidates
    evaluated: int  # shared, while it evaluates
    images: int  # shared, on the device for as long as the stack is there

    def of(self, runs: int) -> int:
        """Return the bytes of a stack of so many runs."""
        consolidation, evaluation = runs * self.consolidation + self.chunk, runs * self.evaluation + self.evaluated
        return self.images + max(runs * self.training, consolidation, evaluation)

    def runs_within(self, room: int) -> int:
        """Return the most runs of a stack that needs at most so many bytes; 0 for none."""
        rests = [
            (room - self.images - shared) // each
            for each, shared in (
                (self.training, 0),
                (self.consolidation, self.chunk),
                (self.evaluation, self.evaluated),
            )
        ]
        return max(0, min(rests))


def memory_need(prepared: Prepared) -> MemoryNeed:
    """Return the bytes that a stack of runs like this one needs on a GPU."""
    settings, picture = prepared.settings, prepared.images.x.shape[1:]
    network = initialize(settings, picture, len(prepared.stream.names))
    pixels, sizes = prod(picture), layer_sizes(network, picture)
    P, S, recalls, consolidates = kept_bytes(prepared, network)
    batch = largest_batch(settings)
    steps = min(BLOCK_STEPS, largest(settings, "iterations") or BLOCK_STEPS)  # that are taken at once, at most
    longest = max(prepared.stream.sizes)
    tables = sum(v.nbytes for v in prepared.stream.tables)
    in_step = (3 if recalls else 1) * batch * FLOAT * (copies_of(settings["augment"]) * pixels + 4 * sizes.outputs)
    dense = all(isinstance(layer, nn.Linear | nn.BatchNorm1d) for layer in network.layers.values())
    plain = dense and prepared.strategy.reads_once and AUTOCAST[settings["precision"]] is None
    answered, answering = FLOAT * (4 * pixels + 8 * sizes.largest), FLOAT * prepared.strategy.answering_floats
    most_tested = max(map(len, prepared.stream.test))
    chunk = max(CHUNK_SAMPLES * answered, per_sample_bytes(sizes, pixels, P // FLOAT, plain)) if consolidates else 0
    return MemoryNeed(
        training=5 * S + 10 * P + in_step + steps * batch * STEP_BYTES + tables,
        consolidation=5 * S + 6 * P + POOL_BYTES * longest + tables,
        evaluation=3 * S + 2 * P + LEAST * answered + answering + POOL_BYTES * most_tested + tables,
        chunk=chunk,
        evaluated=CHUNK_SAMPLES * answered,
        images=prepared.images.x.nbytes + prepared.images.y.nbytes,
    )


class KeptBytes(NamedTuple):
    """What a run keeps on the device while it is trained."""

    theta: int
    everything: int  # theta, the states of optimizer and strategy, statistics, an average
    recalls: bool  # whether a memory brings samples back, which a step passes through the network too
    consolidates: bool  # whether the samples of a task are passed through the network once more at its end


def kept_bytes(prepared: Prepared, network: Network) -> KeptBytes:
    """Return what a run keeps, from shapes alone. A state that is unknown is taken for two copies of theta."""
    settings, picture = prepared.settings, prepared.images.x.shape[1:]
    tasks, outputs = len(prepared.stream.train), len(prepared.stream.names)
    optimizer = named_class(settings, "optimizer", Optimizer)(**optimizer_settings(settings))
    consolidates = prepared.strategy.after_phase is not Strategy.after_phase
    leaves = network.parameters() | prepared.strategy.trainables(network, tasks, settings.knobs)
    layout = Layout({name: tuple(v.shape) for name, v in leaves.items()})
    theta = torch.empty(layout.size, device="meta")
    state = state_without_values(prepared, Net(network, layout), data_without_images(tasks, outputs, picture), theta)
    recalls = state is not None and bool(memories(state))
    average = theta if settings["average"] is not None else ()
    kept = theta, optimizer.init(theta), network.statistics(), (theta, theta) if state is None else state, average
    everything = sum(v.nbytes for v in tree_leaves(kept))
    return KeptBytes(theta.nbytes, everything, recalls, consolidates)


def state_without_values(prepared: Prepared, net: Net, data: Data, theta: Tensor) -> Tree | None:
    """Return the first state of a run's strategy, of tensors without values, as theta (P,) is one; None where the
    class, which may be a user's, reads values when it is made."""
    try:
        with torch.device("meta"):
            unbuilt = prepared.strategy(net, data, **choices(prepared.strategy, prepared.settings))
            return hooks.initial_state(unbuilt, theta, unbuilt.draws())
    except (NotImplementedError, RuntimeError):  # what PyTorch raises where a tensor without values is read
        return None


# ---------------------------------------------------------------- layers


class LayerSizes(NamedTuple):
    """The floats that a sample leaves in the layers of a network."""

    outputs: int  # of all layers together
    inputs: int  # of what their weights are multiplied with: for a convolution, a window for each position
    largest: int  # of the largest layer


class SizingWeights(Weights):
    """Weights that append the floats of each layer that is applied to `sizes`: of its output, and of what its weight is
    multiplied with."""

    def __init__(self, pieces: Mapping[str, Tensor], mode: BatchNormMode, sizes: list[tuple[int, int]]):
        super().__init__(pieces, mode)
        self.sizes = sizes

    def forward_hook(self, name: str, x: Tensor, z: Tensor, window: Window | None = None) -> Tensor:
        kernel = 1 if window is None else prod(self.pieces[f"{name}.weight"].shape[2:])
        positions = x[0, 0].numel() if window is None else prod(z.shape[2:])
        self.sizes.append((z[0].numel(), kernel * x.shape[1] * positions))
        return z


def layer_sizes(network: Network, shape: Sequence[int]) -> LayerSizes:
    """Return the sizes of the layers for samples of this shape, by a pass of one of them in evaluation mode."""
    layout = Layout({name: tuple(v.shape) for name, v in network.parameters().items()})
    sizes: list[tuple[int, int]] = []
    net = Net(network, layout, reader=lambda pieces, mode: SizingWeights(pieces, mode, sizes))
    with torch.no_grad():
        net.eval_mode(network.statistics())(layout.flat(network.parameters()), torch.zeros(1, *shape))
    outputs, inputs = (sum(column) for column in zip((0, 0), *sizes, strict=True))
    every = max(outputs, network.activation_floats)  # of a module, whose layers need not be applied by Weights
    unseen = every - outputs
    return LayerSizes(every, inputs + WINDOW * unseen, max([unseen // 2, *(size for size, _ in sizes)]))


def per_sample_bytes(sizes: LayerSizes, pixels: int, entries: int, plain: bool) -> int:
    """Return the bytes of a chunk in which each sample has a gradient of its own (clrun/strategy/per_sample.py).

    pixels: of a sample. entries: of theta. plain: whether linear layers alone are read, and once, so that the squares
    of the gradients follow without them.
    """
    of_sample = 3 * pixels + 3 * sizes.inputs // 2 + 4 * sizes.outputs
    if plain:
        return FLOAT * LINEAR_SAMPLES * GPU_FACTOR * of_sample
    return FLOAT * (4 * min(GRADIENT_FLOATS, CONV_SAMPLES * entries) + CONV_SAMPLES * of_sample)
