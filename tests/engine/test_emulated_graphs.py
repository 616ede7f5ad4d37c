"""The CUDA graph of every strategy's step, recorded on a CPU and replayed into memory that was overwritten: see
scripts/benchmark/emulation.py. A strategy is covered by its yaml alone."""

import csv
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from conftest import STRATEGIES
from torch.utils._pytree import tree_leaves

from clrun.engine import stack as stack_module
from clrun.engine.blocks import BlockSizes
from clrun.engine.static_step import StaticStep
from clrun.strategies.agem import AGEM
from clrun.strategies.ewc import EWC
from clrun.strategies.finetune import Finetune
from clrun.strategy import Quadratic

emulation = pytest.importorskip("benchmark.emulation", reason="an installed package has no scripts/")
graph_model = pytest.importorskip("benchmark.graph_model", reason="an installed package has no scripts/")
graph_items = pytest.importorskip("benchmark.graph_items", reason="an installed package has no scripts/")

SEEDS = (0, 1, 2)
TASKS = 2


class UnequalBlocks(BlockSizes):
    """Blocks of 3, 5, 5, ... steps, and what is left."""

    def size(self, start, step, seconds_per_step):
        return min(3 if start < 3 else 5, self.to_boundary(start))


def graphed(stack):
    """The stack, and the capture of its graphs."""
    capture = emulation.EmulatedCapture()
    recorded = replace(graph_model.as_on_a_card(stack), capture=capture)
    recorded.blocks = UnequalBlocks(0)
    return recorded, capture


def learn(stack, tasks=TASKS):
    run, reports = stack.initialize(), []
    for stage in range(tasks):
        run, report = stack.learn(run, stage)
        reports.append(report)
    return run, reports


def distance(a, b):
    pairs = zip(tree_leaves(a), tree_leaves(b), strict=True)
    gaps = [(x.double() - y.double()).abs() for x, y in pairs if x.numel()]
    return max(torch.where(gap.isnan(), torch.inf, gap).max().item() for gap in gaps)


def compare(stack_of, *overrides, seeds, **more):
    """Hold a life by graphs against plain steps; return the stack and the capture."""
    stack, capture = graphed(stack_of(*overrides, seeds=seeds, **more))
    (run, reports), (other, others) = learn(stack), learn(stack_of(*overrides, seeds=seeds, **more))
    assert distance(run, other) < 1e-9
    for a, b in zip(reports, others, strict=True):
        assert torch.equal(a.correct, b.correct)
        for mine, plain in zip(a.health, b.health, strict=True):
            assert mine == pytest.approx(plain, rel=1e-6, abs=1e-9, nan_ok=True)
    return stack, capture


@pytest.mark.parametrize("seeds", [(0,), SEEDS], ids=["alone", "stacked"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_replayed_graph_takes_the_steps_of_the_strategy(stack_of, strategy, seeds):
    """Tasks of unequal size, in blocks of unequal size, with class orders of their own: what is fixed when the graph is
    recorded must not be what changes from step to step, block to block or task to task."""
    if strategy == "generative_classifier" and seeds == (0,):
        pytest.skip("alone on a CPU, it reads which classes a batch has, and trains their autoencoders only")
    stack, capture = compare(stack_of, f"strategy={strategy}", "epochs=2", "batch_size=96", seeds=seeds)
    takes_steps = stack.strategy.takes_steps(0)
    assert bool(sum(graph.replays for graph in capture.graphs)) == takes_steps
    assert bool(plain_steps(stack)) == takes_steps  # so that there is something to count
    assert not over_budget(strategy, stack)
    assert not long_products(stack)


@pytest.mark.parametrize("seeds", [(0,), SEEDS], ids=["alone", "stacked"])
def test_a_replayed_graph_turns_each_picture_by_its_own_angle(stack_of, seeds):
    typed = ("split.circle=3", "tasks=3", "scenario=class", "epochs=null", "batch_size=20")
    _, capture = compare(stack_of, "strategy=er", *typed, seeds=seeds)
    assert sum(graph.replays for graph in capture.graphs)


# ---------------------------------------------------------------- what a captured step costs

BUDGET_FILE = Path(__file__).with_name("graph_budget.csv")

# What a strategy without a line there may launch. A loop over samples, tasks or parameters takes more.
KERNELS_OF_A_NEW_ONE = 500

# Another version of PyTorch takes the same step by somewhat more or fewer kernels.
TORCH_OF_BUDGET, SLACK = "2.14.", 1.15


def plain_steps(stack):
    """The operations of the graph that the stack has of a step that is neither monitored nor masked, if it has one."""
    kinds = {} if stack.graph_stepper is None else stack.graph_stepper.replays
    return [kinds[graph_model.PLAIN].__self__.operations] if graph_model.PLAIN in kinds else []


def over_budget(strategy, stack):
    """Say by how much the costliest plain step is over the budget; an empty text if it is within."""
    steps = [graph_model.cost(operations, theta_bytes=1) for operations in plain_steps(stack)]
    if not steps:
        return ""
    runs = "alone" if stack.alone else "stacked"
    kernels, size = max(one.kernels for one in steps), max(int(one.bytes) for one in steps)
    slack = 1 if torch.__version__.startswith(TORCH_OF_BUDGET) else SLACK
    with BUDGET_FILE.open(newline="") as file:
        lines = {(line["strategy"], line["runs"]): line for line in csv.DictReader(file)}
    budget = lines.get((strategy, runs), {"kernels": KERNELS_OF_A_NEW_ONE, "bytes": "inf"})
    if kernels <= float(budget["kernels"]) * slack and size <= float(budget["bytes"]) * slack:
        return ""
    return (
        f"a captured step of {strategy}, {runs}, takes {kernels} kernels and {size} bytes, its budget is "
        f"{budget['kernels']} and {budget['bytes']}; if it has to, write {strategy},{runs},{kernels},{size} into "
        f"{BUDGET_FILE.name}"
    )


def long_products(stack):
    """The products of two vectors as long as theta that were captured as a batched product of matrices, which a GPU
    gives to one of its processors a run."""
    size = stack.initialize().theta.shape[-1]
    found = [one for step in plain_steps(stack) for one in step if one.name in ("bmm", "baddbmm")]
    return [one for one in found if one.outs[0].shape[-2:] == (1, 1) and one.ins[-1].shape[-2] == size]


class CopiesState(EWC):
    """All of its state is written anew at each step."""

    def after_step(self, state, hp, batch, aux):
        return state._replace(mean=state.mean.clone(), precision=state.precision.clone())


class ScalesPenalty(EWC):
    """Its penalty is made anew at each step, in the loss."""

    def loss(self, theta, state, hp, batch):
        loss, aux = super().loss(theta, state, hp, batch)
        penalty = hp.lambda_ / 2 * (state.precision * (theta - state.mean).square()).sum()
        return loss + penalty, aux | {"penalty": penalty}

    def quadratic(self, state, hp):
        return None


@pytest.mark.parametrize("seeds", [(0,), SEEDS], ids=["alone", "stacked"])
@pytest.mark.parametrize("fault", [CopiesState, ScalesPenalty])
def test_a_step_that_does_more_than_it_has_to_is_over_its_budget(stack_of, fault, seeds):
    if not torch.__version__.startswith(TORCH_OF_BUDGET):
        pytest.skip(
            f"this PyTorch is not {TORCH_OF_BUDGET}x, of which the budget is: what others may take more hides it"
        )

    def learnt(cls):
        stack, _ = graphed(stack_of("strategy=ewc", "iterations=6", "batch_size=96", seeds=seeds, strategy=cls))
        learn(stack)
        return stack

    assert not over_budget("ewc", learnt(EWC))
    assert "budget" in over_budget("ewc", learnt(fault))


class MultipliesVectors(AGEM):
    """It takes the product of two gradients as one of matrices."""

    def gradient(self, theta, state, hp, batch):
        g, loss, aux = super().gradient(theta, state, hp, batch)
        return g + 0 * (g @ theta), loss, aux


def test_no_product_of_vectors_in_a_stack_is_one_of_matrices(stack_of):
    for cls, number in ((AGEM, 0), (MultipliesVectors, 1)):
        stack, _ = graphed(stack_of("strategy=agem", "iterations=6", seeds=SEEDS, strategy=cls))
        learn(stack)
        assert len(long_products(stack)) == number


@pytest.mark.parametrize("strategy", ["ewc", "er", "hat"])
def test_a_replayed_graph_leaves_a_run_that_is_over_as_it_is(stack_of, strategy):
    """The first tasks of the three runs have 265, 271 and 270 samples: with batches of 90, one run has a step more."""
    stack, _ = compare(stack_of, f"strategy={strategy}", "epochs=1", "batch_size=90", seeds=SEEDS)
    assert {kind.masked for kind in stack.graph_stepper.replays} == {False, True}


# ---------------------------------------------------------------- what is kept from task to task


@pytest.mark.parametrize(
    ("typed", "recordings"),
    [
        ("batch_size=5", 3),
        ("batch_size=5 schedule=cosine", 1 + 4 * 2),
        ("batch_size=5 warmup=0.2", 1 + 4 * 2),
        ("batch_size=[30,45,45,45,60]", 8),
    ],
)
def test_one_copy_of_the_runs_is_kept(stack_of, monkeypatch, typed, recordings):
    """Four runs with five tasks, whose numbers of steps make them four other groups under a schedule. A masked step is
    the same for all groups, and is recorded once; of the others there are two kinds."""
    made = []
    monkeypatch.setattr(stack_module, "StaticStep", lambda *given: made.append(StaticStep(*given)) or made[-1])
    whole = "strategy=finetune", "epochs=1", "tasks=5", *typed.split()
    stack, capture = graphed(stack_of(*whole, seeds=(0, 1, 2, 3)))
    run, _ = learn(stack, 5)
    assert distance(run, learn(stack_of(*whole, seeds=(0, 1, 2, 3)), 5)[0]) < 1e-9
    assert len(made) == 1
    assert len(capture.graphs) == recordings
    assert len(stack.graph_stepper.replays) <= 3  # a plain step, one that is monitored, and one that is masked


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


class Hardens(Finetune):
    """A penalty whose strength grows from step to step, while mean and precision stay."""

    def init(self, theta):
        return {"count": theta.new_zeros(()), "mean": theta.clone(), "precision": torch.ones_like(theta)}

    def quadratic(self, state, hp):
        return Quadratic(0.1 * state["count"], state["mean"], state["precision"])

    def after_step(self, state, hp, batch, aux):
        return state | {"count": state["count"] + 1}


@pytest.mark.parametrize("seeds", [(0,), SEEDS], ids=["alone", "stacked"])
def test_a_strength_may_change_in_every_step(stack_of, seeds):
    """Recorded, alone and in a stack, it is that of the present state."""
    compare(stack_of, "strategy=finetune", "iterations=12", seeds=seeds, strategy=Hardens)
    typed = "strategy=finetune", "iterations=12"
    alone, _ = learn(stack_of(*typed, strategy=Hardens))
    stacked, _ = learn(stack_of(*typed, seeds=SEEDS, strategy=Hardens))
    plain, _ = learn(stack_of(*typed))
    assert (alone.theta - stacked.theta[0]).abs().max() < 1e-9
    assert (alone.theta - plain.theta).abs().max() > 1e-3


def test_what_keeps_the_rules_is_replayed(stack_of):
    _, capture = compare(stack_of, "strategy=finetune", "iterations=6", seeds=(0,), strategy=WithState)
    assert sum(graph.replays for graph in capture.graphs) > 0


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


def test_a_solution_for_several_matrices_is_refused():
    one = torch.eye(3)
    with emulation.OperationLog():
        torch.cholesky_solve(one, one)
        with pytest.raises(emulation.Refused):
            torch.vmap(torch.cholesky_solve)(one.expand(2, 3, 3), one.expand(2, 3, 3))


def test_the_model_of_a_card_counts_masks_only_where_a_run_is_over():
    lines: list[str] = []
    graph_model.main(["--only", "finetune", "--runs", "4", "--captured", "2", "--widths", "8"], lines.append)
    alone, even, ragged = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:5])
    assert [alone[1], even[1], ragged[1]] == ["1", "4, even", "4, ragged"]
    assert int(alone[2]) < int(even[2]) == int(ragged[2]) and even[3:8] == ragged[3:8]
    assert not even[8] and float(ragged[5]) < float(ragged[7]) < float(ragged[8])
    assert not even[9] and int(ragged[2]) < int(ragged[9])


@pytest.mark.parametrize(("strategy", "kernels"), [("finetune", 26), ("ewc", 33)])
def test_the_model_of_a_card_counts_the_floor_of_a_single_run(strategy, kernels):
    """The kernels are those of another count of the same loop; its bytes are seven vectors of the optimizer, the
    products of the weights, and what is small beside them."""
    floor = graph_model.floor_of(strategy, "400,400")
    assert floor.kernels == kernels
    assert floor.passes == pytest.approx(12.7 if strategy == "finetune" else 20.7, abs=0.05)
    assert floor.seconds * 1e6 == pytest.approx(88 if strategy == "finetune" else 104, abs=1)


def test_the_model_of_a_card_holds_a_single_run_against_its_floor():
    lines: list[str] = []
    graph_model.main(["--only", "finetune,er", "--runs", "4", "--captured", "2", "--widths", "8"], lines.append)
    runs = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:8]]
    (floor,) = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines[11:])  # er's is not counted
    assert floor[0] == "finetune" and int(floor[1]) < int(runs[0][2])
    assert float(floor[5]) == pytest.approx(float(runs[0][5]) / float(floor[4]), abs=0.02)


@pytest.mark.slow
def test_a_step_without_one_of_its_savings_is_counted():
    """Each that is left out takes more kernels, or more passes over theta; nothing is left out for good."""
    for runs in (1, 4):
        (_, whole), *others = graph_items.counted("ewc", "8", runs)
        costs = {name: one for name, one in others if one is not None}
        assert len(others) == 6 and len(costs) == (5 if runs == 1 else 6)
        saved = {name for name, one in costs.items() if one.kernels > whole.kernels or one.passes > whole.passes}
        assert costs.keys() - saved == ({"the gradient is one vector"} if runs > 1 else set())
        assert next(iter(graph_items.counted("ewc", "8", runs)))[1] == whole
