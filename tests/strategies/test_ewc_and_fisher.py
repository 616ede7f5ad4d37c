"""The mathematics against independent statements of it: loops over samples, labels and anchors, in float64."""

from dataclasses import replace

import pytest
import torch
from conftest import live
from elsewhere import DEVICE
from fake_device import FakeDevice
from helpers import module_of
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from clrun.engine.vectorize import CONSOLIDATION_AXES
from clrun.models import MLP
from clrun.runs.build import build
from clrun.strategies.ewc import EWC
from clrun.strategy import Gaussian, Quadratic, diagonal_fisher, gradient_of, log_softmax
from clrun.strategy.fisher_information import fisher_measure
from clrun.strategy.per_sample import closed_form, one_by_one, output_shapes

TASK = 1


@pytest.fixture
def learnt(stack_of):
    """learnt(*overrides) -> (strategy at rest, theta, state, hp, pool) after the first of two small tasks."""

    def after_one(*overrides):
        stack = stack_of("strategy=ewc", "split.classes=[[0,1,2],[3,4]]", *overrides)
        run, _ = stack.learn(stack.initialize(), 0)
        pool = stack.pool(0, "train", torch.float64).first(40)
        return stack.strategy.eval_mode(run.stats), run.theta, run.state, stack.hp, pool

    return after_one


def brute_fisher(strategy, theta, pool, labels):
    """One backward pass a sample and label; labels(log p (C,), i) -> [(label, weight)]."""
    module = module_of(strategy, theta)
    parameters = list(module.parameters())
    (batch,) = strategy.data.chunks(pool, len(pool.rows))
    total = [torch.zeros_like(p) for p in parameters]
    for i in range(len(batch.y)):
        outputs = module(batch.x[i : i + 1])[0][batch.active[i]]  # the softmax knows no other output
        log_p = outputs - outputs.exp().sum().log()
        for label, weight in labels(log_p, i, batch):
            grads = torch.autograd.grad(log_p[label], parameters, retain_graph=True)
            total = [t + weight * g**2 for t, g in zip(total, grads, strict=True)]
    return torch.cat([t.flatten() for t in total]) / len(batch.y)


def every_label(log_p, i, batch):
    return [(c, log_p[c].exp().item()) for c in range(len(log_p))]


def true_label(log_p, i, batch):
    return [(int(batch.active[i][: batch.y[i]].sum()), 1.0)]


def drawn_label(log_p, i, batch):
    cumulated = log_p.exp().cumsum(0)
    return [(int((cumulated < batch.noise[0, i]).sum()), 1.0)]


@pytest.mark.parametrize("scenario", ["task", "class"])
@pytest.mark.parametrize(
    ("estimator", "labels"), [("exact", every_label), ("empirical", true_label), ("sampled", drawn_label)]
)
def test_fisher_is_a_mean_of_squares(learnt, scenario, estimator, labels):
    strategy, theta, state, hp, pool = learnt(f"scenario={scenario}")
    ours = diagonal_fisher(strategy, theta, state, hp, pool, estimator=estimator)
    theirs = brute_fisher(strategy, theta, pool, labels)
    assert theirs.max() > 0
    assert (ours - theirs).abs().max() < 1e-12 * theirs.max()


@pytest.mark.parametrize("norm", [(), ("model.norm=batch",)], ids=["plain", "batch"])
@pytest.mark.parametrize("estimator", ["exact", "empirical", "sampled"])
def test_closed_form_equals_sample_by_sample(learnt, estimator, norm):
    strategy, theta, state, hp, pool = learnt("scenario=class", "active=all", *norm)
    (batch,) = strategy.data.chunks(pool, len(pool.rows))
    shapes = output_shapes(strategy, theta, state, hp, batch)
    fast = closed_form(strategy, theta, state, hp, batch, fisher_measure(estimator), shapes)
    slow = one_by_one(strategy, theta, state, hp, batch, fisher_measure(estimator))
    assert (fast - slow).abs().max() < 1e-12 * slow.max()


@pytest.mark.parametrize("network", ["model.widths=[6]", "model=resnet18 model.width=2"])
def test_fisher_in_bfloat16(prepared_of, network):
    """With batch norms at rest, whose statistics stay in float32."""
    typed = (*network.split(), "model.norm=batch", "precision=bfloat16", "fisher_samples=8", "iterations=2", "tasks=2")
    stack = build([prepared_of("strategy=ewc", *typed)])
    run, _ = stack.learn(stack.initialize(), 0)
    assert run.state.precision.isfinite().all()
    assert run.state.precision.max() > 0


@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("estimator", ["exact", "empirical"])
def test_closed_form_of_a_residual_net_equals_sample_by_sample(learnt, norm, estimator):
    """Convolutions of both strides, and norms with the statistics of a network at rest."""
    strategy, theta, state, hp, pool = learnt("model=resnet18", "model.width=3", f"model.norm={norm}", "iterations=2")
    (batch,) = strategy.data.chunks(pool.first(12), 12)
    batch = batch._replace(weight=(torch.arange(12) < 9).double())
    shapes = output_shapes(strategy, theta, state, hp, batch)
    fast = closed_form(strategy, theta, state, hp, batch, fisher_measure(estimator), shapes)
    slow = one_by_one(strategy, theta, state, hp, batch, fisher_measure(estimator))
    for name, size in strategy.net.layout.view(slow).items():
        assert (strategy.net.layout.view(fast)[name] - size).abs().max() < 1e-12 * slow.max(), name
    # every leaf is reached
    assert all(size.max() > 0 for size in strategy.net.layout.view(fast).values())


class Tied(MLP):
    """Reads a layer twice."""

    def forward(self, weights, x, tap, before):
        h = weights.linear("hidden.0", x.flatten(1)).relu()
        return weights.linear("head", weights.linear("hidden.1", weights.linear("hidden.1", h).relu()).relu())


class Unhooked(MLP):
    """Reads a layer's weights by itself."""

    def forward(self, weights, x, tap, before):
        h = (x.flatten(1) @ weights.pieces["hidden.0.weight"].mT).relu()
        return weights.linear("head", weights.linear("hidden.1", h).relu())


@pytest.mark.parametrize("kind", [Tied, Unhooked])
def test_a_network_that_reads_its_layers_otherwise_goes_sample_by_sample(learnt, kind):
    strategy, theta, state, hp, pool = learnt("model.widths=[9,9]")
    other = replace(strategy, net=replace(strategy.net, network=kind([1, 8, 8], strategy.data.outputs, [9, 9])))
    (batch,) = strategy.data.chunks(pool.first(12), 12)
    assert output_shapes(strategy, theta, state, hp, batch) is not None
    assert output_shapes(other, theta, state, hp, batch) is None
    slow = one_by_one(other, theta, state, hp, batch, fisher_measure("exact")) / 12
    assert (diagonal_fisher(other, theta, state, hp, pool.first(12)) - slow).abs().max() < 1e-12 * slow.max()


def test_fisher_of_a_convolutional_net_equals_a_loop(learnt):
    strategy, theta, state, hp, pool = learnt("model=cnn", "model.width=2", "iterations=2")
    pool = pool.first(10)
    ours = diagonal_fisher(strategy, theta, state, hp, pool)
    total = torch.zeros_like(theta)
    for batch in strategy.data.chunks(pool, 1):
        log_p = log_softmax(strategy.net(theta, batch.x), batch.active)[0]
        for c in batch.active[0].nonzero()[:, 0].tolist():

            def loss(theta, batch=batch, c=c):
                return log_softmax(strategy.net(theta, batch.x), batch.active)[0, c], {}

            total += log_p[c].exp() * gradient_of(loss, theta)[0] ** 2
    assert (ours - total / 10).abs().max() < 1e-12 * total.max()


@pytest.mark.parametrize("estimator", ["exact", "empirical", "sampled"])
def test_fisher_does_not_depend_on_the_size_of_a_pass(learnt, estimator):
    strategy, theta, state, hp, pool = learnt()
    whole = diagonal_fisher(strategy, theta, state, hp, pool, estimator=estimator)
    in_parts = diagonal_fisher(strategy, theta, state, hp, pool, estimator=estimator, chunk_samples=7)
    assert (in_parts - whole).abs().max() < 1e-14
    assert not torch.equal(in_parts, whole)  # the parts are added in another order


def test_batched_is_the_square_of_the_mean(learnt):
    strategy, theta, state, hp, pool = learnt()
    ours = diagonal_fisher(strategy, theta, state, hp, pool, estimator="batched", batch_size=16)
    squares = []
    for batch in strategy.data.chunks(pool, 16):  # 16, 16 and a short one of 8
        module = module_of(strategy, theta)
        logits = module(batch.x)[:, batch.active[0]]
        nn.functional.cross_entropy(logits, batch.y).backward()
        squares.append(torch.cat([p.grad.flatten() for p in module.parameters()]) ** 2)
    theirs = torch.stack(squares).mean(0)
    assert (ours - theirs).abs().max() < 1e-12 * theirs.max()
    assert diagonal_fisher(strategy, theta, state, hp, pool, estimator="empirical").sum() > 2 * theirs.sum()


def test_fisher_of_fewer_samples(learnt):
    strategy, theta, state, hp, pool = learnt()
    by_samples = diagonal_fisher(strategy, theta, state, hp, pool, samples=8)
    assert torch.equal(by_samples, diagonal_fisher(strategy, theta, state, hp, pool.first(8)))


def test_one_gaussian_is_all_anchors():
    """The sum of K anchored penalties, and its gradient, up to the constant that no gradient sees."""
    draw = torch.Generator().manual_seed(0)
    anchors = [(torch.randn(20, generator=draw).double(), torch.rand(20, generator=draw).double()) for _ in range(4)]
    state = Gaussian(torch.zeros(20).double(), torch.zeros(20).double())
    for theta, precision in anchors:
        state = state.absorb(theta, precision)
    gaps = []
    for _ in range(3):
        theta = torch.randn(20, generator=draw).double().requires_grad_()
        apart = sum((F * (theta - mean) ** 2).sum() / 2 for mean, F in anchors)
        away = theta - state.mean
        quadratic = Quadratic(torch.ones(()).double(), *state)
        one = quadratic.value(away)
        (g,), (h,) = torch.autograd.grad(apart, theta), torch.autograd.grad(one, theta)
        assert (g - h).abs().max() < 1e-12
        gaps.append((apart - one).item())
    assert gaps == pytest.approx([gaps[0]] * 3, abs=1e-12)


def test_ewc_is_its_equation(stack_of):
    """Five SGD steps of the third task by hand: cross entropy + lambda/2 sum_k sum_i F_ki (theta_i - theta*_ki)^2."""
    stack = stack_of("strategy=ewc", "lambda=30", "optimizer=sgd", "lr=0.05", "iterations=5", "tasks=5")
    run, anchors = stack.initialize(), []
    for stage in range(2):
        run, _ = stack.learn(run, stage)
        pool = stack.pool(stage, "train", torch.float64)
        anchors.append((run.theta, brute_fisher(stack.strategy, run.theta, pool, every_label)))
    module = module_of(stack.strategy, run.theta)
    starts = [torch.cat([p.flatten() for p in module.parameters()]).detach()]
    optimizer = torch.optim.SGD(module.parameters(), 0.05)
    sampler = stack.schedule.sampler(0, 2, "train")
    rows, weight, *_ = sampler.sample(0, 5)
    for i in range(5):
        flat = torch.cat([p.flatten() for p in module.parameters()])
        image = rows[i][weight[i] > 0] % len(stack.strategy.data.images)
        pixels = stack.strategy.data.images[image].double() * stack.strategy.data.scale + stack.strategy.data.shift
        classes = stack.strategy.data.labels[image]
        loss = nn.functional.cross_entropy(module(pixels)[:, 4:6], stack.tables.label[2][classes] - 4)
        loss = loss + 30 / 2 * sum((F * (flat - theta) ** 2).sum() for theta, F in anchors)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    by_hand = torch.cat([p.flatten() for p in module.parameters()]).detach()
    ours, _ = stack.train(run, stack.new_stage(2))
    assert (by_hand - starts[0]).abs().max() > 1e-3
    assert (ours.theta - by_hand).abs().max() < 1e-12


def test_online_ewc_is_its_recursion():
    """F~_t = gamma F~_{t-1} + F_t with the newest anchor, and gamma F~ in the penalty (Schwarz et al. 2018)."""
    draw, gamma = torch.Generator().manual_seed(0), torch.tensor(0.7).double()
    state, running = Gaussian(torch.zeros(5).double(), torch.zeros(5).double()), torch.zeros(5).double()
    for _ in range(3):
        theta, F = torch.randn(5, generator=draw).double(), torch.rand(5, generator=draw).double()
        state, running = EWC.decayed(state, theta, F, gamma), gamma * running + F
        assert torch.equal(state.mean, theta)
        assert state.precision == pytest.approx(gamma * running)


def test_online_and_offline_agree_after_one_task(stack_of):
    """With gamma = 1 and one past task there is nothing to tell them apart; with two there is."""
    one, _ = live(stack_of("strategy=ewc", "lambda=50", "tasks=2"))
    other, _ = live(stack_of("strategy=ewc", "lambda=50", "tasks=2", "online=true"))
    assert torch.equal(one.theta, other.theta)
    one, _ = live(stack_of("strategy=ewc", "lambda=50", "tasks=5"))
    other, _ = live(stack_of("strategy=ewc", "lambda=50", "tasks=5", "online=true"))
    assert not torch.equal(one.theta, other.theta)


def test_a_penalty_pulls(stack_of):
    """More lambda, nearer to where the old task left the weights; and it is counted in health.csv."""
    moved = []
    for strength in (0, 1e3, 1e5):
        stack = stack_of("strategy=ewc", f"lambda={strength}", "tasks=2", "iterations=20")
        start, _ = stack.learn(stack.initialize(), 0)
        end, report = stack.learn(start, 1)
        F = start.state.precision
        moved.append((F * (end.theta - start.theta) ** 2).sum().item())
        assert (report.health[0]["penalty"] > 0) == (strength > 0)
    assert moved[0] > 2 * moved[1] > 4 * moved[2]


@pytest.mark.parametrize("scenario", ["task", "class"])
def test_a_stack_computes_the_gradients_that_a_run_alone_computes(stack_of, scenario):
    """Those of the outputs that may answer, and not of all outputs of the network."""

    def operations(seeds):
        stack = stack_of("strategy=ewc", f"scenario={scenario}", "tasks=5", seeds=seeds)
        current = stack.initialize()
        with FlopCounterMode(display=False) as counted:
            stack.consolidate(current, stack.new_stage(1))
        return counted.get_total_flops() / len(seeds)

    assert operations(range(3)) <= 1.02 * operations([0])


@pytest.mark.parametrize("seeds", [[0], [0, 1]], ids=["alone", "stacked"])
def test_the_fisher_information_does_not_wait_for_the_device(prepared_of, seeds):
    """The outputs that may answer are known on the host before the first chunk."""
    runs = [prepared_of("strategy=ewc", "tasks=2", "model.widths=[6]", f"seed={seed}") for seed in seeds]
    with FakeDevice() as there:
        stack = build(runs, device=DEVICE)
        current, pool = stack.initialize(), stack.pool(0, "", torch.float32)

        def fisher(current, hp, pool):
            return diagonal_fisher(stack.strategy, current.theta, current.state, hp, pool, chunk_samples=100)

        with there.noting("fisher"):
            stack.vectorizer.vectorize(fisher, CONSOLIDATION_AXES)(current, stack.hp, pool)
    assert not there.met("fisher")


def test_outputs_that_may_answer_in_a_blurred_stream(stack_of):
    """Samples of all tasks come with each of them."""
    for typed, expected in ((), [2, 3]), (("split.blurry=0.5", "scenario=class"), list(range(10))):
        stack = stack_of("strategy=ewc", "tasks=5", *typed, seeds=[0, 1])
        assert stack.pool(1, "", torch.float64).outputs.tolist() == expected
