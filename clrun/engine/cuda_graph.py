"""The training step as a CUDA graph."""

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from clrun.engine.capture import Body, Capture
from clrun.engine.state import Signals, TrainState
from clrun.engine.static_step import Groups, StaticStep, write_over
from clrun.engine.step import Step, StepKind
from clrun.engine.steppers import Block, counting, kinds_of
from clrun.strategy import Tree
from clrun.system.arithmetic import ceil_div

PLACES = 64  # steps: the number of places for a block's steps is a multiple of it


class GraphStepper:
    """A stepper that works on tensors whose addresses never change, as a CUDA graph demands.

    A counter on the device picks the samples of a step out of those of its block, and the results are written over the
    run. Each kind of step is captured when it first comes, and replayed for every step of that kind, in all passes over
    all tasks: `begin` puts in another run. It is captured anew where a pass has batches of another size, or, if the
    optimizer takes it in place, other groups of runs with equal learning rates; what was captured before is dropped.
    Without a capture, the same instructions are executed one by one.

    static: takes a step in place. pure: for the kinds that are not taken in place, the pure step. block_steps: the
    steps of a block, at most.
    """

    def __init__(
        self, static: StaticStep, pure: Callable[[StepKind], Step | None], block_steps: int,
        capture: Capture | None = None,
    ):  # fmt: skip
        self.static, self.pure, self.block_steps, self.capture = static, pure, block_steps, capture
        self.current = static.current
        self.position = torch.zeros(1, dtype=torch.long, device=self.current.theta.device)  # of the next step
        self.places, self.batch_size = 0, 0  # for the steps of a block, and for the samples of a step
        self.table: StepTable | None = None
        self.signals: Signals = {}  # {name: (R, places)}
        self.replays: dict[StepKind, Body] = {}

    def begin(self, current: TrainState, total: int, batch_size: int, equal_rates: Groups) -> None:
        """Begin a pass of `total` steps of `batch_size` samples with these runs, which themselves stay as they are.

        equal_rates: as `StaticStep` takes them.
        """
        self.write_state(current)
        self.static.begin()
        if equal_rates != self.static.equal_rates:
            self.static.group(equal_rates)
            self.replays = {kind: replay for kind, replay in self.replays.items() if self.pure(kind) is not None}
        needed = min(self.block_steps, ceil_div(total, PLACES) * PLACES)
        if needed > self.places or batch_size != self.batch_size:
            self.places, self.batch_size, self.table, self.signals = needed, batch_size, None, {}
            self.replays.clear()

    def prepare(self, block: Block) -> None:
        """Put the samples of a block in their places, and capture the kinds of steps that have not come before."""
        self.position.zero_()
        if self.table is None:
            self.table = StepTable((block.samples, block.context), self.static.axis, self.places)
            self.table.fill((block.samples, block.context))
            self.try_step()
        self.table.fill((block.samples, block.context))
        if self.capture is not None:
            for kind in sorted(set(kinds_of(block)) - self.replays.keys()):
                self.replays[kind] = self.captured(self.capture, kind)

    def captured(self, capture: Capture, kind: StepKind) -> Body:
        """Return what takes a step of one kind."""
        before = self.snapshot()
        return capture.capture(lambda: self.take_step(kind), lambda: self.restart(before))

    def try_step(self) -> None:
        """Take a step to learn what it writes and what its signals are, and undo it."""
        assert self.table is not None
        before = self.snapshot()
        samples, context = self.table.at(self.position)
        signals = self.static.take_step(samples, context, monitored=True)
        self.signals = {name: v.new_zeros(*v.shape, self.places) for name, v in signals.items()}
        self.restart(before)
        self.static.settle()

    def run_steps(self, block: Block, on_steps: Callable[[int], None]) -> Signals:
        self.position.zero_()
        for values in self.signals.values():
            if values.is_floating_point():
                values.fill_(torch.nan)  # what is not monitored
        kinds = kinds_of(block)
        for kind in counting(kinds, on_steps):
            if self.capture is None:
                self.take_step(kind)
            else:
                self.replays[kind]()
        return {name: v[..., : len(kinds)].clone() for name, v in self.signals.items()}

    def snapshot(self) -> TrainState:
        return tree_map(torch.clone, self.current)

    def result(self) -> TrainState:
        return self.snapshot()  # the next pass is written over these tensors

    def take_step(self, kind: StepKind) -> None:
        """Take the step at `position`: write over the run and into the signals, and move the position on."""
        assert self.table is not None
        samples, context = self.table.at(self.position)
        pure = self.pure(kind)
        if pure is None:
            signals = self.static.take_step(samples, context, kind.monitored)
        else:
            new, signals = pure(self.current, *self.static.values, samples, context)
            write_over(self.current, new)
        for name, v in signals.items():
            self.signals[name].index_copy_(-1, self.position, v.detach().unsqueeze(-1))
        self.position.add_(1)

    def restart(self, before: TrainState) -> None:
        """Go back to the first step of the block, and to the run as it was before."""
        self.position.zero_()
        self.write_state(before)

    def write_state(self, new: TrainState) -> None:
        """Copy the tensors of a run over those of this stepper's."""
        for old, fresh in zip(tree_leaves(self.current), tree_leaves(new), strict=True):
            old.copy_(fresh)


class StepTable:
    """The tensors of a block's steps. Those of one type lie side by side, so that those of a step are picked out by one
    kernel a type.

    like: a tree of tensors of some steps; what has no axes is the same for all. axis: of the steps.
    """

    def __init__(self, like: Tree, axis: int, places: int):
        leaves, self.structure = tree_flatten(like)
        self.axis = axis
        self.constants = [v.clone() for v in leaves if not v.dim()]
        self.dtypes: Sequence[torch.dtype | None] = [v.dtype if v.dim() else None for v in leaves]
        self.shapes = [v.select(axis, 0).shape if v.dim() else v.shape for v in leaves]
        self.rows: dict[torch.dtype, Tensor] = {}
        for dtype in {dtype for dtype in self.dtypes if dtype is not None}:
            width = sum(prod(shape) for shape, of in zip(self.shapes, self.dtypes, strict=True) if of == dtype)
            self.rows[dtype] = torch.zeros(places, width, dtype=dtype, device=leaves[0].device)

    def fill(self, of_block: Tree) -> None:
        """Write the steps of a block into the first places."""
        leaves = tree_leaves(of_block)
        for held, v in zip(self.constants, (v for v in leaves if not v.dim()), strict=True):
            held.copy_(v)
        for dtype, rows in self.rows.items():
            parts = [v.movedim(self.axis, 0).flatten(1) for v in self.of_type(leaves, dtype)]
            joined = torch.cat(parts, 1)
            rows[: len(joined)].copy_(joined)

    def of_type(self, leaves: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
        """Return the leaves of one type that have an axis of steps, with two axes at least."""
        chosen = [v for v, of in zip(leaves, self.dtypes, strict=True) if of == dtype]
        return [v if v.dim() > 1 else v[:, None] for v in chosen]

    def at(self, position: Tensor) -> Tree:
        """Return the tensors of the step at `position` (1,)."""
        constants, parts = iter(self.constants), {}
        for dtype, rows in self.rows.items():
            sizes = [prod(shape) for shape, of in zip(self.shapes, self.dtypes, strict=True) if of == dtype]
            parts[dtype] = iter(rows.index_select(0, position)[0].split(sizes))
        leaves = [
            next(constants) if dtype is None else next(parts[dtype]).view(shape)
            for dtype, shape in zip(self.dtypes, self.shapes, strict=True)
        ]
        return tree_unflatten(leaves, self.structure)
