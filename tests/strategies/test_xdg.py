"""Context-dependent gating: what a task does not use, it neither reads nor changes."""

import pytest
import torch
from conftest import live

from clrun.system.errors import UsageError


def test_each_task_has_its_own_gates_of_one_size(stack_of):
    stack = stack_of("strategy=xdg", "gated=0.75", seeds=[0])
    gates = stack.initialize().state.gates
    assert [g.sum(1).tolist() for g in gates] == [[3] * 5, [2] * 5]
    assert len({tuple(row) for row in gates[0].tolist()}) > 1
    other = stack_of("strategy=xdg", "gated=0.75", seeds=[1]).initialize().state.gates
    assert not torch.equal(torch.cat(gates, 1), torch.cat(other, 1))


def test_one_unit_is_open_at_least(stack_of):
    assert all(g.sum(1).eq(1).all() for g in stack_of("strategy=xdg", "gated=0.99").initialize().state.gates)


def test_logits_are_those_of_the_open_units(stack_of):
    """Weights into and out of closed units are set to zero in an ordinary pass."""
    stack = stack_of("strategy=xdg", "gated=0.5")
    run, x = stack.initialize(), torch.rand(4, 1, 8, 8, dtype=torch.float64)
    for task in range(5):
        pieces = stack.strategy.net.layout.view(run.theta.clone())
        for name, gates in zip(("hidden.0", "hidden.1"), run.state.gates, strict=True):
            for part in ("weight", "bias"):
                pieces[f"{name}.{part}"][~gates[task]] = 0
        theta = stack.strategy.net.layout.flat(pieces)
        t = torch.full((4,), task)
        found = stack.strategy.logits(run.theta, run.state, stack.hp, x, t)
        assert torch.allclose(found, stack.strategy.net(theta, x), atol=1e-12)


def test_plain_sgd_leaves_what_is_closed(stack_of):
    stack = stack_of("strategy=xdg", "gated=0.5", "optimizer=sgd", "lr=0.5")
    first, _ = stack.learn(stack.initialize(), 0)
    second, _ = stack.learn(first, 1)
    old, new = (stack.strategy.net.layout.view(run.theta)["hidden.0.weight"] for run in (first, second))
    closed = ~first.state.gates[0][1]
    assert torch.equal(old[closed], new[closed])
    assert not torch.equal(old, new)


def test_channels_of_convolutions_are_gated(stack_of):
    run, reports = live(stack_of("strategy=xdg", "model=cnn", "model.width=4"))
    assert [g.shape for g in run.state.gates] == [(5, 4), (5, 8), (5, 32)]
    assert 0 < reports[-1].health[0]["gate_overlap"] < 1


@pytest.mark.parametrize(
    ("typed", "text"), [(["model=linear"], "no"), (["model=resnet18", "model.norm=batch"], "group")]
)
def test_networks_that_it_cannot_gate(prepared_of, typed, text):
    with pytest.raises(UsageError, match=text):
        prepared_of("strategy=xdg", *typed)
