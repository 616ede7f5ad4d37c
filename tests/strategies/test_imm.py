"""Incremental moment matching against loops over tasks, samples, units and parameters, in float64."""

import pytest
import torch
from conftest import live
from helpers import as_class, rows_of
from torch import nn

from clrun.strategies.imm import IMM, uniform
from clrun.system.errors import UsageError

KNOBS = {"merge": "mode", "lambda": 0.0, "drop": 0.0, "fisher_samples": None}
HEAD = 64 * 12 + 12 + 12 * 8 + 8  # where the head's weights begin in the 64-12-8-10 network


def mlp(theta, outputs):
    module = nn.Sequential(nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, outputs)).double()
    nn.utils.vector_to_parameters(theta.clone(), module.parameters())
    return module


def pixels(stack, image):
    data = stack.strategy.data
    return (data.images[image].double() * data.scale + data.shift).flatten(1)


def brute_fisher(stack, theta, stage, outputs):
    """mean_n sum_y p(y) (d log p(y) / d theta)^2 over the given outputs, a backward pass a sample and label."""
    module = mlp(theta, stack.strategy.data.outputs)
    total, images = torch.zeros_like(theta), stack.streams[0].train[stage]
    for image in images:
        log_p = module(pixels(stack, image[None]))[0, outputs].log_softmax(0)
        for value in log_p:
            grads = torch.autograd.grad(value, list(module.parameters()), retain_graph=True)
            total += value.exp().item() * torch.cat([g.flatten() for g in grads]) ** 2
    return total / len(images)


def owner(j, outputs):
    """The output whose weight or bias the j-th parameter is; None for a hidden layer's."""
    if j < HEAD:
        return None
    return (j - HEAD) // 8 if j < HEAD + 8 * outputs else j - HEAD - 8 * outputs


ANSWER = {  # the outputs that may answer in tasks 1, 2 and 3 of two classes
    "task": ([0, 1], [2, 3], [4, 5]),
    "domain": ([0, 1], [0, 1], [0, 1]),
    "class": ([0, 1], [0, 1, 2, 3], [0, 1, 2, 3, 4, 5]),
}


@pytest.mark.parametrize("scenario", ANSWER)
@pytest.mark.parametrize("merge", ["mean", "mode"])
def test_merged_is_an_average_over_tasks(stack_of, scenario, merge):
    stack = stack_of("strategy=imm", f"scenario={scenario}", f"merge={merge}", "lambda=0.001")
    run, thetas, weights = stack.initialize(), [], []
    outputs = stack.strategy.data.outputs
    for stage, answering in enumerate(ANSWER[scenario]):
        run, _ = stack.learn(run, stage)
        F = brute_fisher(stack, run.theta, stage, answering) + 1e-8 if merge == "mode" else torch.ones_like(run.theta)
        mine = [owner(j, outputs) in (None, *answering) for j in range(len(F))]
        thetas.append(run.theta)
        weights.append([F[j].item() if mine[j] else 0.0 for j in range(len(F))])
    expected = run.theta.tolist()
    for j in range(len(expected)):
        total = sum(w[j] for w in weights)
        if total > 0:
            expected[j] = sum(w[j] * theta[j].item() for w, theta in zip(weights, thetas, strict=True)) / total
    deployed = stack.strategy.deploy(run.theta, run.state, stack.hp)
    assert (deployed - torch.tensor(expected, dtype=torch.float64)).abs().max() < 1e-10
    assert (deployed - run.theta).abs().max() > 1e-3


def test_heads_of_other_tasks_keep_their_own(stack_of):
    """In a task-incremental stream each head is as its own task left it; those to come are as at birth."""
    stack = stack_of("strategy=imm", "merge=mean", "optimizer=sgd", "lr=0.1")
    run, first = stack.learn(stack.initialize(), 0)[0], None
    first = run.theta
    run, _ = stack.learn(run, 1)
    heads = stack.strategy.net.layout.view(stack.strategy.deploy(run.theta, run.state, stack.hp))["head.weight"]
    then, now, initializer = (
        stack.strategy.net.layout.view(v)["head.weight"] for v in (first, run.theta, stack.initialize().theta)
    )
    for part, source in ((slice(0, 2), then), (slice(2, 4), now), (slice(4, 10), initializer)):
        assert (heads[part] - source[part]).abs().max() < 1e-3 * heads.abs().max()


def test_without_transfers_it_trains_as_finetuning_does(stack_of):
    """Only what is evaluated differs: so there are no neutral strengths."""
    mine, _ = live(stack_of("strategy=imm", "lambda=0"))
    plain, _ = live(stack_of("strategy=finetune"))
    assert torch.equal(mine.theta, plain.theta)


@pytest.mark.parametrize("drop", [0.0, 0.4])
def test_transfers_are_their_equations(stack_of, drop):
    """Three SGD steps of the second task: every sample has, unit by unit, its own network."""
    stack = stack_of("strategy=imm", f"drop={drop}", "lambda=0.05", "optimizer=sgd", "lr=0.05", "iterations=3")
    run, _ = stack.learn(stack.initialize(), 0)
    start, theta = run.theta, run.theta.clone().requires_grad_()
    rows, weight, *_, noise = stack.schedule.sampler(0, 1, "train").sample(0, 3)
    before = mlp(start, 10)
    for i in range(3):
        image = rows[i][weight[i] > 0] % len(stack.strategy.data.images)
        loss = 0.05 * sum((theta[j] - start[j]) ** 2 for j in range(len(start)))
        for n, x in enumerate(pixels(stack, image)):
            pieces = dict(
                zip(dict(before.named_parameters()), stack.strategy.net.layout.view(theta).values(), strict=True)
            )
            unit = 0
            for layer in ("0", "2"):
                W, b = pieces[f"{layer}.weight"], pieces[f"{layer}.bias"]
                old = before.get_parameter(f"{layer}.weight").detach(), before.get_parameter(f"{layer}.bias").detach()
                lines = []
                for k in range(len(b)):
                    unit += 1
                    u = drawn(noise[i, :, n], unit)
                    new = [(p - drop * q) / (1 - drop) for p, q in ((W[k], old[0][k]), (b[k], old[1][k]))]
                    w, c = (old[0][k], old[1][k]) if u < drop else new
                    lines.append(w @ x + c)
                x = torch.stack(lines).relu()
            z = pieces["4.weight"] @ x + pieces["4.bias"]
            label = stack.tables.label[1][stack.strategy.data.labels[image[n]]]
            loss = loss - z[2:4].log_softmax(0)[label - 2] / len(image)
        (g,) = torch.autograd.grad(loss, theta)
        theta = (theta - 0.05 * g).detach().requires_grad_()
    ours, _ = stack.train(run, stack.new_stage(1))
    assert (theta - start).abs().max() > 1e-3
    assert (ours.theta - theta).abs().max() < 1e-12


def drawn(noise, unit):
    """The polynomial over the integers modulo 2^24 - 3, in Python's own numbers."""
    a, b, c = (int(noise[r].item() * 2**24) for r in range(3))
    return (a + b * unit + c * unit**2) % (2**24 - 3) / (2**24 - 3)


def test_draws_of_three_units_are_independent():
    u = uniform(torch.rand(6, 40000, generator=torch.Generator().manual_seed(0)), 5, 300)
    assert u.min() >= 0
    assert u.max() < 1
    off = (u < 0.3).double()
    assert (off.mean(0) - 0.3).abs().max() < 0.012
    for i, j, k in ((0, 1, 2), (0, 128, 256), (3, 100, 299)):
        assert (off[:, i] * off[:, j]).mean().item() == pytest.approx(0.09, abs=0.006)
        assert (off[:, i] * off[:, j] * off[:, k]).mean().item() == pytest.approx(0.027, abs=0.004)


def test_a_convolutional_net_drops_channels(stack_of):
    """With the same theta before and now nothing is dropped, whatever is drawn; and stacked is as alone."""
    overrides = (
        "strategy=imm",
        "drop=0.5",
        "model=cnn",
        "model.width=2",
        "iterations=2",
        "fisher_samples=8",
        "tasks=2",
    )
    stack = stack_of(*overrides)
    run = stack.initialize()
    (batch,) = stack.strategy.data.chunks(stack.pool(0, "train", torch.float64).first(8), 8)
    plain = stack_of("strategy=finetune", *overrides[2:5], "tasks=2").strategy.loss(run.theta, (), None, batch)[0]
    assert stack.strategy.loss(run.theta, run.state, stack.hp, batch)[0].item() == pytest.approx(
        plain.item(), abs=1e-12
    )
    moved = stack.strategy.loss(run.theta + 0.1, run.state, stack.hp, batch)[0]
    assert moved.item() != pytest.approx(plain.item(), abs=1e-3)
    together, _ = live(stack_of(*overrides, seeds=(0, 1)))
    for seed in (0, 1):
        alone, _ = live(stack_of(*overrides, seeds=(seed,)))
        assert (together.theta[seed] - alone.theta).abs().max() < 1e-9


def test_drop_transfer_compiles_whole(stack_of):
    stack = stack_of("strategy=imm", "drop=0.5", "tasks=2")
    run, _ = stack.learn(stack.initialize(), 0)
    (batch,) = stack.strategy.data.chunks(stack.pool(1, "train", torch.float64).first(8), 8)
    torch._dynamo.reset()
    compiled = torch.compile(stack.strategy.gradient, fullgraph=True, backend="aot_eager")
    one, other = (f(run.theta + 0.1, run.state, stack.hp, batch) for f in (compiled, stack.strategy.gradient))
    assert (one[0] - other[0]).abs().max() < 1e-12


def test_what_cannot_work_is_refused(stack_of):
    with pytest.raises(UsageError, match=r"type model\.norm=group"):
        stack_of("strategy=imm", "model=resnet18", "model.width=2", "model.norm=batch")
    with pytest.raises(UsageError, match="type merge=mode"):
        stack_of("strategy=imm", "merge=mean", "fisher_samples=10")


class Unmerged(IMM):
    """IMM in which no output could ever answer, so that no parameters are merged."""

    def could_answer(self, theta, pool):
        return torch.zeros_like(theta)


def test_an_imm_that_does_nothing_says_so(stack_of):
    _, reports = live(stack_of("strategy=imm", "tasks=2"))
    assert IMM.warnings(rows_of(reports), KNOBS) == []
    stack = stack_of("strategy=imm", "tasks=2")
    stack.strategy = as_class(stack.strategy, Unmerged)
    _, reports = live(stack)
    (warning,) = IMM.warnings(rows_of(reports), KNOBS)
    assert "did nothing" in warning
