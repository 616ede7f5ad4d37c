"""L2 Init, shrink and perturb, UPGD and continual backpropagation, against their equations written out."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import live
from helpers import second_task
from scipy import stats
from torch.utils._pytree import tree_leaves, tree_map

from clrun.engine.step import make_step
from clrun.models.cnn import CNN
from clrun.strategies.cbp import CBP
from clrun.strategy import Strategy, cross_entropy, normal, uniform

# ---------------------------------------------------------------- random numbers


def test_normal_numbers_follow_their_distribution():
    drawn = normal(torch.rand(2), 200_000)
    assert drawn.isfinite().all()
    assert stats.kstest(drawn.numpy(), "norm").pvalue > 1e-3
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.02


# ---------------------------------------------------------------- L2 Init


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_l2_init_adds_the_pull_to_the_gradient(stack_of, optimizer):
    """The penalty by autograd, in a loss of its own."""

    class Written(Strategy):
        def init(self, theta):
            return {"start": theta}

        def loss(self, theta, state, hp, batch):
            fit = cross_entropy(self.net(theta, batch.x), batch)
            return fit + 0.03 * ((theta - state["start"]) ** 2).sum(), {}

    mine, _ = live(stack_of("strategy=l2_init", "lambda=0.03", f"optimizer={optimizer}"))
    other, _ = live(stack_of("strategy=finetune", f"optimizer={optimizer}", strategy=Written))
    assert (mine.theta - other.theta).abs().max() < 1e-9


def test_the_distance_from_the_start_is_a_share_of_its_length(stack_of):
    stack = stack_of("strategy=l2_init")
    start, (run, reports) = stack.initialize().theta.numpy(), live(stack)
    wanted = np.sqrt(((run.theta.numpy() - start) ** 2).sum() / (start**2).sum())
    assert reports[-1].health[0]["distance_from_start"] == pytest.approx(wanted, rel=1e-6)
    assert abs(np.linalg.norm(start) - 1) > 0.5


def test_l2_init_stays_nearer_to_the_start(stack_of):
    near, far = (
        live(stack_of("strategy=l2_init", f"lambda={strength}", "iterations=40"))[1][-1].health[0]
        for strength in (1, 0)
    )
    assert near["distance_from_start"] < far["distance_from_start"] / 2


# ---------------------------------------------------------------- shrink and perturb


def test_shrink_and_perturb_before_every_task_but_the_first(stack_of):
    stack = stack_of("strategy=shrink_perturb", "shrink=0.4", "perturb=0.2")
    start = stack.initialize()
    assert torch.equal(stack.begin_stage(start, 0).theta, start.theta)
    begun = [stack.begin_stage(start, stage) for stage in (1, 2)]
    fresh = [stack.fresh_parameters(stage)[0] for stage in (1, 2)]
    for new, drawn in zip(begun, fresh, strict=True):
        expected = 0.4 * start.theta + 0.2 * drawn
        assert torch.allclose(new.theta, expected, atol=1e-14)
        assert new.state.moved.item() == pytest.approx(((expected - start.theta).norm() / start.theta.norm()).item())
    assert not torch.equal(fresh[0], fresh[1]) and not torch.equal(fresh[0], start.theta)


def test_a_task_is_evaluated_as_it_was_left(stack_of):
    stack = stack_of("strategy=shrink_perturb", "shrink=0")
    first, report = stack.learn(stack.initialize(), 0)
    plain, plain_report = stack_of("strategy=finetune").learn(stack.initialize(), 0)
    assert torch.equal(first.theta, plain.theta)
    assert torch.equal(report.correct, plain_report.correct)


# ---------------------------------------------------------------- UPGD


def test_upgd_is_its_equation(stack_of):
    """Two steps of plain SGD, weight by weight, with the authors' learning rate times sigma as ours."""
    beta, sigma = 0.9, 0.05
    stack = stack_of("strategy=upgd", f"beta={beta}", f"sigma={sigma}", "optimizer=sgd", "lr=0.1")
    run, args = second_task(stack)
    step, strategy = make_step(stack.strategy, stack.optimizer), stack.strategy
    utility, theta = run.state.utility.numpy().copy(), run.theta.clone()
    for _ in range(2):
        leaf = theta.clone().requires_grad_()
        batch = strategy.data.gather(stack.tables, args[3], args[4])
        (g,) = torch.autograd.grad(cross_entropy(strategy.net(leaf, batch.x), batch), leaf)
        g, before = g.numpy(), theta.numpy()
        utility = beta * utility + (1 - beta) * (-g * before)
        scaled = 1 / (1 + np.exp(-utility / utility.max()))
        xi = normal(args[4].noise[:2, 0], len(before)).numpy()
        theta = torch.as_tensor(before + (-0.1 * g + sigma * xi) * (1 - scaled))
        run, _ = step(run, *args)
        assert (run.theta - theta).abs().max() < 1e-12
        assert np.abs(run.state.utility.numpy() - utility).max() < 1e-14


def test_without_a_positive_utility_nothing_is_protected(stack_of):
    strategy = stack_of("strategy=upgd").strategy
    assert not strategy.scaled(torch.tensor([-1.0, 0.0, -3.0])).any()
    assert strategy.scaled(torch.tensor([2.0, 0.0])).tolist() == pytest.approx([1 / (1 + np.exp(-1)), 0.5])


# ---------------------------------------------------------------- continual backpropagation


class ListCBP:
    """Algorithm 1 for one hidden layer of an MLP, unit by unit."""

    def __init__(self, width, replacement, decay, maturity):
        self.utility, self.age, self.due = [0.0] * width, [0] * width, 0.0
        self.replacement, self.decay, self.maturity = replacement, decay, maturity

    def to_replace(self):
        mature = [i for i, age in enumerate(self.age) if age > self.maturity]
        self.due += self.replacement * len(mature)
        if self.due > 1 and mature:
            self.due -= 1
            return min(mature, key=lambda i: self.utility[i])
        return None

    def update(self, activations, outgoing, replaced):
        for i in range(len(self.utility)):
            contribution = activations[:, i].abs().mean().item() * outgoing[:, i].abs().sum().item()
            self.utility[i] = self.decay * self.utility[i] + (1 - self.decay) * contribution
            self.age[i] += 1
        if replaced is not None:
            self.utility[replaced], self.age[replaced] = 0.0, 0


@pytest.mark.parametrize("optimizer", ["sgd optimizer.momentum=0.9", "adam"])
def test_cbp_is_its_algorithm(stack_of, optimizer):
    """With replacement=1/16, what is due of the layer of 8 units comes to 1 exactly, at which none is replaced."""
    knobs = {"replacement": 1 / 16, "decay": 0.9, "maturity": 3}
    typed = [f"{k}={v}" for k, v in knobs.items()]
    stack = stack_of("strategy=cbp", *typed, *f"optimizer={optimizer}".split())
    plain = make_step(stack_of("strategy=finetune").strategy, stack.optimizer)
    step, strategy, layout = make_step(stack.strategy, stack.optimizer), stack.strategy, stack.strategy.net.layout
    run, (lr, hp, tables, draw, when) = stack.initialize(), second_task(stack)[1]
    lists, seen, due_exactly = [ListCBP(width, **knobs) for width in (12, 8)], 0, 0
    names = ["hidden.0", "hidden.1", "head"]
    ranges = {n: layout.view(run.theta)[n].abs().max() for n in layout.shapes}
    for k in range(40):
        noise = when.noise.clone()
        noise[:] = torch.rand(noise.shape, generator=torch.Generator().manual_seed(k))
        context = when._replace(noise=noise)
        batch = strategy.data.gather(tables, draw, context)
        activations = []
        strategy.net(run.theta, batch.x, lambda i, h: activations.append(h) or h)
        expected = plain(run, lr, (), tables, draw, context)[0]
        theta = layout.view(expected.theta.clone())
        moments = [layout.view(v.clone()) for v in tree_leaves(expected.opt) if v.shape == expected.theta.shape]
        random = layout.view(2 * uniform(noise[:2, 0], len(run.theta)).double() - 1)
        before = layout.view(run.theta)
        for i, one in enumerate(lists):
            unit = one.to_replace()
            due_exactly += one.due == 1 and unit is None
            if unit is not None:
                seen += 1
                for part in ("weight", "bias"):
                    key = f"{names[i]}.{part}"
                    theta[key][unit] = ranges[key] * random[key][unit]
                    for moment in moments:
                        moment[key][unit] = 0
                theta[f"{names[i + 1]}.weight"][:, unit] = 0
                for moment in moments:
                    moment[f"{names[i + 1]}.weight"][:, unit] = 0
            one.update(activations[i], before[f"{names[i + 1]}.weight"], unit)
        run, _ = step(run, lr, hp, tables, draw, context)
        assert (run.theta - layout.flat(theta)).abs().max() < 1e-12
        found = [v for v in tree_leaves(run.opt) if v.shape == run.theta.shape]
        for moment, mine in zip(moments, found, strict=True):
            assert (mine - layout.flat(moment)).abs().max() < 1e-12
        for one, layer in zip(lists, run.state.layers, strict=True):
            assert layer.utility.tolist() == pytest.approx(one.utility, abs=1e-12)
            assert layer.age.tolist() == one.age
    assert seen > 10 and due_exactly > 0
    assert run.state.replaced.item() == seen


def test_a_replaced_unit_changes_no_output(stack_of):
    stack = stack_of("strategy=cbp")
    run = stack.initialize()
    last = run.state.layers[1]
    layers = (run.state.layers[0], last._replace(age=last.age + 1000, due=last.due + 1, utility=last.utility + 1.0))
    layers[1].utility[5] = 0.5
    mask, values = stack.strategy.renew(run.theta, run.state._replace(layers=layers), stack.hp, batch_of(stack))
    theta = torch.where(mask, values, run.theta)
    pieces, old = (stack.strategy.net.layout.view(v) for v in (theta, run.theta))
    assert not pieces["head.weight"][:, 5].any() and old["head.weight"][:, 5].all()
    others = [i for i in range(8) if i != 5]
    assert torch.equal(pieces["hidden.1.weight"][others], old["hidden.1.weight"][others])
    assert not torch.equal(pieces["hidden.1.weight"][5], old["hidden.1.weight"][5])
    assert torch.equal(pieces["hidden.0.weight"], old["hidden.0.weight"])


def batch_of(stack):
    _, (_, _, tables, draw, when) = second_task(stack)
    return stack.strategy.data.gather(tables, draw, when)


@pytest.mark.parametrize("optimizer", ["sgd optimizer.momentum=0.9", "adam", "adamw"])
def test_what_begins_anew_is_the_same_in_place(stack_of, optimizer):
    """The stepper of a run alone on a CPU against the pure step, optimizer included."""
    typed = ("strategy=cbp", "replacement=0.05", "maturity=2", "iterations=30", *f"optimizer={optimizer}".split())
    in_place, _ = live(stack_of(*typed))
    pure, _ = live(replace(stack_of(*typed), use_graph=True))
    assert in_place.state.replaced > 20
    for mine, other in zip(tree_leaves(in_place), tree_leaves(pure), strict=True):
        assert (mine - other).abs().max() < 1e-8


def test_units_that_wait_are_warned_of(stack_of):
    """With replacement=0.05, 20 units of a layer give one due in a step, which is replaced; with 0.2 they give four."""
    for rate, waiting in ((0.05, False), (0.2, True)):
        typed = (f"replacement={rate}", "maturity=2", "iterations=30", "model.widths=[20,4]")
        run, reports = live(stack_of("strategy=cbp", *typed))
        due = reports[-1].health[0]["most_units_due"]
        assert due == max(layer.due.item() for layer in run.state.layers)
        assert (due > 2) is waiting
        said = CBP.warnings([reports[-1].health[0]], {"replacement": rate})
        assert bool(said) is waiting and all(f"{due:.0f} of one layer were waiting" in text for text in said)


def test_channels_of_convolutions_are_units(stack_of):
    stack = stack_of("strategy=cbp", "model=cnn", "model.width=2", "replacement=0.2", "maturity=1", "iterations=12")
    run, _ = live(stack)
    assert run.state.replaced > 5
    assert [len(layer.utility) for layer in run.state.layers] == [2, 4, 16]


class Leaky(CNN):
    """A network whose hidden units are also negative."""

    def forward(self, weights, x, tap, before):
        leaky = torch.nn.functional.leaky_relu
        for i, name in enumerate(self.taps):
            z = weights.conv(name, x) if i < 2 else weights.linear(name, x.flatten(1))
            x = tap(i, leaky(z, 0.5))
            x = torch.nn.functional.max_pool2d(x, 2) if i < 2 else x
        return self.head(weights, x)


def test_the_utility_of_a_channel(stack_of):
    """The mean over samples and positions of |h|, times the sum of |w| of all weights that leave the channel: position
    by position, in a batch of which two samples are not there."""
    decay = 0.9
    stack = stack_of("strategy=cbp", "model=cnn", "model.width=2", f"decay={decay}", "optimizer=sgd")
    leaky = Leaky((1, 8, 8), stack.strategy.data.outputs, 2)
    strategy = replace(stack.strategy, net=replace(stack.strategy.net, network=leaky))
    run, (lr, hp, tables, draw, when) = second_task(replace(stack, strategy=strategy))
    there = torch.tensor([True, True, False, True, True, True, False, True])
    draw = strategy.data.index(tables, draw.rows, there.double())
    after, _ = make_step(strategy, stack.optimizer)(run, lr, hp, tables, draw, when)
    pieces, h = strategy.net.layout.view(run.theta), strategy.data.gather(tables, draw, when).x[there]
    names = ["conv.0", "conv.1", "hidden.0", "head"]
    for i, (name, following) in enumerate(pairwise(names)):
        weight, bias = pieces[f"{name}.weight"], pieces[f"{name}.bias"]
        h = torch.nn.functional.conv2d(h, weight, bias, padding=1) if i < 2 else h.flatten(1) @ weight.T + bias
        h = torch.where(h > 0, h, h / 2)
        assert (h < 0).any()
        leaving = pieces[f"{following}.weight"]
        places = leaving.numel() // len(leaving) // h.shape[1]  # how many inputs of the next layer a unit gives
        for unit in range(h.shape[1]):
            values = [abs(v) for of_sample in h for v in of_sample[unit].flatten().tolist()]
            out = leaving.flatten(1)[:, unit * places : (unit + 1) * places].abs().sum().item()
            wanted = decay * run.state.layers[i].utility[unit].item() + (1 - decay) * sum(values) / len(values) * out
            assert after.state.layers[i].utility[unit].item() == pytest.approx(wanted, rel=1e-9)
        h = torch.nn.functional.max_pool2d(h, 2) if i < 2 else h


def test_the_weights_that_leave_a_channel(stack_of):
    """Through max pooling and flattening: setting them to zero cuts the channel off."""
    stack = stack_of("strategy=cbp", "model=cnn", "model.width=2")
    generator = torch.Generator().manual_seed(0)
    run, x = stack.initialize(), torch.rand(20, 1, 8, 8, dtype=torch.float64, generator=generator)
    for i, width in enumerate((2, 4, 16)):
        pieces = stack.strategy.net.layout.view(run.theta.clone())
        by_unit = stack.strategy.by_unit(pieces[f"{stack.strategy.following(i)}.weight"], width)
        by_unit[:, 1] = 0  # a view of theta
        theta = stack.strategy.net.layout.flat(pieces)
        gate = torch.ones(width, dtype=torch.float64)
        gate[1] = 0
        gated = stack.strategy.net(
            run.theta, x, lambda j, h, i=i, gate=gate: h * gate.view(1, -1, *[1] * (h.dim() - 2)) if j == i else h
        )
        assert torch.allclose(stack.strategy.net(theta, x), gated, atol=1e-12)
        assert not torch.allclose(stack.strategy.net(run.theta, x), gated, atol=1e-6)


def test_leaves_of_a_state_are_one_run_each(stack_of):
    stack = stack_of("strategy=cbp", seeds=[0, 1])
    assert all(v.shape[0] == 2 for v in tree_leaves(tree_map(torch.clone, stack.initialize().state)))
