"""Synaptic intelligence against a loop over steps and parameters, in float64."""

from itertools import pairwise

import pytest
import torch
from conftest import live
from helpers import rows_of
from torch import nn

from clrun.engine.step import whole_gradient
from clrun.strategies.si import SI

C, XI = 0.4, 0.05


def picture_batch(stack, rows, weight):
    """The samples of a step, gathered by hand."""
    data = stack.strategy.data
    image = rows[weight > 0] % len(data.images)
    return (data.images[image].double() * data.scale + data.shift).flatten(1), data.labels[image]


def network(stack, theta):
    sizes, layers = [64, 12, 8, 10], []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b, dtype=torch.float64), nn.ReLU()]
    module = nn.Sequential(*layers[:-1])
    nn.utils.vector_to_parameters(theta.clone(), module.parameters())
    return module


def by_hand(stack, theta, stages):
    """SI as the paper tells it, a parameter at a time where it matters; plain SGD -> theta, Omega."""
    module = network(stack, theta)
    P = len(theta)
    Omega, anchor = [0.0] * P, theta.tolist()
    for stage in range(stages):
        omega = [0.0] * P
        rows, weight, *_ = stack.schedule.sampler(0, stage, "train").sample(0, 4)
        for i in range(4):
            x, k = picture_batch(stack, rows[i], weight[i])
            logits = module(x)[:, 2 * stage : 2 * stage + 2]
            task_loss = nn.functional.cross_entropy(logits, stack.tables.label[stage][k] - 2 * stage)
            g = torch.cat([p.flatten() for p in torch.autograd.grad(task_loss, list(module.parameters()))]).tolist()
            now = nn.utils.parameters_to_vector(module.parameters()).tolist()
            new = [now[j] - 0.05 * (g[j] + C * Omega[j] * 2 * (now[j] - anchor[j])) for j in range(P)]
            omega = [omega[j] - g[j] * (new[j] - now[j]) for j in range(P)]
            nn.utils.vector_to_parameters(torch.tensor(new, dtype=torch.float64), module.parameters())
        end = nn.utils.parameters_to_vector(module.parameters()).tolist()
        Omega = [max(0.0, Omega[j] + omega[j] / ((end[j] - anchor[j]) ** 2 + XI)) for j in range(P)]
        anchor = end
    return torch.tensor(anchor, dtype=torch.float64), torch.tensor(Omega, dtype=torch.float64)


def test_si_is_its_equations(stack_of):
    stack = stack_of("strategy=si", f"c={C}", f"xi={XI}", "optimizer=sgd", "lr=0.05")
    run = stack.initialize()
    theta, Omega = by_hand(stack, run.theta, 3)
    for stage in range(3):
        run, report = stack.learn(run, stage)
    assert Omega.max() > 0
    assert (run.state.importance - Omega).abs().max() < 1e-11
    assert (run.theta - theta).abs().max() < 1e-12
    assert report.health[0]["penalty"] > 0


def test_the_path_is_of_the_task_loss_alone(stack_of):
    """However strong the pull, one step's path is -g * change with g the gradient of the cross entropy."""
    stack = stack_of("strategy=si", "c=1e6")
    strategy, hp = stack.strategy, stack.hp
    run, _ = stack.learn(stack.initialize(), 0)
    (batch,) = strategy.data.chunks(stack.pool(0, "train", torch.float64).first(8), 8)
    away = run.theta + 0.1
    g, _, aux = whole_gradient(strategy, away, run.state, hp, batch)
    plain, _, _ = whole_gradient(strategy, away, strategy.init(away), hp, batch)
    assert (g - plain).abs().max() > 1
    state = strategy.after_move(run.state, away, away + 1, aux)
    assert (state.path + plain).abs().max() < 1e-12


def test_a_gradient_is_that_of_the_loss(stack_of):
    stack = stack_of("strategy=si", "c=3")
    strategy, hp = stack.strategy, stack.hp
    run, _ = stack.learn(stack.initialize(), 0)
    (batch,) = strategy.data.chunks(stack.pool(0, "train", torch.float64).first(8), 8)
    theta = run.theta + 0.01

    def value(theta):
        _, loss, aux = whole_gradient(strategy, theta, run.state, hp, batch)
        return loss + aux["quadratic"]

    g, _, _ = whole_gradient(strategy, theta, run.state, hp, batch)
    for j in (0, 100, len(theta) - 1):
        step = torch.zeros_like(theta)
        step[j] = 1e-6
        up, down = (value(theta + s) for s in (step, -step))
        assert ((up - down) / 2e-6).item() == pytest.approx(g[j].item(), abs=1e-7)


class PathlessSI(SI):
    """An SI that never adds to the path integral."""

    def after_move(self, state, *rest):
        return state


def test_a_si_that_does_nothing_says_so(stack_of):
    knobs = {"c": 1.0, "xi": 0.1}
    _, reports = live(stack_of("strategy=si", "tasks=2"))
    assert SI.warnings(rows_of(reports), knobs) == []
    _, reports = live(stack_of("strategy=si", "tasks=2", strategy=PathlessSI))
    (complaint,) = SI.warnings(rows_of(reports), knobs)
    assert "did nothing" in complaint
    assert SI.warnings(rows_of(reports), knobs | {"c": 0.0}) == []
