"""Our SGD, Adam and AdamW against torch.optim, in float64, with three learning rates at once."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map

from clrun.optimizers import SGD, Adam, AdamW, Optimizer

RATES = (1e-3, 1e-2, 3e-2)
CASES = {
    "sgd": (SGD(), lambda p, lr: torch.optim.SGD(p, lr)),
    "momentum": (SGD(0.9), lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9)),
    "momentum and decay": (
        SGD(0.9, weight_decay=0.01),
        lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9, weight_decay=0.01),
    ),
    "nesterov": (
        SGD(0.9, True, 0.01),
        lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9, nesterov=True, weight_decay=0.01),
    ),
    "adam": (Adam(), lambda p, lr: torch.optim.Adam(p, lr)),
    "adam and decay": (Adam(0.01), lambda p, lr: torch.optim.Adam(p, lr, weight_decay=0.01)),
    "adamw": (AdamW(0.01), lambda p, lr: torch.optim.AdamW(p, lr, weight_decay=0.01)),
}


def gradient(theta, step, curvature, centre):
    return curvature * (theta - centre) + torch.cos(theta + step)


@pytest.mark.parametrize("case", CASES)
def test_equals_torch(case):
    ours, theirs = CASES[case]
    draw = torch.Generator().manual_seed(0)
    start, curvature, centre = (torch.rand(3, 50, generator=draw, dtype=torch.float64) for _ in range(3))
    rates = torch.tensor(RATES, dtype=torch.float64)
    theta, state = start, torch.vmap(ours.init)(start)
    for step in range(100):
        delta, state = torch.vmap(ours.update)(gradient(theta, step, curvature, centre), state, rates, theta)
        theta = theta + delta
    for r, rate in enumerate(RATES):
        parameter = start[r].clone().requires_grad_()
        optimizer = theirs([parameter], rate)
        for step in range(100):
            parameter.grad = gradient(parameter.detach(), step, curvature[r], centre[r])
            optimizer.step()
        assert (theta[r] - parameter.detach()).abs().max() < 1e-10


@pytest.mark.parametrize("case", CASES)
def test_in_place_is_the_same_step(case):
    """And g, which a strategy may still want, is left as it was."""
    ours, _ = CASES[case]
    draw = torch.Generator().manual_seed(0)
    theta, curvature, centre = (torch.rand(50, generator=draw, dtype=torch.float64) for _ in range(3))
    lr = torch.tensor(1e-2, dtype=torch.float64)
    there, written = theta.clone(), tree_map(torch.clone, ours.init(theta))
    state, move = ours.init(theta), ours.in_place(there, written, lambda v: list(v.split([20, 30])))
    for step in range(100):
        g = gradient(there, step, curvature, centre)
        kept = g.clone()
        move(g.split([20, 30]), lr)
        assert torch.equal(g, kept)
        delta, state = ours.update(gradient(theta, step, curvature, centre), state, lr, theta)
        theta = theta + delta
    torch.testing.assert_close(there, theta, rtol=0, atol=1e-10)
    for one, other in zip(tree_leaves(written), tree_leaves(state), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_an_optimizer_that_states_only_its_equation_has_a_step_in_place():
    class Sign(Optimizer):
        def update(self, g, state, lr, theta):
            return -lr * g.sign(), (state[0] + 1,)

    theta, state = torch.zeros(3), (torch.zeros(()),)
    move = Sign().in_place(theta, state, lambda v: list(v.split([1, 2])))
    move([torch.tensor([1.0]), torch.tensor([-2.0, 0.0])], torch.tensor(0.5))
    assert theta.tolist() == [-0.5, 0.5, 0.0] and state[0] == 1


@pytest.mark.parametrize("stacked", [False, True], ids=["alone", "stack"])
@pytest.mark.parametrize("case", CASES)
def test_kernels_get_what_a_card_demands(case, stacked, monkeypatch):
    """On CUDA, a rate in float32 whatever theta is in, and gradients of which each number has memory of its own."""
    seen = []

    def noted(kernel):
        def call(parameters, gradients, *more, lr, **options):
            seen.append((lr.dtype, [v.is_contiguous() for v in gradients]))

        return call

    for name in ("_fused_sgd_", "_fused_adam_", "_fused_adamw_"):
        monkeypatch.setattr(torch, name, noted(name))
    ours, shape = CASES[case][0], (2, 5) if stacked else (5,)
    with FakeTensorMode():
        theta = torch.zeros(shape, dtype=torch.float64, device="cuda")
        one_number = torch.ones((), dtype=torch.float64, device="cuda").expand(shape)
        rate = torch.ones(shape[:-1], dtype=torch.float64, device="cuda")
        if stacked:
            ours.in_place_stack(theta, torch.vmap(ours.init)(theta), [[0], [1]])([one_number], rate)
        else:
            ours.in_place(theta, ours.init(theta), lambda v: [v])([one_number], rate)
    assert seen == [(torch.float32, [True])] * (2 if stacked else 1)
