"""Memory aware synapses against a loop over samples and parameters, in float64."""

import pytest
import torch
from conftest import live
from helpers import rows_of
from torch import nn

from clrun.strategies.mas import MAS, SENSITIVITY
from clrun.strategy.per_sample import closed_form, one_by_one, output_shapes


def mlp(theta, outputs):
    module = nn.Sequential(nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, outputs)).double()
    nn.utils.vector_to_parameters(theta.clone(), module.parameters())
    return module


def pixels(stack, task, image):
    data = stack.strategy.data
    return (data.images[image].double() * data.scale + data.shift).flatten(1)


def sensitivity(stack, theta, stage, outputs):
    """mean_n |d sum_c f_c(x_n)^2 / d theta|, a backward pass a sample."""
    module = mlp(theta, stack.strategy.data.outputs)
    total, images = torch.zeros_like(theta), stack.streams[0].train[stage]
    for image in images:
        f = module(pixels(stack, stage, image[None]))[0]
        norm = sum(f[c] * f[c] for c in outputs)
        total += torch.cat([g.abs().flatten() for g in torch.autograd.grad(norm, list(module.parameters()))])
    return total / len(images)


OUTPUTS = {  # the outputs in ||f|| after tasks 1 and 2 of two classes each
    "task": ([0, 1], [2, 3]),
    "domain": ([0, 1], [0, 1]),
    "class": ([0, 1], [0, 1, 2, 3]),
}


@pytest.mark.parametrize("scenario", OUTPUTS)
def test_omega_is_a_sum_over_tasks_of_absolute_gradients(stack_of, scenario):
    stack = stack_of("strategy=mas", f"scenario={scenario}")
    run, total = stack.initialize(), 0
    for stage, outputs in enumerate(OUTPUTS[scenario]):
        run, _ = stack.learn(run, stage)
        total = total + sensitivity(stack, run.theta, stage, outputs)
        assert (run.state.importance - total).abs().max() < 1e-12 * total.max()
        assert torch.equal(run.state.anchor, run.theta)


def test_mas_is_its_equation(stack_of):
    """Three SGD steps of the second task by hand: cross entropy + lambda sum_i Omega_i (theta_i - theta*_i)^2."""
    stack = stack_of("strategy=mas", "lambda=0.3", "optimizer=sgd", "lr=0.05", "iterations=3")
    run, _ = stack.learn(stack.initialize(), 0)
    start, Omega = run.theta, sensitivity(stack, run.theta, 0, [0, 1])
    module = mlp(start, 10)
    optimizer = torch.optim.SGD(module.parameters(), 0.05)
    rows, weight, *_ = stack.schedule.sampler(0, 1, "train").sample(0, 3)
    for i in range(3):
        image = rows[i][weight[i] > 0] % len(stack.strategy.data.images)
        labels = stack.tables.label[1][stack.strategy.data.labels[image]] - 2
        loss = nn.functional.cross_entropy(module(pixels(stack, 1, image))[:, 2:4], labels)
        flat = nn.utils.parameters_to_vector(module.parameters())
        loss = loss + 0.3 * sum(Omega[j] * (flat[j] - start[j]) ** 2 for j in range(len(flat)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    by_hand = nn.utils.parameters_to_vector(module.parameters()).detach()
    ours, _ = stack.train(run, stack.new_stage(1))
    assert (by_hand - start).abs().max() > 1e-3
    assert (ours.theta - by_hand).abs().max() < 1e-12


@pytest.mark.parametrize("network", [(), ("model=cnn", "model.width=2")])
def test_the_closed_form_is_the_sum_over_samples(stack_of, network):
    stack = stack_of("strategy=mas", *network)
    run, _ = stack.learn(stack.initialize(), 0)
    strategy = stack.strategy.eval_mode(run.stats)
    (batch,) = strategy.data.chunks(stack.pool(0, "train", torch.float64).first(20), 20)
    batch = batch._replace(weight=(torch.arange(20) < 15).double())
    at = strategy, run.theta, run.state, stack.hp, batch
    fast, slow = closed_form(*at, SENSITIVITY, output_shapes(*at)), one_by_one(*at, SENSITIVITY)
    assert (fast - slow).abs().max() < 1e-12 * slow.max()


def test_samples_limits_the_mean(stack_of):
    some, all_of_them = (stack_of("strategy=mas", f"samples={n}", "tasks=2") for n in (20, "null"))
    run, _ = all_of_them.learn(all_of_them.initialize(), 0)
    few, _ = some.learn(some.initialize(), 0)
    assert torch.equal(few.theta, run.theta)
    assert not torch.equal(few.state.importance, run.state.importance)
    assert few.state.importance.sum().item() == pytest.approx(run.state.importance.sum().item(), rel=0.5)


class InsensitiveMAS(MAS):
    """A MAS that measures no sensitivity."""

    def after_phase(self, phase, theta, state, hp, pool):
        theta, state = super().after_phase(phase, theta, state, hp, pool)
        return theta, state._replace(importance=torch.zeros_like(state.importance))


def test_a_mas_that_does_nothing_says_so(stack_of):
    knobs = {"lambda": 1.0}
    _, reports = live(stack_of("strategy=mas", "tasks=2"))
    assert MAS.warnings(rows_of(reports), knobs) == []
    _, reports = live(stack_of("strategy=mas", "tasks=2", strategy=InsensitiveMAS))
    (complaint,) = MAS.warnings(rows_of(reports), knobs)
    assert "did nothing" in complaint
    assert MAS.warnings(rows_of(reports), {"lambda": 0.0}) == []
