"""Learning without forgetting against a loop over samples, old tasks and outputs, in float64."""

from math import exp, log

import pytest
import torch
from conftest import live
from helpers import as_class, rows_of
from torch import nn

from clrun.models import updated_statistics
from clrun.strategies.lwf import LwF

TEMPERATURE, LAMBDA, STAGE = 3.0, 0.7, 2


def logits_of(theta, x):
    """The 64-12-8-C MLP by hand."""
    module = nn.Sequential(
        nn.Linear(64, 12),
        nn.ReLU(),
        nn.Linear(12, 8),
        nn.ReLU(),
        nn.Linear(8, (len(theta) - 64 * 12 - 12 - 96 - 8) // 9),
    ).double()
    names = dict(module.named_parameters())
    sizes = [p.numel() for p in names.values()]
    pieces = {n: v.view(p.shape) for (n, p), v in zip(names.items(), theta.split(sizes), strict=True)}
    return torch.func.functional_call(module, pieces, (x.flatten(1),))


def softmax(values):
    total = sum(exp(v) for v in values)
    return [exp(v) / total for v in values]


def value_by_hand(new, old, batch, groups, squared):
    """Cross entropy on the true labels + lambda sum over groups of old outputs of the teacher's KL to the student."""
    total = 0.0
    for b in range(len(batch.y)):
        open_ = [c for c in range(new.shape[1]) if batch.active[b, c]]
        total -= log(softmax([new[b, c].item() for c in open_])[open_.index(int(batch.y[b]))])
        for group in groups:
            p = softmax([old[b, c].item() / TEMPERATURE for c in group])
            q = softmax([new[b, c].item() / TEMPERATURE for c in group])
            kl = sum(pi * log(pi / qi) for pi, qi in zip(p, q, strict=True))
            total += LAMBDA * kl * (TEMPERATURE**2 if squared else 1)
    return total / len(batch.y)


def loss_by_torch(new, old, batch, groups):
    """The same as the paper writes it, with cross entropies, for its gradient."""
    total = nn.functional.cross_entropy(new.masked_fill(~batch.active, -torch.inf), batch.y)
    for group in groups:
        p = nn.functional.softmax(old[:, group] / TEMPERATURE, 1)
        total = total + LAMBDA * nn.functional.cross_entropy(new[:, group] / TEMPERATURE, p)
    return total


# (scenario, active, heads) -> the groups of outputs distilled in the third of five tasks of two classes
CASES = {
    ("task", "seen", "per_head"): [[0, 1], [2, 3]],
    ("task", "seen", "together"): [[0, 1, 2, 3]],
    ("domain", "seen", "per_head"): [[0, 1], [0, 1]],
    ("domain", "seen", "together"): [[0, 1]],
    ("class", "seen", "per_head"): [[0, 1, 2, 3]] * 2,
    ("class", "seen", "together"): [[0, 1, 2, 3]],
    ("class", "all", "together"): [list(range(10))],
}


def third_task(stack):
    """After two tasks: strategy, run, a batch of the third, a theta that has moved."""
    run = stack.initialize()
    for stage in range(STAGE):
        run, _ = stack.learn(run, stage)
    (batch,) = stack.strategy.data.chunks(stack.pool(STAGE, "train", torch.float64).first(9), 9)
    moved = run.theta + 0.1 * torch.randn(len(run.theta), generator=torch.Generator().manual_seed(0)).double()
    return run, batch, moved


@pytest.mark.parametrize(("case", "groups"), CASES.items(), ids=map("-".join, CASES))
@pytest.mark.parametrize("squared", [False, True])
def test_lwf_is_its_equation(stack_of, case, groups, squared):
    scenario, active, heads = case
    stack = stack_of(
        "strategy=lwf", f"scenario={scenario}", f"active={active}", f"heads={heads}", f"lambda={LAMBDA}",
        f"temperature={TEMPERATURE}", f"temperature_squared={squared}",
    )  # fmt: skip
    run, batch, moved = third_task(stack)
    old, new = (logits_of(theta, batch.x) for theta in (run.theta, moved))
    value, aux = stack.strategy.loss(moved, run.state, stack.hp, batch)
    assert value.item() == pytest.approx(value_by_hand(new, old, batch, groups, squared), rel=1e-12)
    assert aux["distillation"] > 1e-6
    if not squared:
        leaf = moved.clone().requires_grad_()
        (theirs,) = torch.autograd.grad(loss_by_torch(logits_of(leaf, batch.x), old, batch, groups), leaf)
        ours, _, _ = stack.strategy.gradient(moved, run.state, stack.hp, batch)
        assert (ours - theirs).abs().max() < 1e-12


def test_samples_of_no_weight_do_not_count(stack_of):
    stack = stack_of("strategy=lwf")
    run, batch, moved = third_task(stack)
    weight = torch.tensor([1.0] * 5 + [0.0] * 4).double()
    some = batch._replace(weight=weight, mean_weight=weight / 5)
    few = some.first(5)
    one, other = (stack.strategy.gradient(moved, run.state, stack.hp, b) for b in (some, few))
    assert (one[0] - other[0]).abs().max() < 1e-14
    assert one[1].item() == pytest.approx(other[1].item())


def test_the_teacher_of_a_network_with_batch_norm_is_at_rest(stack_of):
    """It teaches what was evaluated: the running statistics of its time, not those of a batch of the new task."""
    stack = stack_of(
        "strategy=lwf",
        "model=resnet18",
        "model.width=2",
        "model.norm=batch",
        "iterations=2",
        "split.classes=[[0,1],[2,3]]",
    )
    run, _ = stack.learn(stack.initialize(), 0)
    records = []
    stack.strategy.net.train_mode(None, records)(run.theta, torch.rand(8, 1, 8, 8).double())
    seen = updated_statistics(run.stats, records)
    assert all(torch.equal(run.state.statistics[name], v) for name, v in run.stats.items())
    assert not any(torch.equal(run.state.statistics[name], v) for name, v in seen.items())
    (batch,) = stack.strategy.data.chunks(stack.pool(1, "train", torch.float64).first(8), 8)
    resting = stack.strategy.eval_mode(run.stats)
    assert resting.loss(run.theta, run.state, stack.hp, batch)[1]["distillation"].abs() < 1e-12
    assert stack.strategy.loss(run.theta, run.state, stack.hp, batch)[1]["distillation"] > 1e-6


class Unchanged(LwF):
    """LwF in which the student never differs from the teacher."""

    def divergence(self, old, new, batch):
        return 0 * new.sum()


def test_a_lwf_that_does_nothing_says_so(stack_of):
    knobs = {"lambda": 1.0}
    _, reports = live(stack_of("strategy=lwf", "tasks=2"))
    assert LwF.warnings(rows_of(reports), knobs) == []
    stack = stack_of("strategy=lwf", "tasks=2")
    stack.strategy = as_class(stack.strategy, Unchanged)
    _, reports = live(stack)
    (warning,) = LwF.warnings(rows_of(reports), knobs)
    assert "finetuning" in warning
    assert LwF.warnings(rows_of(reports), {"lambda": 0.0}) == []
