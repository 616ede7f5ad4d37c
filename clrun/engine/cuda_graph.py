"""The training step as a CUDA graph."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from clrun.data.stream import SampleIndex, StepContext
from clrun.engine.state import Run
from clrun.engine.steppers import told

WARM_UP = 3  # steps before a graph is recorded, in which libraries set themselves up


class GraphStepper:
    """The pure step on tensors that stay where they are: what a step needs is picked by a counter on the device, and
    what it gives is copied over what was. On CUDA it is recorded once, as a graph, and played for every step: one
    launch a step in place of some hundred. Elsewhere the same body simply runs, which is how it is tested without one.
    """

    def __init__(self, step: Callable[..., tuple[Run, dict[str, Tensor]]], run: Run, values: tuple, alone: bool):
        self.step, self.run, self.values = step, tree_map(torch.clone, run), values
        self.axis = 0 if alone else 1  # of a block's steps
        self.clock = torch.zeros(1, dtype=torch.long, device=run.theta.device)
        self.draws: SampleIndex | None = None
        self.graph: torch.cuda.CUDAGraph | None = None

    def run_steps(self, draws, moments, start, short, tell):
        if self.draws is None or self.draws.rows.shape[self.axis] < draws.rows.shape[self.axis]:
            self.settle(draws, moments)
        size = draws.rows.shape[self.axis]
        for there, new in zip(tree_leaves((self.draws, self.moments)), tree_leaves((draws, moments)), strict=True):
            (there.narrow(self.axis, 0, size) if new.dim() else there).copy_(new)
        self.clock.zero_()
        for _ in told(range(size), tell):
            self.graph.replay() if self.graph is not None else self.body()
        return {name: v[..., :size].clone() for name, v in self.log.items()}

    def snapshot(self):
        return tree_map(torch.clone, self.run)

    def settle(self, draws: SampleIndex, moments: StepContext) -> None:
        """Places for the largest block so far, and on CUDA a graph that reads them."""
        self.draws, self.moments = tree_map(torch.clone, (draws, moments))
        before, self.log = self.snapshot(), {}
        _, signals = self.step(self.run, *self.values, *self.now())
        size = draws.rows.shape[self.axis]
        self.log = {name: v.new_zeros(*v.shape, size) for name, v in signals.items()}
        if self.clock.is_cuda:
            self.record()
            self.put(before)

    def record(self) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self.body()
                self.clock.zero_()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.body()

    def body(self) -> None:
        new, signals = self.step(self.run, *self.values, *self.now())
        self.put(new)
        for name, v in signals.items():
            self.log[name].index_copy_(-1, self.clock, v.detach().unsqueeze(-1))
        self.clock.add_(1)

    def put(self, new: Run) -> None:
        for old, fresh in zip(tree_leaves(self.run), tree_leaves(new), strict=True):
            old.copy_(fresh)

    def now(self) -> tuple[SampleIndex, StepContext]:
        """What the step that the clock names is dealt."""

        def pick(v: Tensor) -> Tensor:
            return v.index_select(self.axis, self.clock).squeeze(self.axis) if v.dim() else v

        return tree_map(pick, (self.draws, self.moments))
