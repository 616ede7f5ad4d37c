"""The CUDA graph of every strategy's step, recorded on a CPU and replayed into memory that was overwritten: see
scripts/benchmark/emulation.py. A strategy is covered by its yaml alone."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from conftest import STRATEGIES
from torch.utils._pytree import tree_leaves

from clrun.engine.blocks import BlockSizes
from clrun.strategies.finetune import Finetune

emulation = pytest.importorskip("benchmark.emulation", reason="an installed package has no scripts/")

SEEDS = (0, 1, 2)
TASKS = 2


class UnequalBlocks(BlockSizes):
    """Blocks of 3, 5, 5, ... steps, and what is left."""

    def size(self, start, step, seconds_per_step):
        return min(3 if start < 3 else 5, self.to_boundary(start))


def graphed(stack):
    """The stack, and the capture of its graphs."""
    capture = emulation.EmulatedCapture()
    recorded = replace(stack, use_graph=True, capture=capture)
    recorded.blocks = UnequalBlocks(0)
    return recorded, capture


def learn(stack):
    run, reports = stack.initialize(), []
    for stage in range(TASKS):
        run, report = stack.learn(run, stage)
        reports.append(report)
    return run, reports


def distance(a, b):
    pairs = zip(tree_leaves(a), tree_leaves(b), strict=True)
    gaps = [(x.double() - y.double()).abs() for x, y in pairs if x.numel()]
    return max(torch.where(gap.isnan(), torch.inf, gap).max().item() for gap in gaps)


def compare(stack_of, *overrides, seeds, **more):
    """Hold a life by graphs against plain steps; return the capture."""
    stack, capture = graphed(stack_of(*overrides, seeds=seeds, **more))
    (run, reports), (other, others) = learn(stack), learn(stack_of(*overrides, seeds=seeds, **more))
    assert distance(run, other) < 1e-9
    for a, b in zip(reports, others, strict=True):
        assert torch.equal(a.correct, b.correct)
        for mine, plain in zip(a.health, b.health, strict=True):
            assert mine == pytest.approx(plain, rel=1e-6, abs=1e-9, nan_ok=True)
    return capture


@pytest.mark.parametrize("seeds", [(0,), SEEDS], ids=["alone", "stacked"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_replayed_graph_takes_the_steps_of_the_strategy(stack_of, strategy, seeds):
    """Tasks of unequal size, in blocks of unequal size, with class orders of their own: what is fixed when the graph is
    recorded must not be what changes from step to step, block to block or task to task."""
    if strategy == "generative_classifier" and seeds == (0,):
        pytest.skip("alone on a CPU, it reads which classes a batch has, and trains their autoencoders only")
    capture = compare(stack_of, f"strategy={strategy}", "epochs=2", "batch_size=96", seeds=seeds)
    takes_steps = stack_of(f"strategy={strategy}").strategy.takes_steps(0)
    assert bool(sum(graph.replays for graph in capture.graphs)) == takes_steps


# ---------------------------------------------------------------- what breaks a graph is found


@dataclass(frozen=True)
class WithState(Finetune):
    def init(self, theta):
        return {"count": theta.new_zeros(())}

    def loss(self, theta, state, hp, batch):
        loss, aux = super().loss(theta, state, hp, batch)
        return loss * (1 + 0.1 * self.factor(theta, state)), aux | {"count": state["count"] + 1}

    def factor(self, theta, state):
        return state["count"]

    def after_step(self, state, hp, batch, aux):
        return {"count": aux["count"]}


class Waits(WithState):
    """The step asks for a value."""

    def factor(self, theta, state):
        return state["count"].item()


class Remembers(WithState):
    """A tensor of the last step is read in the next one, past the state."""

    last: ClassVar = []

    def factor(self, theta, state):
        before = self.last[-1] if self.last else torch.zeros_like(state["count"])
        self.last.append(state["count"] + 1)
        return before


class Bakes(WithState):
    """A number of Python's is counted up in the step."""

    steps: ClassVar = [0]

    def factor(self, theta, state):
        self.steps[0] += 1
        return float(self.steps[0])


class Swaps(WithState):
    """The step reads a tensor that is replaced by another one after every step."""

    held: ClassVar = [torch.zeros((), dtype=torch.float64)]

    def factor(self, theta, state):
        return self.held[0]

    def after_step(self, state, hp, batch, aux):
        self.held[0] = self.held[0] + 1
        return super().after_step(state, hp, batch, aux)


def test_what_keeps_the_rules_is_replayed(stack_of):
    compare(stack_of, "strategy=finetune", "iterations=6", seeds=(0,), strategy=WithState)


@pytest.mark.parametrize(
    ("fault", "error"),
    [(Waits, emulation.Refused), (Remembers, AssertionError), (Bakes, AssertionError), (Swaps, AssertionError)],
)
def test_a_step_that_breaks_a_rule_of_graphs_is_found(stack_of, fault, error):
    fault.last, fault.steps, fault.held = [], [0], [torch.zeros((), dtype=torch.float64)]
    stack, _ = graphed(stack_of("strategy=finetune", "iterations=6", strategy=fault))
    with pytest.raises(error):
        assert (
            distance(learn(stack)[0], learn(stack_of("strategy=finetune", "iterations=6", strategy=WithState))[0])
            < 1e-9
        )


def test_the_model_of_a_card_counts_masks_only_where_a_run_is_over():
    from benchmark import graph_model

    lines: list[str] = []
    graph_model.main(["--only", "finetune", "--runs", "4", "--captured", "2", "--widths", "8"], lines.append)
    alone, even, ragged = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:])
    assert [alone[1], even[1], ragged[1]] == ["1", "4, even", "4, ragged"]
    assert int(alone[2]) < int(even[2]) == int(ragged[2]) and even[3:8] == ragged[3:8]
    assert not even[8] and float(ragged[5]) < float(ragged[7]) < float(ragged[8])
