"""How able the network of a run still is to learn: the columns that measure=plasticity adds to health.csv.

They are measured at the end of a stage, on the first samples of its last pass in random order, by the network with the
weights that the strategy deploys, in evaluation mode and without gates or masks of tasks (Dohare et al. 2024).

    dead_share       share of the hidden units (in convolutions: channels) whose activation is one and the same number
                     for all samples and positions; with ReLU, that is 0
    effective_rank   exp(- sum_k p_k log p_k), p_k = s_k / sum s, s_k the singular values of the features of the last
                     hidden layer (Roy & Vetterli 2007): how many directions they use
    weight_norm      Euclidean norm of the network's parameters
"""

from typing import Any

import torch
from torch import Tensor

from clrun.data.batches import Pool
from clrun.engine import hooks
from clrun.engine.state import TrainState
from clrun.strategy import Strategy, network_mask

# Samples that are measured, at most, and those of a pass.
SAMPLES = 512
CHUNK_SAMPLES = 64


def plasticity(strategy: Strategy, current: TrainState, hp: Any, pool: Pool) -> dict[str, Tensor]:
    """Return the columns of one run, each (); not a number where the network has no hidden layer."""
    evaluated = strategy.eval_mode(current.stats)
    theta = hooks.deployed(evaluated, current, hp)
    least: list[Tensor] = []
    largest: list[Tensor] = []
    features, weights = [], []
    for batch in evaluated.data.chunks(pool.first(SAMPLES), evaluated.data.share(CHUNK_SAMPLES)):
        lows, highs = extremes(evaluated, theta, batch.x, batch.weight)
        least = [torch.minimum(a, b) for a, b in zip(least, lows, strict=True)] if least else lows
        largest = [torch.maximum(a, b) for a, b in zip(largest, highs, strict=True)] if largest else highs
        features.append(evaluated.net.features(theta, batch.x))
        weights.append(batch.weight)
    seen = torch.cat(features) * torch.cat(weights)[:, None].to(theta.dtype)  # rows of zeros have no singular value
    nothing = theta.new_full((), torch.nan)
    dead = torch.cat([high <= low for low, high in zip(least, largest, strict=True)]) if least else None
    return {
        "dead_share": nothing if dead is None else dead.to(theta.dtype).mean(),
        "effective_rank": nothing if dead is None else effective_rank(seen),
        "weight_norm": torch.where(network_mask(strategy, theta), theta, 0).norm(),
    }


def extremes(strategy: Strategy, theta: Tensor, x: Tensor, weight: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Return the least and the largest activation (width,) of every unit of each hidden layer, over samples x (B, ...)
    of weight (B,) above 0."""
    lows: list[Tensor] = []
    highs: list[Tensor] = []

    def record(i: int, h: Tensor) -> Tensor:
        by_unit = h.flatten(2) if h.dim() > 2 else h[:, :, None]
        there = (weight > 0)[:, None]
        lows.append(torch.where(there, by_unit.amin(2), torch.inf).amin(0))
        highs.append(torch.where(there, by_unit.amax(2), -torch.inf).amax(0))
        return h

    strategy.net(theta, x, record)
    return lows, highs


def effective_rank(features: Tensor) -> Tensor:
    """Return the effective rank () of features (B, D); not a number where they are not finite or all are 0."""
    finite = features.isfinite().all()
    values = torch.linalg.svdvals(torch.where(finite, features, 0))  # a matrix that is not finite raises an error
    share = values / values.sum()
    return torch.where(finite, torch.special.entr(share).sum().exp(), torch.nan)
