"""measure=plasticity: dead units, effective rank and weight norm, against what they are by definition."""

import numpy as np
import pytest
import torch
from conftest import live
from helpers import module_of

from clrun.engine.plasticity import plasticity

COLUMNS = ("dead_share", "effective_rank", "weight_norm")


def activations(stack, run, count=512):
    """Hidden activations (n, width) of each layer for the samples that are measured, by a torch.nn.Module."""
    strategy = stack.strategy
    pool = stack.pool(1, "train", torch.float64).first(count)
    (batch,) = strategy.data.chunks(pool, count)
    modules, h, found = list(module_of(strategy, run.theta)), batch.x, []
    for module in modules:
        h = module(h)
        if isinstance(module, torch.nn.ReLU):
            found.append(h.detach().numpy())
    return found


def second_stage(stack, theta_of=None):
    run, _ = stack.learn(stack.initialize(), 0)
    if theta_of is not None:
        run = run._replace(theta=theta_of(run.theta))
    return stack.learn(run, 1)


def test_columns_are_what_they_say(stack_of):
    stack = stack_of("measure=plasticity", "strategy=finetune", "optimizer=sgd", "lr=1e-9")

    def with_dead_units(theta):
        pieces = stack.strategy.net.layout.view(theta.clone())
        pieces["hidden.1.bias"][:3] = -100
        return stack.strategy.net.layout.flat(pieces)

    run, report = second_stage(stack, with_dead_units)
    hidden = activations(stack, run)
    dead = np.concatenate([(h == 0).all(0) for h in hidden])
    values = np.linalg.svd(hidden[-1], compute_uv=False)
    p = values[values > 0] / values.sum()
    health = report.health[0]
    assert health["dead_share"] == dead.mean() >= 3 / 20
    assert health["effective_rank"] == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-9)
    assert health["weight_norm"] == pytest.approx(run.theta.norm().item())


@pytest.mark.parametrize("present", [[1, 4, 10], [7]])
def test_samples_that_are_not_there_are_not_measured(stack_of, present):
    """Of 12 samples, three are there or one: units whose activation is the same for these are dead, whatever it is for
    the others, so all units where there is one sample; and singular values are of so many rows."""
    stack = stack_of("measure=plasticity", "strategy=finetune", "model.widths=[30,20]")
    run, _ = stack.learn(stack.initialize(), 0)
    weight = torch.zeros(12, dtype=torch.float64).index_fill(0, torch.tensor(present), 1)
    pool = stack.pool(1, "train", torch.float64).first(12)._replace(weight=weight)
    found = {name: v.item() for name, v in plasticity(stack.strategy, run, stack.hp, pool).items()}
    everything = activations(stack, run, 12)
    hidden = [h[present] for h in everything]
    dead, dead_of_all = (np.concatenate([h.max(0) == h.min(0) for h in v]).mean() for v in (hidden, everything))
    values = np.linalg.svd(hidden[-1], compute_uv=False)
    p = values / values.sum()
    assert found["dead_share"] == pytest.approx(dead)
    assert dead > dead_of_all and (dead == 1) == (len(present) == 1)
    assert found["effective_rank"] == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-9)


@pytest.mark.parametrize("strategy", ["hat", "dgr", "generative_classifier"])
def test_the_norm_is_that_of_the_network_alone(stack_of, strategy):
    """Without the gates, the generator or the autoencoders that the strategy trains beside it."""
    stack = stack_of("measure=plasticity", f"strategy={strategy}", "scenario=task")
    run, report = stack.learn(stack.initialize(), 0)
    pieces = stack.strategy.net.layout.view(run.theta)
    names = [f"{layer}.{part}" for layer in ("hidden.0", "hidden.1", "head") for part in ("weight", "bias")]
    squares = sum(pieces[name].square().sum().item() for name in names)
    assert report.health[0]["weight_norm"] == pytest.approx(squares**0.5, rel=1e-6)
    assert run.theta.norm() > 2 * squares**0.5 and len(pieces) > len(names)


def test_measured_alike_in_a_stack_with_tasks_of_unequal_size(stack_of):
    typed = ("measure=plasticity", "strategy=finetune", "epochs=1")
    together = live(stack_of(*typed, seeds=[0, 1, 2]))[1]
    for r in range(3):
        alone = live(stack_of(*typed, seeds=[r]))[1]
        for mine, other in zip(together, alone, strict=True):
            for column in COLUMNS:
                assert mine.health[r][column] == pytest.approx(other.health[0][column], rel=1e-6)


@pytest.mark.parametrize(
    "typed", [["model=cnn", "model.width=2"], ["model=resnet18", "model.width=3", "model.norm=batch"]]
)
def test_channels_are_units(stack_of, typed):
    _, report = second_stage(stack_of("measure=plasticity", "strategy=finetune", *typed))
    assert 0 <= report.health[0]["dead_share"] <= 1
    assert 1 <= report.health[0]["effective_rank"] <= 24


def test_a_network_without_hidden_layers(stack_of):
    _, report = second_stage(stack_of("measure=plasticity", "strategy=finetune", "model=linear"))
    assert np.isnan(report.health[0]["dead_share"]) and np.isnan(report.health[0]["effective_rank"])
    assert report.health[0]["weight_norm"] > 0


@pytest.mark.parametrize("strategy", ["hat", "imm", "joint", "ncm", "separate", "er"])
def test_every_kind_of_strategy(stack_of, strategy):
    reports = live(stack_of("measure=plasticity", f"strategy={strategy}"))[1]
    assert np.isfinite([reports[0].health[0][column] for column in COLUMNS]).all()
    assert ("dead_share" in reports[1].health[0]) == (strategy != "joint")  # which is done after the first task


def test_a_run_that_has_diverged_harms_none(stack_of):
    stack = stack_of("measure=plasticity", "strategy=finetune", seeds=[0, 1])
    run = stack.initialize()
    run.theta[0] = torch.nan
    _, report = stack.learn(run, 0)
    assert np.isnan(report.health[0]["effective_rank"]) and np.isfinite(report.health[1]["effective_rank"])


def test_training_is_the_same_with_and_without(stack_of):
    with_it, _ = live(stack_of("measure=plasticity", "strategy=er"))
    without, reports = live(stack_of("strategy=er"))
    assert torch.equal(with_it.theta, without.theta)
    assert "weight_norm" not in reports[0].health[0]


def test_only_runs_that_ask_for_it_have_another_identity(settings_of):
    plain, asked = settings_of("strategy=ewc"), settings_of("strategy=ewc", "measure=plasticity")
    assert plain.identity("x") != asked.identity("x")
    assert "measure" not in plain.not_default
