"""Batch norm as a function: over the samples that are there, and with running statistics that it returns.

    m = sum_i w_i x_i      v = sum_i w_i (x_i - m)^2      y = (x - m) / sqrt(v + eps) * scale + shift

In a stack and in a CUDA graph, a batch that is short is filled up with samples of weight 0. The weights w here are
those, divided by their sum and by the number of positions of a sample. So the samples that only fill up do not count,
neither in the values nor in the gradients. The rest is as in Ioffe & Szegedy 2015 and `torch.nn.BatchNorm2d`.

How a network gets it right. `Network.forward(weights, x, ...)` calls `weights.batch_norm(name, x, eps, momentum)`, and
nothing else: `Weights` knows by its `mode` (a `BatchNormMode`) which samples are there, whether the network is in
training, and where the moments of the batch are recorded. A torch.nn.Module in which each BatchNorm layer is replaced
by a module that calls `weights.batch_norm` with the layer's name, eps and momentum is handled in the same way. It may
be a BatchNorm1d, 2d or 3d; `affine=False` (no parameters in theta) and `track_running_stats=False` (no entry in
`Network.statistics()`) work too. A layer that is frozen calls `batch_norm` below with constant statistics.

Where the running statistics come from. The engine gives the network a fresh list of records for each step
(`Net.train_mode`). Every forward pass in training mode appends a record for each batch norm, in order, and after the
step `updated_statistics` returns new running statistics. So they are those that one `torch.nn.BatchNorm2d` would have
after the same sequence of passes. It counts every pass that a strategy makes in training mode in a step. It does not
count passes in evaluation mode (`Net.eval_mode`, such as those of a teacher, of the Fisher information and of
evaluations), passes by `Net.unrecorded()`, and samples of weight 0.

Shapes: B samples, C channels, L positions of a sample (1 for (B, C), H W for (B, C, H, W)).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clrun.system.arithmetic import ceil_div

# The running means and variances of all batch norms: {"<layer>.mean": (C,), "<layer>.var": (C,)}. A layer with
# momentum=None, whose statistics are the means over all batches, has "<layer>.batches": () too, their number.
RunningStatistics = dict[str, Tensor]

GOLDEN_RATIO = 0.6180339887  # whose multiples, modulo 1, are far from each other

EPS = 1e-5  # the default of torch.nn.BatchNorm2d
MOMENTUM = 0.1  # the default of torch.nn.BatchNorm2d

KINDS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)  # the layers that have running statistics


class Moments(NamedTuple):
    """Mean and variance of each channel over the samples of a batch that are there."""

    mean: Tensor  # (C,)
    var: Tensor  # (C,) biased: the mean of squares, not divided by n - 1
    n: Tensor  # () values of each channel that they are of: samples times positions; 0 for an empty batch


class BatchNormRecord(NamedTuple):
    """What one batch norm has seen in one forward pass, detached from the gradient."""

    name: str  # of the layer
    moments: Moments
    momentum: float | None  # weight of this batch in the running statistics; None: 1 / the number of batches


@dataclass(frozen=True)
class BatchNormMode:
    """How the batch norms of a forward pass work.

    running: The running statistics, in evaluation mode; None in training mode, which uses those of the batch.
    sample_weight: (B,) 1, or 0 where there is no sample; None: all samples are there. For training mode.
    records: Where a pass in training mode appends its records; None: nowhere.
    noise: (K, B) uniform numbers of the step's batch in [0, 1), for dropout; None: there is none.
    """

    running: RunningStatistics | None = None
    sample_weight: Tensor | None = None
    records: list[BatchNormRecord] | None = None
    noise: Tensor | None = None

    def weight_of(self, x: Tensor) -> Tensor | None:
        """Return the sample weights (len(x),) of the input x of a layer; None if all samples are there.

        If x has more rows than there are samples, each sample counts as that many rows in succession, as after
        `x.flatten(0, 1)` of (B, patches, ...). Raise ValueError if the number of rows is no multiple.
        """
        weight = self.sample_weight
        if weight is None or len(weight) == len(x):
            return weight
        return weight.repeat_interleave(times(len(x), len(weight)))

    def of_batch(self, n: int) -> "BatchNormMode":
        """Return the mode for a pass of n samples: several batches, one after the other, of equal sample weights.

        A strategy that passes a batch and a replayed one through the network together is an example. Raise ValueError
        if n is no multiple of the number of sample weights.
        """
        weight, noise = self.sample_weight, self.noise
        if (weight is None or len(weight) == n) and (noise is None or noise.shape[-1] == n):
            return self
        if weight is not None and len(weight) != n:
            weight = weight.repeat(times(n, len(weight)))
        if noise is not None and noise.shape[-1] != n:
            noise = torch.cat(shifted(noise, ceil_div(n, noise.shape[-1])), 1)[:, :n]
        return BatchNormMode(self.running, weight, self.records, noise)

    def noise_of(self, x: Tensor) -> Tensor:
        """Return the noise (K, len(x)) of the input x of a layer. Raise RuntimeError where a pass has none."""
        if self.noise is None:
            raise RuntimeError("dropout in training mode needs the noise of a step: see Net.train_mode.")
        return torch.stack(shifted(self.noise, ceil_div(len(x), self.noise.shape[-1])), -1).flatten(1)[:, : len(x)]


def shifted(noise: Tensor, copies: int) -> list[Tensor]:
    """Return copies of uniform numbers in [0, 1), each shifted by another amount: the first is the noise itself.

    A sample that passes through a layer several times is thus dropped out differently each time. The shift does not
    depend on the number of samples in the batch, which is another one where a short batch is filled up.
    """
    return [(noise + k * GOLDEN_RATIO) % 1 for k in range(copies)]


def times(n: int, samples: int) -> int:
    """Return n / samples. Raise ValueError if that is no whole number."""
    if n % samples:
        raise ValueError(
            f"batch norm is given {n} samples, and knows of {samples} which of them are there; call the network by "
            "self.net.weighing(weight)(theta, x) with a weight, 1 or 0, for each sample of x."
        )
    return n // samples


def batch_norm(
    x: Tensor, sample_weight: Tensor | None, running_mean: Tensor | None, running_var: Tensor | None,
    scale: Tensor | None, shift: Tensor | None, eps: float = EPS,
) -> tuple[Tensor, Moments | None]:  # fmt: skip
    """Return the normalised x, of its shape and type, and the moments of the batch, through which gradients flow.

    x is (B, C) or (B, C, ...), sample_weight (B,) 1 or 0, or None for all ones; scale and shift are (C,) or None. With
    running mean and variance (C,) it is batch norm in evaluation mode, and the moments are None. Without them it is
    batch norm in training mode, over the samples that are there. If there are none, the values are finite, all samples
    are normalised as if they were there, and n is 0. Raise ValueError, as PyTorch does, where a channel is a
    single value.
    """
    if running_mean is not None and running_var is not None:
        # Under vmap, PyTorch's kernel refuses x in bfloat16 with statistics in float32.
        y = F.batch_norm(x.to(running_mean.dtype), running_mean, running_var, scale, shift, False, 0.0, eps)
        return y.to(x.dtype), None
    if x.numel() == x.shape[1]:
        raise ValueError(f"batch norm cannot normalise a single value per channel, an input of shape {tuple(x.shape)}.")
    if sample_weight is None:
        return whole_batch_norm(x, scale, shift, eps)
    return weighted_batch_norm(x, sample_weight, scale, shift, eps)


def whole_batch_norm(x: Tensor, scale: Tensor | None, shift: Tensor | None, eps: float) -> tuple[Tensor, Moments]:
    """Return batch norm of x (B, C, ...), all of whose samples are there, by PyTorch's own kernel, and the moments."""
    y, mean, rstd = torch.native_batch_norm(x, scale, shift, None, None, True, 0.0, eps)
    n = mean.new_full((), x.numel() // x.shape[1])
    return y, Moments(mean, (rstd.square().reciprocal() - eps).clamp(min=0), n)


def weighted_batch_norm(
    x: Tensor, sample_weight: Tensor, scale: Tensor | None, shift: Tensor | None, eps: float
) -> tuple[Tensor, Moments]:
    """Return batch norm of x (B, C, ...) over the samples whose weight (B,) is not 0, and their moments."""
    rows = x.reshape(*x.shape[:2], -1)
    rows = (
        rows.float() if rows.dtype in (torch.bfloat16, torch.float16) else rows
    )  # sums of many values need the digits
    weight = sample_weight.to(rows.dtype)
    total = weight.sum()
    share = torch.where(total > 0, weight / total.clamp(min=1), 1 / len(weight))
    scale = rows.new_ones(x.shape[1]) if scale is None else scale.to(rows.dtype)
    shift = rows.new_zeros(x.shape[1]) if shift is None else shift.to(rows.dtype)
    y, mean, var = WeightedBatchNorm.apply(rows, share, scale, shift, eps)
    return y.view(x.shape).to(x.dtype), Moments(mean, var, total * rows.shape[2])


class WeightedBatchNorm(torch.autograd.Function):
    """Batch norm of x (B, C, L) with shares (B,) of the samples, which sum to 1 -> y (B, C, L), m (C,), v (C,).

    The gradient is written out, so that nothing of the size of x is kept but x itself. With a = scale / sqrt(v + eps)
    and the gradients g of y, g_m of m and g_v of v,

        d m = g_m - a sum g          d v = g_v - scale / 2 (v + eps)^(-3/2) sum g (x - m)
        d x = a g + share / L (d m + 2 (x - m) d v).

    It consists of differentiable functions of its inputs and outputs, so second derivatives are right, too.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, share: Tensor, scale: Tensor, shift: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        mean = (share[:, None] * x.mean(2)).sum(0)
        centred = x - mean[:, None]
        var = (share[:, None] * torch.linalg.vecdot(centred, centred)).sum(0) / x.shape[2]
        a = scale * (var + eps).rsqrt()
        return torch.addcmul(shift[:, None], centred, a[:, None]), mean, var

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        x, share, scale, _, ctx.eps = inputs
        _, mean, var = output
        ctx.save_for_backward(x, share, scale, mean, var)

    @staticmethod
    def backward(ctx: Any, g: Tensor, g_mean: Tensor, g_var: Tensor) -> tuple[Tensor, None, Tensor, Tensor, None]:
        x, share, scale, mean, var = ctx.saved_tensors
        rstd, centred = (var + ctx.eps).rsqrt(), x - mean[:, None]
        total, product = g.sum(2).sum(0), torch.linalg.vecdot(g, centred).sum(0)
        a = scale * rstd
        d_mean = g_mean - a * total
        d_var = g_var - product * scale * rstd.pow(3) / 2
        of_moments = torch.addcmul(d_mean[:, None], centred, 2 * d_var[:, None])
        d_x = torch.addcmul(a[:, None] * g, of_moments, share[:, None, None] / x.shape[2])
        return d_x, None, product * rstd, total, None


# ---------------------------------------------------------------- running statistics


def initial_statistics(layers: dict[str, nn.Module]) -> RunningStatistics:
    """Return the running statistics that the batch norms among these layers hold: of new layers mean 0, variance 1."""
    statistics: RunningStatistics = {}
    for name, layer in layers.items():
        if isinstance(layer, KINDS) and layer.running_mean is not None and layer.running_var is not None:
            statistics |= {f"{name}.mean": layer.running_mean.clone(), f"{name}.var": layer.running_var.clone()}
            if layer.momentum is None and layer.num_batches_tracked is not None:
                statistics[f"{name}.batches"] = layer.num_batches_tracked.to(layer.running_mean)
    return statistics


def updated_statistics(statistics: RunningStatistics, records: Iterable[BatchNormRecord]) -> RunningStatistics:
    """Return the running statistics after these records, in their order; the ones given stay as they are.

    As in PyTorch, the running variance is that of unbiased estimates, which divide by n - 1. A record of an empty
    batch changes nothing, and neither does one of a layer that has no running statistics.
    """
    new = dict(statistics)
    for record in records:
        if f"{record.name}.mean" in new:
            new |= updated_layer(new, record)
    return new


def updated_layer(statistics: RunningStatistics, record: BatchNormRecord) -> RunningStatistics:
    """Return the entries of one layer in the running statistics after a record of it."""
    name, (mean, var, n), momentum = record
    unbiased = var * (n / (n - 1).clamp(min=1))
    old = {key: statistics[key] for key in (f"{name}.mean", f"{name}.var")}
    new: RunningStatistics = {}
    if momentum is None:
        new[f"{name}.batches"] = statistics[f"{name}.batches"] + (n > 0)
    for (key, v), of_batch in zip(old.items(), (mean, unbiased), strict=True):
        weight = momentum if momentum is not None else 1 / new[f"{name}.batches"].clamp(min=1)
        new[key] = torch.where(n > 0, v.lerp(of_batch.to(v.dtype), weight), v)
    return new
