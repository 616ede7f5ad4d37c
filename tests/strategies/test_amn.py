"""Adversarial memory units against loops over samples, classes and units, in float64."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from conftest import live
from helpers import as_class, rows_of

from clrun.data.batches import StepContext
from clrun.engine.step import whole_gradient
from clrun.strategies.amn import AMN
from clrun.strategy import diagonal_fisher, network_mask
from clrun.strategy.fisher_information import fisher_measure
from clrun.strategy.per_sample import closed_form, one_by_one, output_shapes
from clrun.system.errors import UsageError

THREE = "split.classes=[[0,1],[2,3],[4,5]]"
SMALL = ("strategy=amn", THREE, "units=5", "eps=0.05", "iterations=6")


def second_batch(stack):
    rows = stack.strategy.data.rows(stack.streams[0].train[1], 1)[:6]
    when = StepContext(torch.tensor(1), torch.tensor(1), torch.tensor(0.5), torch.tensor(0), torch.zeros(6, 6))
    return stack.strategy.data.batch(stack.tables, rows, torch.ones(6, dtype=torch.float64), when)


@pytest.fixture
def second(stack_of):
    """second(*overrides) -> stack, run after the first task with memory of the second task in use, a batch of it."""

    def after_one(*overrides):
        stack = stack_of(*SMALL, *overrides)
        run, _ = stack.learn(stack.initialize(), 0)
        layout, pieces = stack.strategy.net.layout, stack.strategy.net.layout.view(run.theta.clone())
        for i in range(len(stack.strategy.net.network.widths)):
            memory = pieces[f"memory.{i}"]
            memory[1] = torch.linspace(-1, 1, memory[1].numel(), dtype=torch.float64).view(memory[1].shape)
        return stack, run._replace(theta=layout.flat(pieces)), second_batch(stack)

    return after_one


def sample_loss(p, x, y, sets):
    """-log p(y|x) of one sample of the second task, whose outputs are 2 and 3; sets[i]: its memory (H,) a layer."""
    h = x.flatten()
    for i in (0, 1):
        z = []
        for k in range(len(p[f"hidden.{i}.bias"])):
            push = sum(sets[i][u] * p[f"way.{i}"][1, u, k] for u in range(5))
            z.append((p[f"hidden.{i}.weight"][k] * h).sum() + p[f"hidden.{i}.bias"][k] + push)
        h = torch.stack(z).clamp(min=0)
    outputs = p["head.weight"][2:4] @ h + p["head.bias"][2:4]
    return outputs.exp().sum().log() - outputs[y - 2]


@pytest.mark.parametrize("memory", ["task", "class"])
def test_loss_and_gradient_equal_loops(second, memory):
    stack, run, batch = second(f"memory={memory}", "lambda=30")
    strategy = stack.strategy
    g, loss, aux = whole_gradient(strategy, run.theta, run.state, stack.hp, batch)
    loss = loss + aux["quadratic"]
    assert aux["quadratic"] > 0  # the memory's weight in it is zero, the network's is not where it moved
    p = {name: v.clone().requires_grad_() for name, v in strategy.net.layout.view(run.theta).items()}
    together = [p[f"memory.{i}"][1].sum(0) for i in (0, 1)]
    fit = sum(sample_loss(p, x, y, together) for x, y in zip(batch.x, batch.y, strict=True)) / 6
    fit.backward()
    expected = {name: leaf.grad for name, leaf in p.items()}
    if memory == "class":  # the set of class c: its own samples alone
        for i in (0, 1):
            expected[f"memory.{i}"] = torch.zeros_like(p[f"memory.{i}"])
        for c in (2, 3):
            sets = [p[f"memory.{i}"][1].detach().sum(0).requires_grad_() for i in (0, 1)]
            state = [(x, y) for x, y in zip(batch.x, batch.y, strict=True) if y == c]
            towards = sum(sample_loss(p, x, y, sets) for x, y in state) / 6
            for i, v in enumerate(torch.autograd.grad(towards, sets)):
                expected[f"memory.{i}"][1, c] = v
    penalty = torch.zeros((), dtype=torch.float64)
    mean, precision = (strategy.net.layout.view(v) for v in run.state)
    for name in p:
        pull = 30 * precision[name] * (p[name].detach() - mean[name])
        penalty += (pull * (p[name].detach() - mean[name])).sum() / 2
        expected[name] = expected[name] + pull
    assert abs(loss - fit.detach() - penalty) < 1e-12
    for name, ours in strategy.net.layout.view(g).items():
        assert (ours - expected[name]).abs().max() < 1e-11, name
    assert all(expected[f"{kind}.{i}"][1].abs().max() > 0 for kind in ("memory", "way") for i in (0, 1))


@pytest.mark.parametrize(("direction", "sign"), [("beneficial", -1), ("adversarial", 1), ("gradient", None)])
def test_steps(second, direction, sign):
    """Memory by the sign, ways and weights by the optimizer, and nothing of another task."""
    stack, run, batch = second(f"direction={direction}")
    strategy, layout = stack.strategy, stack.strategy.net.layout
    g, _, _ = strategy.gradient(run.theta, run.state, stack.hp, batch)
    delta = torch.linspace(1, 2, layout.size, dtype=torch.float64)
    ours = layout.view(strategy.restrict(delta, g, run.theta, run.state, stack.hp, batch))
    for name, step in layout.view(delta).items():
        if not name.startswith(("memory", "way")):
            assert torch.equal(ours[name], step)
            continue
        assert ours[name][[0, 2]].abs().max() == 0
        for entry, d, slope in zip(
            *(v[name][1].flatten().tolist() for v in (ours, layout.view(delta), layout.view(g))), strict=True
        ):
            step = -slope if sign is None else sign * ((slope > 0) - (slope < 0))
            assert abs(entry - (0.05 * step if name.startswith("memory") else d)) < 1e-12


@pytest.mark.parametrize("memory", ["task", "class"])
def test_random_units_are_born_and_stay(stack_of, memory):
    """The control: plus or minus eps by chance, of every task's own, never moved; their ways learn."""
    stack = stack_of(*SMALL, "direction=random", f"memory={memory}", "units=40")
    start, (run, _) = (stack.strategy.net.layout.view(stack.initialize().theta), live(stack))
    end = stack.strategy.net.layout.view(run.theta)
    for i in (0, 1):
        M = start[f"memory.{i}"]
        assert M.abs().unique().tolist() == pytest.approx([0.05], rel=1e-6)
        assert 0.3 < (M > 0).double().mean() < 0.7
        assert not torch.equal(M[0], M[1])
        assert torch.equal(end[f"memory.{i}"], M)
        assert not torch.equal(end[f"way.{i}"], start[f"way.{i}"])


def test_beneficial_lowers_the_loss_and_adversarial_raises_it(second):
    for direction, sign in (("beneficial", -1), ("adversarial", 1)):
        stack, run, batch = second(f"direction={direction}", "eps=0.001")
        strategy, layout = stack.strategy, stack.strategy.net.layout
        g, before, _ = strategy.gradient(run.theta, run.state, stack.hp, batch)
        step = strategy.restrict(torch.zeros_like(g), g, run.theta, run.state, stack.hp, batch)
        after, _ = strategy.loss(run.theta + step, run.state, stack.hp, batch)
        assert sign * (after - before) > 0
        assert layout.view(step)["way.0"].abs().max() == 0


@pytest.mark.parametrize("memory", ["task", "class"])
@pytest.mark.parametrize("optimizer", [
    ("optimizer=adamw", "optimizer.weight_decay=0.1"),
    ("optimizer=sgd", "optimizer.momentum=0.9", "optimizer.weight_decay=0.1", "lambda=1"),
])  # fmt: skip
def test_units_of_other_tasks_rest(stack_of, memory, optimizer):
    stack = stack_of(*SMALL, f"memory={memory}", *optimizer)
    run, seen = stack.initialize(), []
    for stage in range(3):
        run, _ = stack.learn(run, stage)
        seen.append(stack.strategy.net.layout.view(run.theta))
    for name in ("memory.0", "memory.1", "way.0", "way.1"):
        for stage in range(1, 3):
            rest = [task for task in range(3) if task != stage]
            assert torch.equal(seen[stage][name][rest], seen[stage - 1][name][rest])
            assert not torch.equal(seen[stage][name][stage], seen[stage - 1][name][stage])


def test_a_push_is_one_number_a_channel_before_the_nonlinearity(second):
    stack, run, batch = second("model=cnn", "model.width=2", "iterations=2", "fisher_samples=5")
    p = stack.strategy.net.layout.view(run.theta)
    push = [(p[f"memory.{i}"][1, 0][:, None] * p[f"way.{i}"][1]).sum(0) for i in range(3)]
    h = batch.x
    for i in (0, 1):
        z = F.conv2d(h, p[f"conv.{i}.weight"], p[f"conv.{i}.bias"] + push[i], padding=1)
        h = F.max_pool2d(z.clamp(min=0), 2)
    h = (h.flatten(1) @ p["hidden.0.weight"].mT + p["hidden.0.bias"] + push[2]).clamp(min=0)
    ours = stack.strategy.logits(run.theta, run.state, stack.hp, batch.x, batch.t)
    assert (ours - h @ p["head.weight"].mT - p["head.bias"]).abs().max() < 1e-12


@pytest.mark.parametrize("estimator", ["exact", "empirical"])
def test_fisher_is_the_networks_with_its_memory_in_place(second, estimator):
    stack, run, _ = second()
    strategy, pool = stack.strategy.eval_mode(run.stats), stack.pool(1, "train", torch.float64).first(20)
    (batch,) = strategy.data.chunks(pool, 20)
    args = (strategy, run.theta, run.state, stack.hp)
    shapes = output_shapes(*args, batch)
    fast = closed_form(*args, batch, fisher_measure(estimator), shapes)
    slow = one_by_one(*args, batch, fisher_measure(estimator))
    network = network_mask(strategy, run.theta)
    assert network.sum() == 64 * 12 + 12 + 12 * 8 + 8 + 8 * 6 + 6
    assert (fast - slow)[network].abs().max() < 1e-12 * slow.max()
    assert slow[~network].max() > 0
    without = strategy, torch.where(network, run.theta, 0), run.state, stack.hp, batch
    plain = closed_form(*without, fisher_measure(estimator), shapes)
    assert (fast - plain).abs().max() > 1e-3 * plain.max()  # the memory is in place
    assert diagonal_fisher(*args, pool, estimator=estimator)[~network].abs().max() == 0
    assert diagonal_fisher(*args, pool, estimator="batched")[~network].abs().max() == 0


def test_a_class_that_rewrites_logits_has_no_closed_form_unless_it_says_so(second):
    @dataclass(frozen=True)
    class Twice(AMN):
        def logits(self, theta, state, hp, x, t):
            return super().logits(theta / 2, state, hp, x, t)

    stack, run, batch = second()
    at = run.theta, run.state, stack.hp, batch
    assert output_shapes(stack.strategy, *at) is not None
    assert output_shapes(as_class(stack.strategy, Twice), *at) is None

    class Once(AMN):
        reads_once = True

        def logits(self, theta, state, hp, x, t):
            return super().logits(theta, state, hp, x, t)

    assert output_shapes(as_class(stack.strategy, Once), *at) is not None


class Immobile(AMN):
    """AMN that takes no step at all."""

    def restrict(self, delta, g, theta, state, hp, batch):
        return delta * 0


def test_warns_of_memory_that_never_moved(stack_of):
    def rows(cls):
        stack = stack_of(*SMALL)
        stack.strategy = as_class(stack.strategy, cls)
        return rows_of(live(stack)[1])

    knobs = {"direction": "beneficial", "eps": 0.05, "lambda": 400.0}
    assert AMN.warnings(rows(AMN), knobs) == []
    assert "never left zero" in AMN.warnings(rows(Immobile), knobs)[0]
    assert AMN.warnings([], knobs | {"eps": 0.0}) == []


def test_refuses_batch_norm(stack_of):
    with pytest.raises(UsageError, match=r"type model\.norm=group"):
        stack_of("strategy=amn", "model=resnet18", "model.norm=batch")
