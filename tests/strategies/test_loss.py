"""The cross entropy is PyTorch's own, also where runs are stacked and it is written out."""

import pytest
import torch
import torch.nn.functional as F
from torch.func import grad_and_value, vmap

from clrun.strategy import losses


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses_and_gradients_of_a_stack_are_pytorchs_bit_for_bit(dtype):
    R, B, C = 3, 16, 10
    random = torch.Generator().manual_seed(0)
    logits = 8 * torch.randn(R, B, C, generator=random, dtype=dtype)
    logits[0, 0] = 1e4 * torch.eye(C, dtype=dtype)[3]  # whose probabilities are 0 and 1
    y = torch.randint(4, (R, B), generator=random)
    weight = torch.rand(R, B, generator=random, dtype=dtype)
    active = torch.arange(C) < 4

    def weighted(logits, y, weight):
        of_samples = losses(logits, y, active.expand(B, C))
        return (of_samples * weight).sum(), of_samples

    g, (_, of_samples) = vmap(grad_and_value(weighted, has_aux=True))(logits, y, weight)
    for r in range(R):
        leaf = logits[r].clone().requires_grad_()
        theirs = F.cross_entropy(torch.where(active, leaf, -1e9), y[r], reduction="none")
        (theirs * weight[r]).sum().backward()
        assert torch.equal(of_samples[r], theirs) and torch.equal(g[r], leaf.grad)
