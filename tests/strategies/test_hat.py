"""HAT against loops over units and weights, and what it promises: later tasks change nothing."""

import math

import pytest
import torch
from conftest import live

from clrun.data.batches import StepContext
from clrun.strategies.hat import HAT
from clrun.system.errors import UsageError

OPTIMIZERS = [
    ("optimizer=adam",),
    ("optimizer=adamw", "optimizer.weight_decay=0.1"),
    ("optimizer=sgd", "optimizer.momentum=0.9", "optimizer.weight_decay=0.01"),
]
TASK, DOMAIN = ("scenario=task",), ("scenario=domain", "task_id_at_test=true")
THREE = "split.classes=[[0,1],[2,3],[4,5]]"


def answers_of(stack, run, task):
    """The logits (n, outputs of the task) of all test pictures of a task."""
    strategy = stack.strategy.eval_mode(run.stats)
    rows = stack.strategy.data.rows(stack.streams[0].test[task], task)
    image, t = rows % len(strategy.data.images), torch.full_like(rows, task)
    x = strategy.data.inputs(stack.tables, image, t)
    return strategy.logits(run.theta, run.state, stack.hp, x, t)[:, stack.tables.active[task, task]]


def drift(stack):
    """Learn all tasks -> the largest change of any old task's logit, and the accuracy's; reports."""
    run, first, correct, worst = stack.initialize(), [], [], 0.0
    for stage in range(stack.strategy.data.tasks):
        run, report = stack.learn(run, stage)
        correct.append(report.correct[0])
        first.append(answers_of(stack, run, stage))
        worst = max(worst, *((answers_of(stack, run, u) - first[u]).abs().max().item() for u in range(stage + 1)))
    return worst, all(torch.equal(late[: s + 1], torch.stack([correct[u][u] for u in range(s + 1)]))
                      for s, late in enumerate(correct))  # fmt: skip


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", [(), ("model=cnn", "model.width=4")])
@pytest.mark.parametrize("stream", [TASK, DOMAIN])
def test_later_tasks_change_no_logit(stack_of, model, stream, optimizer):
    """Forgetting is exactly zero: not a bit of an old task's logits moves, whatever the optimizer keeps in motion."""
    stack = stack_of("strategy=hat", *model, *stream, *optimizer, THREE, "iterations=20", dtype=torch.float32)
    assert drift(stack) == (0.0, True)


def test_the_authors_gates_drift(stack_of):
    """What the binary gates are for: a soft sigmoid leaves every factor between 0 and 1."""
    overrides = ("strategy=hat", THREE, "iterations=40", "smax=5", "lr=0.01")
    assert drift(stack_of(*overrides, "gates=sigmoid"))[0] > 1e-3
    assert drift(stack_of(*overrides))[0] == 0


@pytest.fixture
def second(stack_of):
    """second(*overrides) -> stack, run after the first task, a batch of the second half-way through an epoch."""

    def after_one(*overrides):
        stack = stack_of("strategy=hat", THREE, "lambda=0.6", "smax=8", "iterations=9", *overrides)
        run, _ = stack.learn(stack.initialize(), 0)
        rows = stack.strategy.data.rows(stack.streams[0].train[1], 1)[:7]
        when = StepContext(torch.tensor(1), torch.tensor(1), torch.tensor(0.5), torch.tensor(0), torch.zeros(6, 7))
        return stack, run, stack.strategy.data.batch(stack.tables, rows, torch.ones(7, dtype=torch.float64), when)

    return after_one


def test_loss_and_gradient_equal_loops(second):
    stack, run, batch = second()
    strategy, hp = stack.strategy, stack.hp
    g, loss, _ = strategy.gradient(run.theta, run.state, hp, batch)
    s = 1 / 8 + (8 - 1 / 8) * 0.5
    p = {name: v.clone().requires_grad_() for name, v in strategy.net.layout.view(run.theta).items()}
    first = [[float(e > 0) for e in p[f"gate.{i}"][0]] for i in (0, 1)]  # what the first task uses
    assert 0 < sum(first[0]) < 12
    total = 0
    for n in range(7):
        h = batch.x[n].flatten()
        for i in (0, 1):
            z = [p[f"hidden.{i}.weight"][k] @ h + p[f"hidden.{i}.bias"][k] for k in range(len(first[i]))]
            h = torch.stack([v.clamp(min=0) / (1 + (-s * e).exp()) for v, e in zip(z, p[f"gate.{i}"][1], strict=True)])
        logits = p["head.weight"][2:4] @ h + p["head.bias"][2:4]
        total = total - (logits[batch.y[n] - 2] - logits.exp().sum().log()) / 7
    wanted = sum(
        (1 - u) / (1 + (-s * e).exp()) for i in (0, 1) for u, e in zip(first[i], p[f"gate.{i}"][1], strict=True)
    )
    total = total + 0.6 * wanted / sum(1 - u for layer in first for u in layer)
    total.backward()
    assert abs(loss - total) < 1e-12
    ours = strategy.net.layout.view(g)
    for name, leaf in p.items():
        theirs = leaf.grad.clone()
        if name.startswith("gate"):
            for k, e in enumerate(leaf[1].tolist()):
                theirs[1, k] *= 8 * (math.cosh(min(50, s * abs(e))) + 1) / (s * (math.cosh(e) + 1))
            assert theirs[0].abs().max() == 0 and theirs[1].abs().max() > 0
        assert (ours[name] - theirs).abs().max() < 1e-8 * theirs.abs().max().clamp(min=1)


@pytest.mark.parametrize("model", [(), ("model=cnn", "model.width=3")])
def test_step_equals_loops(second, model):
    """Every entry of the step against the units that it joins, counted out one by one."""
    stack, run, batch = second(*model)
    strategy, layout = stack.strategy, stack.strategy.net.layout
    delta = torch.linspace(-9, 9, layout.size, dtype=torch.float64)
    ours = layout.view(strategy.restrict(delta, delta, run.theta, run.state, stack.hp, batch))
    theta, delta, used = layout.view(run.theta), layout.view(delta), [None]
    for i, width in enumerate(strategy.net.network.widths):
        used.append([theta[f"gate.{i}"][0, k].item() > 0 for k in range(width)])
    used[0] = [True] * strategy.data.images[0].numel() if not model else [True]
    used.append([True, True, False, False, False, False])  # outputs of the first task
    for i, layer in enumerate([*strategy.net.network.taps, "head"]):
        weight, step = ours[f"{layer}.weight"], delta[f"{layer}.weight"]
        pixels = 4 if layer == "hidden.0" and model else 1  # 8 x 8 after two poolings, channel by channel
        for above in range(weight.shape[0]):
            assert ours[f"{layer}.bias"][above] == (0 if used[i + 1][above] else delta[f"{layer}.bias"][above])
            for below in range(weight.shape[1]):
                rests = used[i + 1][above] and used[i][below // pixels]
                assert (weight[above, below] == (0 if rests else step[above, below])).all()
    for i in range(len(strategy.net.network.widths)):
        for task in range(3):
            for e, d, step in zip(*(v[f"gate.{i}"][task].tolist() for v in (theta, delta, ours)), strict=True):
                assert step == pytest.approx(min(6, max(-6, e + d)) - e if task == 1 else 0, abs=1e-12)


@pytest.mark.parametrize(
    ("embedding", "complaint"), [(6.0, "every unit was in use after task 1"), (-6.0, "no gate opened")]
)
def test_complains_of_gates_that_do_nothing(stack_of, embedding, complaint):
    class StuckHAT(HAT):
        @classmethod
        def trainables(cls, network, tasks, knobs):
            return {f"gate.{i}": torch.full((tasks, width), embedding) for i, width in enumerate(network.widths)}

    _, reports = live(stack_of("strategy=hat", THREE, "lambda=0", strategy=StuckHAT))
    rows = [{"task": i + 1} | report.health[0] for i, report in enumerate(reports)]
    assert complaint in HAT.warnings(rows, {"lambda": 0.0})[0]


def test_is_content_when_it_works(stack_of):
    _, reports = live(stack_of("strategy=hat", THREE, "model.widths=[60,40]"))
    rows = [{"task": i + 1} | report.health[0] for i, report in enumerate(reports)]
    assert HAT.warnings(rows, {"lambda": 0.75}) == []
    assert 0 < rows[0]["used_share"] < rows[2]["used_share"] < 1
    assert all(row["undecided_share"] == 0 for row in rows)


def test_refuses_residual_networks(stack_of):
    with pytest.raises(UsageError, match="type model=mlp or model=cnn"):
        stack_of("strategy=hat", "model=resnet18")
