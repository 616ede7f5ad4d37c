"""Sums over samples of a measure (square or absolute value) of each entry of each sample's own gradient.

The gradient of a sample's value with respect to a layer's parameters is a product of the layer's input a and of
d = d value / d (the layer's output). The closed form uses this:

    linear layer    the gradient of a sample is d a^T. Square and absolute value of a product are the product of the
                    squares and absolute values, so the sum over samples is measure(d)^T measure(a): one matrix
                    product, exact. As `a` does not depend on the cotangent, all cotangents share that product.
    convolution     the gradient of a sample is d unfold(a)^T, a sum over positions in the image, so each sample needs
                    a product of its own.
    linear layer    on several positions of a sample, as of tokens: a sum over positions, as of a convolution.
    norm            the gradient of the scale is the sum over positions of d times the normalised input, that of the
                    shift the sum of d.

Where a network or a strategy does not allow it, the gradients are computed one sample at a time by vmap.

Shapes: B samples, C outputs, K values a sample, P parameters.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clrun.data.batches import Batch, Pool
from clrun.models import BatchNormMode, Weights, Window, batch_norm
from clrun.strategy.base import Strategy, Tree
from clrun.strategy.gradients import inside_transform

# Samples per chunk in closed form if all layers are linear; on a GPU, GPU_FACTOR times as many.
LINEAR_SAMPLES = 1024
GPU_FACTOR = 8

# Samples per chunk, at most, if there are convolutions or no closed form.
CONV_SAMPLES = 64

# Floats, at most, of per-sample gradients held at once: of one convolution, or of all of theta without a closed form.
GRADIENT_FLOATS = 2**24

# The kinds of layer that have a closed form.
CLOSED_FORM_LAYERS = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm)

# The shape of each layer's output, for one sample, by name.
Shapes = Mapping[str, tuple[int, ...]]


class PerSampleMeasure(NamedTuple):
    """What is differentiated for each sample, and what of the gradient is summed.

    `values` maps logits (B, C) and active (B, C) to values (B, K). `cotangents` maps the values and the batch to
    cotangents (B, K), which are 0 for samples of weight 0. `measure` is torch.square or torch.abs.
    """

    values: Callable[[Tensor, Tensor], Tensor]
    cotangents: Callable[[Tensor, Batch], Iterator[Tensor]]
    measure: Callable[[Tensor], Tensor]


def sum_over_samples(
    strategy: Strategy, theta: Tensor, state: Tree, hp: Any, pool: Pool, what: PerSampleMeasure,
    chunk_samples: int | None = None,
) -> Tensor:  # fmt: skip
    """Return sum over samples and cotangents v of measure(d (values . v) / d theta): (P,).

    It is 0 for the parameters that the strategy added to theta. `chunk_samples` is the number of samples that are
    computed at once, by default as many as memory allows; up to rounding, the result does not depend on it.
    """
    theta, total = theta.detach(), torch.zeros_like(theta)
    shapes = output_shapes(strategy, theta, state, hp, next(strategy.data.chunks(pool, 1)))
    size = chunk_samples or strategy.data.share(default_chunk_samples(strategy, theta, shapes))
    for batch in strategy.data.chunks(pool, size):
        if shapes is None:
            total = total + one_by_one(strategy, theta, state, hp, batch, what)
        else:
            total = total + closed_form(strategy, theta, state, hp, batch, what, shapes)
    return torch.where(network_mask(strategy, theta), total, 0)


def default_chunk_samples(strategy: Strategy, theta: Tensor, shapes: Shapes | None) -> int:
    """Return the number of samples of a chunk of one run: as many as the constants above allow for this network."""
    if shapes is None:
        return max(1, min(CONV_SAMPLES, GRADIENT_FLOATS // len(theta)))
    layers = strategy.net.network.layers
    summed = (m for n, m in layers.items() if isinstance(m, nn.Conv2d) or has_positions(m, shapes[n]))
    kernels = [layer.get_parameter("weight").numel() for layer in summed]
    if kernels:
        return max(1, min(CONV_SAMPLES, GRADIENT_FLOATS // max(kernels)))
    return LINEAR_SAMPLES * (1 if theta.device.type == "cpu" else GPU_FACTOR)


def has_positions(layer: nn.Module, shape: tuple[int, ...]) -> bool:
    """Return whether a linear layer is applied to several positions of a sample, such as tokens."""
    return isinstance(layer, nn.Linear) and len(shape) > 1


def network_mask(strategy: Strategy, theta: Tensor) -> Tensor:
    """Return a mask (P,) bool of the entries of theta that are the network's and not added by the strategy."""
    names = strategy.net.network.parameters()
    return strategy.net.layout.where(lambda name: name in names, theta)


# ---------------------------------------------------------------- whether there is a closed form


class ShapeRecorder(Weights):
    """Weights that append name and output shape of a layer to `recorded` each time that the layer is applied."""

    def __init__(
        self,
        pieces: Mapping[str, Tensor],
        mode: BatchNormMode,
        recorded: list[tuple[str, tuple[int, ...]]],
    ):
        super().__init__(pieces, mode)
        self.recorded = recorded

    def forward_hook(self, name: str, x: Tensor, z: Tensor, window: Window | None = None) -> Tensor:
        self.recorded.append((name, tuple(z.shape[1:])))
        return z


def output_shapes(strategy: Strategy, theta: Tensor, state: Tree, hp: Any, batch: Batch) -> Shapes | None:
    """Return the output shapes of all layers, or None if there is no closed form.

    There is none if `logits` does not read the network once at theta itself (`Strategy.reads_once`), under autocast,
    with a layer of another kind, and if `forward` does not apply each layer exactly once by the functions of Weights.
    """
    layers = strategy.net.network.layers
    plain = strategy.reads_once and strategy.net.autocast is None
    if not plain or not all(isinstance(layer, CLOSED_FORM_LAYERS) for layer in layers.values()):
        return None
    recorded: list[tuple[str, tuple[int, ...]]] = []

    def reader(pieces: Mapping[str, Tensor], mode: BatchNormMode) -> Weights:
        return ShapeRecorder(pieces, mode, recorded)

    recording = replace(strategy, net=replace(strategy.net, reader=reader))
    recording.logits(theta, state, hp, batch.x[:1], batch.t[:1])
    recorded = [(name, shape) for name, shape in recorded if name in layers]  # the others are not trained
    return dict(recorded) if sorted(name for name, _ in recorded) == sorted(layers) else None


# ---------------------------------------------------------------- the closed form


class LayerRecord(NamedTuple):
    """What a forward pass leaves behind: the input and the output of each layer, by name.

    `outputs` are the tensors that gradients are taken with respect to. If `perturbed`, they are zeros, given before the
    pass, that are added to the outputs of the layers; otherwise the pass enters the outputs themselves.
    """

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    perturbed: bool

    def differentiable(self, name: str, z: Tensor) -> Tensor:
        """Return the output z of a layer, as a function of the tensor that a gradient is taken with respect to."""
        if self.perturbed:
            return z + self.outputs[name]
        self.outputs[name] = z.requires_grad_()
        return self.outputs[name]


class RecordingWeights(Weights):
    """Weights that enter the input and the output of each layer into a `LayerRecord`."""

    def __init__(
        self,
        pieces: Mapping[str, Tensor],
        mode: BatchNormMode,
        layers: Mapping[str, nn.Module],
        record: LayerRecord,
    ):
        super().__init__(pieces, mode)
        self.layers, self.record = layers, record

    def forward_hook(self, name: str, x: Tensor, z: Tensor, window: Window | None = None) -> Tensor:
        if name not in self.layers:
            return z
        self.record.inputs[name] = self.effective_input(name, self.layers[name], x, window)
        return self.record.differentiable(name, z)

    def effective_input(self, name: str, layer: nn.Module, x: Tensor, window: Window | None) -> Tensor:
        """Return what the weight of a layer is multiplied with.

        For a linear layer it is x (B, in), for a convolution the unfolded image (B, in * kernel^2, positions), for a
        norm the normalised image (B, C, H, W).
        """
        x = x.detach()
        if isinstance(layer, nn.Conv2d):
            assert window is not None  # a convolution states it
            return F.unfold(x, layer.weight.shape[2:], window.dilation, window.padding, window.stride)
        if isinstance(layer, nn.LayerNorm):
            return F.layer_norm(x, layer.normalized_shape, eps=layer.eps)
        if isinstance(layer, nn.GroupNorm):
            return torch.group_norm(x, layer.num_groups, eps=layer.eps)
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            return batch_norm(x, self.mode.weight_of(x), *self.running_moments(name), None, None, layer.eps)[0]
        return x


def closed_form(
    strategy: Strategy, theta: Tensor, state: Tree, hp: Any, batch: Batch, what: PerSampleMeasure, shapes: Shapes
) -> Tensor:
    """Return the sum (P,) over the samples of one batch, layer by layer."""
    layers, layout = strategy.net.network.layers, strategy.net.layout

    def values(record: LayerRecord) -> Tensor:
        def reader(pieces: Mapping[str, Tensor], mode: BatchNormMode) -> Weights:
            return RecordingWeights(pieces, mode, layers, record)

        recording = replace(strategy, net=replace(strategy.net, reader=reader))
        return what.values(recording.logits(theta, state, hp, batch.x, batch.t), batch.active)

    value, inputs, pull = pullback(values, lambda: {n: theta.new_zeros(len(batch.y), *s) for n, s in shapes.items()})
    linear = [name for name, layer in layers.items() if isinstance(layer, nn.Linear) and len(shapes[name]) == 1]
    linear_sums: dict[str, Tensor] = {}  # {linear layer: sum over cotangents of measure(d) (B, out)}
    pieces = {name: theta.new_zeros(()) for name in layout.shapes}  # parameters of no layer have no gradient
    for cotangent in what.cotangents(value, batch):
        d = pull(cotangent)
        linear_sums = {name: add_measure(linear_sums.get(name), what.measure, d[name]) for name in linear}
        for name in layers.keys() - linear_sums.keys():
            for parameter, g in sample_gradients(name, layers[name], inputs[name], d[name]).items():
                if parameter in pieces:
                    pieces[parameter] = pieces[parameter] + what.measure(g).sum(0)
    pieces |= {f"{name}.weight": total.mT @ what.measure(inputs[name]) for name, total in linear_sums.items()}
    pieces |= {f"{name}.bias": total.sum(0) for name, total in linear_sums.items()}
    trained = ((name, v) for name, v in pieces.items() if name in layout.shapes)
    return layout.flat({name: v.reshape(layout.shapes[name]) if v.dim() else v for name, v in trained})


def add_measure(total: Tensor | None, measure: Callable[[Tensor], Tensor], v: Tensor) -> Tensor:
    """Return total + measure(v); for squares without a tensor in between."""
    if total is None:
        return measure(v)
    return torch.addcmul(total, v, v) if measure is torch.square else total + measure(v)


def sample_gradients(name: str, layer: nn.Module, inputs: Tensor, d: Tensor) -> dict[str, Tensor]:
    """Return each sample's gradients (B, ...) of the parameters of a layer, for d (B, ...) of its output's shape.

    A linear layer may have positions, as of tokens: inputs (B, ..., in) and outputs (B, ..., out).
    """
    if isinstance(layer, nn.Linear | nn.LayerNorm):
        entries = 1 if isinstance(layer, nn.Linear) else len(layer.normalized_shape)  # dimensions without positions
        d, inputs = (v.reshape(len(v), -1, *v.shape[v.dim() - entries :]) for v in (d, inputs))
        weight = d.mT @ inputs if isinstance(layer, nn.Linear) else (d * inputs).sum(1)
        return {f"{name}.weight": weight} | ({} if layer.bias is None else {f"{name}.bias": d.sum(1)})
    d = d.reshape(*d.shape[:2], -1)
    if isinstance(layer, nn.Conv2d):  # each group of channels is a convolution by itself
        groups = (layer.groups, -1)
        weight = d.unflatten(1, groups) @ inputs.unflatten(1, groups).mT
    else:
        weight = (d * inputs.reshape(*d.shape[:2], -1)).sum(2)
    return {f"{name}.weight": weight} | ({} if layer.bias is None else {f"{name}.bias": d.sum(2)})


def pullback(
    f: Callable[[LayerRecord], Tensor], zeros: Callable[[], dict[str, Tensor]]
) -> tuple[Tensor, dict[str, Tensor], Callable[[Tensor], dict[str, Tensor]]]:
    """Return the value of f, the inputs of the layers, and the map from a cotangent of the value to gradients.

    The gradients are those with respect to the layers' outputs; `zeros` makes tensors of their shapes. Outside a
    transform it uses plain autograd, because `torch.func.vjp` imports the compiler.
    """
    if inside_transform():
        return functional_pullback(f, zeros())
    record = LayerRecord({}, {}, perturbed=False)
    with torch.enable_grad():
        value = f(record)

    def pull(cotangent: Tensor) -> dict[str, Tensor]:
        grads = torch.autograd.grad(value, list(record.outputs.values()), cotangent, retain_graph=True)
        return dict(zip(record.outputs, grads, strict=True))

    return value.detach(), record.inputs, pull


def functional_pullback(
    f: Callable[[LayerRecord], Tensor], zeros: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor], Callable[[Tensor], dict[str, Tensor]]]:
    """Return the same as `pullback`, by `torch.func.vjp`, which also works inside a stack."""

    def perturbed(outputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        record = LayerRecord({}, outputs, perturbed=True)
        return f(record), record.inputs

    # With has_aux=True vjp returns three values; its annotation also allows for two.
    result = cast(
        "tuple[Tensor, Callable[..., Any], dict[str, Tensor]]", torch.func.vjp(perturbed, zeros, has_aux=True)
    )
    value, pull, inputs = result
    return value, inputs, lambda cotangent: pull(cotangent, retain_graph=True)[0]


# ---------------------------------------------------------------- without a closed form


def one_by_one(strategy: Strategy, theta: Tensor, state: Tree, hp: Any, batch: Batch, what: PerSampleMeasure) -> Tensor:
    """Return the sum (P,) over the samples of one batch, from a gradient of each sample by vmap."""

    def values(theta: Tensor, x: Tensor, t: Tensor, active: Tensor) -> Tensor:
        return what.values(strategy.logits(theta, state, hp, x[None], t[None]), active[None])[0]

    def gradient(x: Tensor, t: Tensor, active: Tensor, cotangent: Tensor) -> Tensor:
        return torch.func.grad(lambda theta: values(theta, x, t, active) @ cotangent)(theta)

    value = what.values(strategy.logits(theta, state, hp, batch.x, batch.t), batch.active)
    total = torch.zeros_like(theta)
    for cotangent in what.cotangents(value, batch):
        total = total + what.measure(torch.vmap(gradient)(batch.x, batch.t, batch.active, cotangent)).sum(0)
    return total
