"""The hidden layers of a module: the calls of its nonlinearities, which strategies may change before and after.

A hidden layer is named after the layer whose output the nonlinearity is given, where there is one. A module is a chain
if each of its layers is followed by a nonlinearity and gets its inputs from the one before alone, channel by channel.
That is found by trying it: a channel of a hidden layer is set to zero, or all of it is held while the picture changes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from clrun.models.batch_norm import BatchNormMode
from clrun.models.network import Tap, Weights, Window

# probe(x, training, tap, before, reader) -> the outputs of a network for x, with its initial values.
Probe = Callable[[Tensor, bool, Tap, Tap, Callable[..., Weights]], Tensor]

DIMENSIONS = (2, 4)  # of a hidden layer that has channels in its second dimension


@dataclass
class Trace:
    """What a pass has gone through: inputs and outputs of layers by name, and those of nonlinearities in order."""

    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    before: list[Tensor] = field(default_factory=list)
    after: list[Tensor] = field(default_factory=list)
    result: Tensor | None = None

    def source(self, z: Tensor) -> str | None:
        """Return the name of the layer whose output z is."""
        return next((name for name, output in self.outputs.items() if output is z), None)


class TracingWeights(Weights):
    """Weights that enter inputs and outputs of layers into a trace."""

    def __init__(self, pieces: Mapping[str, Tensor], mode: BatchNormMode, trace: Trace):
        super().__init__(pieces, mode)
        self.trace = trace

    def forward_hook(self, name: str, x: Tensor, z: Tensor, window: Window | None = None) -> Tensor:
        self.trace.inputs[name], self.trace.outputs[name] = x, z
        return z


def find(probe: Probe, layers: Sequence[str], x: Tensor) -> tuple[dict[int, int], tuple[str, ...], tuple[int, ...]]:
    """Return which calls of nonlinearities are hidden layers, call -> layer, and the names and widths of these.

    `probe` passes on every call of a nonlinearity as a hidden layer. `layers` are the names of the layers, and
    x is a batch of inputs.
    """
    trace = traced(probe, x, {})
    calls = [i for i, z in enumerate(trace.before) if z.dim() in DIMENSIONS]
    sources = [trace.source(trace.before[i]) for i in calls]
    taps = [source or f"activation.{i}" for i, source in zip(calls, sources, strict=True)]
    if [*layers] == [*taps, "head"] and not (len(calls) == len(trace.before) and is_chain(probe, layers, x, trace)):
        taps = [f"activation.{i}" for i in calls]
    widths = tuple(trace.before[i].shape[1] for i in calls)
    return {call: layer for layer, call in enumerate(calls)}, tuple(taps), widths


def traced(probe: Probe, x: Tensor, replaced: Mapping[int, Tensor]) -> Trace:
    """Return the trace of x in evaluation mode; `replaced` are outputs of nonlinearities, by the number of the call."""
    trace = Trace()

    def before(i: int, z: Tensor) -> Tensor:
        trace.before.append(z)
        return z

    def tap(i: int, h: Tensor) -> Tensor:
        trace.after.append(replaced.get(i, h))
        return trace.after[-1]

    reader = lambda pieces, mode: TracingWeights(pieces, mode, trace)  # noqa: E731
    trace.result = probe(x, False, tap, before, reader)
    return trace


def is_chain(probe: Probe, layers: Sequence[str], x: Tensor, trace: Trace) -> bool:
    """Return whether each layer gets its inputs from the hidden layer before it alone, channel by channel."""
    for i, (h, layer) in enumerate(zip(trace.after, [*layers][1:], strict=True)):
        open_ = torch.arange(h.shape[1], device=h.device) % 2
        gated = traced(probe, x, {i: h * open_.view(1, -1, *[1] * (h.dim() - 2))})
        inputs = trace.inputs[layer]
        if inputs.shape[1] % h.shape[1]:
            return False
        expected = open_.repeat_interleave(inputs.shape[1] // h.shape[1]).view(1, -1, *[1] * (inputs.dim() - 2))
        held = traced(probe, x.flip(0) + 1, {i: h})
        if not (torch.equal(gated.inputs[layer], inputs * expected) and torch.equal(held.inputs[layer], inputs)):
            return False
        if trace.result is None or held.result is None or not torch.equal(held.result, trace.result):
            return False
    return True
