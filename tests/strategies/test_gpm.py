"""Gradient projection memory: the memory against SVDs as the paper writes them, and what the projection guarantees."""

import numpy as np
import pytest
import torch
from conftest import live

from clrun.strategies.gpm import grown_projection, principal
from clrun.system.errors import UsageError


def svd_memory(bases, inputs, threshold):
    """Eqs. 5 and 9 with an SVD: bases (in, k) or None, inputs (n, in) -> new bases."""
    R = inputs.T
    if bases is None:
        bases = np.zeros((len(R), 0))
    rest = R - bases @ bases.T @ R
    U, S, _ = np.linalg.svd(rest, full_matrices=False)
    held = (R**2).sum() - (S**2).sum()
    k = 0
    while held < threshold * (R**2).sum() and k < len(S):
        held += S[k] ** 2
        k += 1
    return np.hstack([bases, U[:, :k]])


@pytest.mark.parametrize("n", [7, 40])  # fewer and more than inputs
@pytest.mark.parametrize("threshold", [0.5, 0.9, 0.99])
def test_the_memory_is_that_of_the_paper(n, threshold):
    rng, bases, projection = np.random.default_rng(0), None, torch.zeros(20, 20, dtype=torch.float64)
    for _ in range(3):
        inputs = rng.standard_normal((n, 20)) * np.linspace(3, 0.1, 20)
        bases = svd_memory(bases, inputs, threshold)
        projection = grown_projection(projection, torch.as_tensor(inputs), torch.tensor(threshold))
        assert np.abs(projection.numpy() - bases @ bases.T).max() < 1e-8


def test_principal_directions_are_those_of_an_svd():
    for shape in ((7, 20), (40, 20)):
        vectors = torch.randn(*shape, dtype=torch.float64)
        energy, directions = principal(vectors)
        _, values, rows = torch.linalg.svd(vectors, full_matrices=False)
        assert torch.allclose(energy, values**2)
        assert torch.allclose((directions.mT @ rows.mT).abs(), torch.eye(min(shape), dtype=torch.float64), atol=1e-8)


@pytest.mark.parametrize("typed", [["optimizer=sgd", "lr=0.1"], ["optimizer=adam", "lr=0.01"], ["optimizer=adamw"]])
@pytest.mark.parametrize("model", [["model.widths=[12,8]"], ["model=cnn", "model.width=2"]])
def test_with_a_full_memory_old_answers_stay(stack_of, typed, model):
    """threshold=1 holds every direction of the samples that were looked at: their outputs for task 1 never change."""
    stack = stack_of("strategy=gpm", "threshold=1", "samples=5", *typed, *model, "scenario=task", "iterations=15")
    first, _ = stack.learn(stack.initialize(), 0)
    (batch,) = stack.strategy.data.chunks(stack.pool(0, "train", torch.float64).first(5), 5)
    second, _ = stack.learn(first, 1)
    third, _ = stack.learn(second, 2)
    net = stack.strategy.net
    learnt = batch.active[0]
    before, after = (net(run.theta, batch.x)[:, learnt] for run in (first, third))
    assert torch.allclose(before, after, atol=1e-7)
    others = torch.rand_like(batch.x)
    assert not torch.allclose(net(first.theta, others), net(third.theta, others), atol=1e-4)


NETWORKS = [
    ("scenario=task",),
    ("scenario=class", "model=cnn", "model.width=2"),
    ("scenario=domain", "optimizer=sgd", "lr=0.1"),
    ("model=resnet18", "model.width=3", "split.classes=[[0,1],[2,3]]"),  # with norms
]


@pytest.mark.parametrize("typed", NETWORKS, ids=" ".join)
def test_without_a_memory_it_is_finetuning(stack_of, typed):
    """In a stack bit for bit; alone, theta + delta - theta is rounded."""
    mine, plain = ([f"strategy={name}", *typed] for name in ("gpm", "finetune"))
    mine.append("threshold=0")
    together, as_plain = (live(stack_of(*texts, seeds=[0, 1]))[0] for texts in (mine, plain))
    assert torch.equal(together.theta, as_plain.theta)
    alone, alone_plain = (live(stack_of(*texts))[0] for texts in (mine, plain))
    assert (alone.theta - alone_plain.theta).abs().max() < 1e-9


@pytest.mark.parametrize("runs", [1, 2])
def test_a_layer_whose_memory_is_empty_takes_its_step_to_the_last_bit(stack_of, runs):
    """Also in a stack."""
    stack = stack_of("strategy=gpm", seeds=range(runs))
    strategy, run, hp = stack.strategy, stack.learn(stack.initialize(), 0)[0], stack.hp
    batch = next(strategy.data.chunks(stack_of("strategy=gpm").pool(1, "train", torch.float64), 8))
    delta = torch.randn_like(run.theta)
    emptied, _ = [name for name in run.state.projections if name != "head"]
    of_layer = strategy.net.layout.where(lambda name: name.startswith(f"{emptied}."), delta)
    empty = torch.zeros_like(run.state.projections[emptied])
    state = run.state._replace(projections=run.state.projections | {emptied: empty})
    restrict = stack.vectorizer.vectorize(
        lambda delta, theta, state, hp: strategy.restrict(delta, delta, theta, state, hp, batch)
    )
    taken = restrict(delta, run.theta, state, hp)
    assert torch.equal(taken[..., of_layer], delta[..., of_layer])
    assert not torch.equal(taken, delta)


def test_inputs_are_what_the_layers_are_applied_to(stack_of):
    stack = stack_of("strategy=gpm", "model=cnn", "model.width=2")
    run = stack.initialize()
    pool = stack.pool(0, "train", torch.float64).first(4)
    strategy = stack.strategy.eval_mode(run.stats)
    inputs = strategy.inputs(run.theta, pool)
    (batch,) = strategy.data.chunks(pool, 4)
    pieces = strategy.net.layout.view(run.theta)
    outputs = inputs["conv.0"] @ strategy.matrix(pieces, "conv.0").mT
    expected = torch.nn.functional.conv2d(batch.x, pieces["conv.0.weight"], pieces["conv.0.bias"], padding=1)
    assert torch.allclose(outputs, expected.flatten(2).mT.flatten(0, 1))
    assert torch.allclose(inputs["head"] @ strategy.matrix(pieces, "head").mT, strategy.net(run.theta, batch.x))


def test_new_outputs_are_free_and_old_ones_are_not(stack_of):
    stack = stack_of("strategy=gpm", "threshold=1", "samples=300", "scenario=class", "iterations=15")
    first, _ = stack.learn(stack.initialize(), 0)
    second, _ = stack.learn(first, 1)
    old, new = (stack.strategy.net.layout.view(run.theta)["head.weight"] for run in (first, second))
    assert torch.allclose(old[:2], new[:2], atol=1e-9)
    assert not torch.allclose(old[2:4], new[2:4], atol=1e-3)


def test_norms_are_trained_by_the_first_task_alone(stack_of):
    stack = stack_of("strategy=gpm", "model=resnet18", "model.width=3", "samples=8", "split.classes=[[0,1],[2,3]]")
    start = stack.initialize()
    first, _ = stack.learn(start, 0)
    second, _ = stack.learn(first, 1)
    norms = stack.strategy.net.layout.where(lambda name: "norm" in name, start.theta)
    assert not torch.equal(start.theta[norms], first.theta[norms])
    assert torch.equal(first.theta[norms], second.theta[norms])


def test_it_forgets_less(stack_of):
    typed = ("scenario=task", "optimizer=sgd", "lr=0.05", "iterations=100", "model.widths=[40,40]")
    mine, plain = (live(stack_of(f"strategy={name}", *typed))[1] for name in ("gpm", "finetune"))
    assert mine[-1].correct[0, :3].sum() > plain[-1].correct[0, :3].sum()


def test_batch_norm_is_refused(prepared_of):
    with pytest.raises(UsageError, match="group"):
        prepared_of("strategy=gpm", "model=resnet18", "model.norm=batch")


def test_numbers_that_are_not_finite_raise_nothing():
    inputs = torch.full((3, 4), torch.nan, dtype=torch.float64)
    assert grown_projection(torch.zeros(4, 4, dtype=torch.float64), inputs, torch.tensor(0.9)).isnan().all()
