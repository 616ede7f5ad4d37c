"""Our SGD, Adam and AdamW against torch.optim, in float64, with three learning rates at once."""

import pytest
import torch
from torch.utils._pytree import tree_map

from clrun.optimizers import SGD, Adam, AdamW

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
def test_probe_sees_what_is_not_finite(case):
    """In theta as in every tensor of the state that the update reads."""
    ours, _ = CASES[case]
    theta = torch.linspace(-1, 1, 5)  # with a zero, which would hide an inf in a plain product if 0 * inf were 0
    state = ours.update(torch.ones(5), ours.init(theta), torch.tensor(0.1), theta)[1]
    assert ours.probe(state, theta).isfinite()
    assert not ours.probe(state, theta.clone().index_fill(0, torch.tensor(1), torch.nan)).isfinite()
    second = tree_map(lambda v: v.clone().fill_(torch.inf) if v.dim() else v, state)
    if any(v.numel() for v in state if v.dim()):
        assert not ours.probe(second, theta).isfinite()
