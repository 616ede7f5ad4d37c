"""Herding (Welling 2009; Rebuffi et al. 2017, algorithm 4): samples whose mean stays near to that of their class.

    p_r = argmin_x || mu - (phi(x) + sum_{j<r} phi(p_j)) / r ||,   r = 1, 2, ...

phi(x) are the features of a sample, of norm 1, mu is their mean over the class, and no sample is taken twice. The first
r of them represent the class as well as r samples can that are chosen one after the other, so a class is made smaller
by leaving out the last ones.

Shapes: n samples, D features, K classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from clrun.strategy.loss import one_hot


def class_means(features: Tensor, y: Tensor, weight: Tensor, classes: int) -> Tensor:
    """Return the means (K, D) of features (n, D) over the samples of each class y (n,), 0 for a class without any.

    Samples of weight (n,) 0 are left out.
    """
    member = one_hot(y, classes).to(features) * weight[:, None]  # (n, K)
    return member.T @ features / member.sum(0).clamp(min=1)[:, None]


def herding_keys(features: Tensor, y: Tensor, weight: Tensor, classes: int, count: int) -> Tensor:
    """Return a key (n,) float64 for each sample, the smaller the earlier it is chosen among its class y (n,).

    The first `count` of each class are chosen by herding and have the keys 0, 1, ...; the others follow by the distance
    of their features to the mean. features (n, D) need not have norm 1 yet.
    """
    phi = F.normalize(features, dim=1)
    mean = class_means(phi, y, weight, classes)
    of_class = one_hot(y, classes).T & (weight > 0)  # (K, n)
    at_mean = (phi @ mean.T).gather(1, y[:, None])[:, 0]  # mu . phi(x)
    square = phi.square().sum(1)
    keys = count + (phi - mean.index_select(0, y)).square().sum(1).double()
    at_chosen, left = torch.zeros_like(square), of_class
    for r in range(1, count + 1):
        distance = (2 * at_chosen + square) / r**2 - 2 * at_mean / r
        best, chosen = torch.where(left, distance, torch.inf).min(1)  # (K,)
        mine = one_hot(chosen, len(y)) & best.isfinite()[:, None]
        keys = torch.where(mine.any(0), r - 1, keys)
        left = left & ~mine
        at_chosen = at_chosen + (phi @ phi.index_select(0, chosen).T).gather(1, y[:, None])[:, 0]
    return keys
