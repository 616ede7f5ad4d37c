"""The training step as a CUDA graph."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from clrun.data.batches import SampleIndex, StepContext
from clrun.engine.recording import Body, Recorder
from clrun.engine.state import Signals, TrainState
from clrun.engine.step import Step, StepValues
from clrun.engine.steppers import Block, counting
from clrun.strategy import Tree


class Buffers(NamedTuple):
    """The tensors that a recorded step reads from and writes to, for the largest block so far."""

    samples: SampleIndex
    context: StepContext
    signals: Signals  # {name: (R, K)}


class GraphStepper:
    """A stepper that applies the pure step to tensors whose addresses never change, as a CUDA graph demands.

    A counter on the device picks the samples of a step out of those of its block, and the results are copied over the
    run. This is recorded once, and replayed for every step. Without a recorder the same instructions are executed one
    by one.

    alone: whether there is one run, whose tensors have no axis R.
    """

    def __init__(
        self, step: Step, current: TrainState, values: StepValues, alone: bool, recorder: Recorder | None = None
    ):
        self.step, self.current, self.values = step, tree_map(torch.clone, current), values
        self.axis = 0 if alone else 1  # of a block's steps
        self.position = torch.zeros(1, dtype=torch.long, device=current.theta.device)  # of the next step in its block
        self.buffers: Buffers | None = None
        self.recorder = recorder
        self.replay: Body | None = None

    def run_steps(self, block: Block, on_steps: Callable[[int], None]) -> Signals:
        size = block.samples.rows.shape[self.axis]
        buffers = self.filled_buffers(block, size)
        self.position.zero_()
        for _ in counting(range(size), on_steps):
            if self.replay is None:
                self.take_step(buffers)
            else:
                self.replay()
        return {name: v[..., :size].clone() for name, v in buffers.signals.items()}

    def snapshot(self) -> TrainState:
        return tree_map(torch.clone, self.current)

    def filled_buffers(self, block: Block, size: int) -> Buffers:
        """Return buffers that hold the samples of a block of `size` steps; larger ones than before if need be."""
        if self.buffers is None or self.buffers.samples.rows.shape[self.axis] < size:
            self.buffers = self.allocate(block, size)
        held, new = tree_leaves(self.buffers[:2]), tree_leaves((block.samples, block.context))
        for buffer, values in zip(held, new, strict=True):
            (buffer.narrow(self.axis, 0, size) if values.dim() else buffer).copy_(values)
        return self.buffers

    def allocate(self, block: Block, size: int) -> Buffers:
        """Return buffers for blocks of up to `size` steps, and record the step that uses them."""
        samples, context = tree_map(torch.clone, (block.samples, block.context))
        before = self.snapshot()
        _, signals = self.step(self.current, *self.values, *self.at_position((samples, context)))
        buffers = Buffers(samples, context, {name: v.new_zeros(*v.shape, size) for name, v in signals.items()})
        if self.recorder is not None:
            self.replay = self.recorder.record(lambda: self.take_step(buffers), lambda: self.restart(before))
        return buffers

    def restart(self, before: TrainState) -> None:
        """Go back to the first step of the block, and to the run as it was before."""
        self.position.zero_()
        self.write_state(before)

    def take_step(self, buffers: Buffers) -> None:
        """Take the step at `position`: write over the run and into the signals, and move the position on."""
        new, signals = self.step(self.current, *self.values, *self.at_position(buffers[:2]))
        self.write_state(new)
        for name, v in signals.items():
            buffers.signals[name].index_copy_(-1, self.position, v.detach().unsqueeze(-1))
        self.position.add_(1)

    def write_state(self, new: TrainState) -> None:
        """Copy the tensors of a run over those of this stepper's."""
        for old, fresh in zip(tree_leaves(self.current), tree_leaves(new), strict=True):
            old.copy_(fresh)

    def at_position(self, of_block: Tree) -> Tree:
        """Return the part of a block's tensors that belongs to the step at `position`."""

        def pick(v: Tensor) -> Tensor:
            return v.index_select(self.axis, self.position).squeeze(self.axis) if v.dim() else v

        return tree_map(pick, of_block)
