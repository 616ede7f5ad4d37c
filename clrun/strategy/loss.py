"""Cross entropy over the outputs that may answer."""

import torch
import torch.nn.functional as F
from torch import Tensor

from clrun.data.batches import Batch
from clrun.strategy.gradients import inside_transform

BARRED = -1e9  # the logit of an output that may not answer


def one_hot(y: Tensor, outputs: int) -> Tensor:
    """Return, for labels y (B,), the mask (B, outputs) bool of each sample's output.

    Unlike torch.nn.functional.one_hot it reads no value on the host, and works inside gradients of stacked runs.
    """
    return y[:, None] == torch.arange(outputs, device=y.device)


def log_softmax(logits: Tensor, active: Tensor) -> Tensor:
    """Return log probabilities (B, C) of logits (B, C), with a softmax over the outputs in `active` (B, C) bool."""
    return torch.where(active, logits, BARRED).log_softmax(-1)


def losses(logits: Tensor, y: Tensor, active: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the cross entropy (B,) of each sample, from logits (B, C), labels y (B,) and `active` (B, C) bool.

    The softmax of a sample is over its active outputs. smoothing: the share of the target that is spread evenly over
    them, the label's own output included (Szegedy et al. 2016, section 7); the rest is the label's.
    """
    of_label = of_labels(torch.where(active, logits, BARRED), y)
    if smoothing == 0:
        return of_label
    of_all = -torch.where(active, log_softmax(logits, active), 0).sum(-1) / active.sum(-1).clamp(min=1)
    return (1 - smoothing) * of_label + smoothing * of_all


def of_labels(logits: Tensor, y: Tensor) -> Tensor:
    """Return the cross entropy (B,) of logits (B, C) with labels y (B,).

    In a stack, PyTorch's own function would become thirteen kernels more on a GPU, of which most look for labels that
    are to be ignored. The numbers and their gradients are the same, bit for bit.
    """
    if inside_transform():
        return -logits.log_softmax(-1).gather(-1, y[:, None])[:, 0]
    return F.cross_entropy(logits, y, reduction="none")


def smoothed(hard: Tensor, active: Tensor, smoothing: float) -> Tensor:
    """Return targets (B, C) of which the share `smoothing` is spread evenly over the active outputs (B, C) bool, from
    targets `hard` (B, C) that are 1 at the label."""
    if smoothing == 0:
        return hard
    return (1 - smoothing) * hard + smoothing * active / active.sum(-1, keepdim=True).clamp(min=1)


def cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    """Return the mean cross entropy () of logits (B, C) over the samples of the batch.

    Samples of weight 0 do not count, the softmax of a sample is over its active outputs, and labels are smoothed as the
    batch says.
    """
    return batch.mean(losses(logits, batch.y, batch.active, batch.smoothing))
