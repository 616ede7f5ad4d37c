"""A small quadratic program with bounds, in a fixed number of operations.

    minimize over v   1/2 v^T A v + b^T v      where v >= floor

A (n, n) is symmetric positive definite. The active-set method of Lawson & Hanson (1974, chapter 23) ends after finitely
many steps. Here each step is written with masks, and as many are taken as such programs of n unknowns need, so that
runs of a stack take the same ones, and nothing waits for a value.
"""

import torch
from torch import Tensor

from clrun.strategy.closed_form import solved

# Steps for each unknown. Each frees one unknown or binds some again; programs of GEM's kind need 1 to 2.
STEPS_PER_UNKNOWN = 3

# A gradient above it, as a share of the largest entry, is not an improvement any more.
TOLERANCE = 1e-12


def bounded_minimum(A: Tensor, b: Tensor, floor: Tensor, there: Tensor) -> Tensor:
    """Return v (n,) of type float64, where floor is (). Unknowns not `there` (n,) bool do not count, and are 0."""
    A, b, floor = A.double(), b.double(), floor.double()
    both = there[:, None] & there
    A = torch.where(both, A, torch.eye(len(b), dtype=A.dtype, device=A.device))
    start = torch.where(there, floor, 0).to(A)
    c = torch.where(there, b, 0) + torch.where(both, A, 0) @ start  # in u = v - floor >= 0: 1/2 u^T A u + c^T u
    u, free = torch.zeros_like(c), torch.zeros_like(there)
    for _ in range(STEPS_PER_UNKNOWN * len(b)):
        u, free = step(A, c, u, free, there)
    return u + start


def step(A: Tensor, c: Tensor, u: Tensor, free: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """Return u (n,) >= 0 and the unknowns that are `free` (n,) bool after one step.

    If u is the minimum over the free unknowns, the one with the steepest descent is freed as well. Then u goes as far
    to the minimum over the free ones as it stays >= 0, and those that have come to 0 there are bound again.
    """
    descent = torch.where(there & ~free, -(A @ u + c), -torch.inf)
    z = minimum(A, c, free)
    settled = (torch.where(free, z - u, 0).abs() <= TOLERANCE * u.abs().max()).all()
    steepest = torch.arange(len(c), device=c.device) == descent.argmax()
    free = free | (settled & steepest & (descent > TOLERANCE * c.abs().max()))
    z = minimum(A, c, free)
    falling = free & (z <= 0)
    length = torch.where(falling, u / (u - z).clamp(min=torch.finfo(u.dtype).tiny), torch.inf).min().clamp(max=1)
    u = torch.where(free, u + length * (z - u), 0)
    bound = falling & (u <= TOLERANCE * u.abs().max())
    return torch.where(bound, 0, u), free & ~bound


def minimum(A: Tensor, c: Tensor, free: Tensor) -> Tensor:
    """Return the minimum (n,) over the free unknowns, the others being 0."""
    among = torch.where(free[:, None] & free, A, torch.eye(len(c), dtype=A.dtype, device=A.device))
    return solved(among, torch.where(free, -c, 0)[:, None])[:, 0]
