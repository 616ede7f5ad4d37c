"""Cross entropy over the outputs that may answer."""

import torch
import torch.nn.functional as F
from torch import Tensor

from clrun.data.stream import Batch

BARRED = -1e9  # the logit of an output that may not answer


def log_softmax(logits: Tensor, active: Tensor) -> Tensor:
    """Over the active outputs. logits, active (B, C) -> (B, C)."""
    return torch.where(active, logits, BARRED).log_softmax(-1)


def losses(logits: Tensor, y: Tensor, active: Tensor) -> Tensor:
    """logits (B, C), labels (B,), active (B, C) -> (B,): cross entropies, softmax over a sample's active outputs."""
    return F.cross_entropy(torch.where(active, logits, BARRED), y, reduction="none")


def cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    """(B, C) -> (): mean over the samples that are there, softmax over their active outputs."""
    return batch.mean(losses(logits, batch.y, batch.active))
