"""A short life on a device that is not there (`elsewhere.py`), in which everything that meets the host is noted."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from elsewhere import DEVICE, IN_PLACE_KERNELS, VALUE_READERS, Elsewhere
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves, tree_map

from clrun.engine.stack import Stack
from clrun.engine.state import PartialStage, TrainState
from clrun.runs.build import build
from clrun.runs.checkpointer import Checkpointer, restore_run
from clrun.runs.prepared import Prepared
from clrun.runs.recording import new_outcome

COPIES = {"_to_copy", "copy_"}
DRAWS = {"rand", "randn", "rand_like", "randn_like", "randperm", "randint", "bernoulli", "multinomial"}


class FakeDevice(Elsewhere):
    """A device that is not there and counts no bytes.

    seen: how often an operation met the host, by (within, operation). within: "step" while a training step is taken,
    "consolidation" while a pass is consolidated (`Stack.consolidate`), otherwise "". waits: those of them for which the
    host waits, since it is given values of the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.within, self.copied = "", 0  # copied: numbers that the host was given
        self.seen: Counter[tuple[str, str]] = Counter()
        self.waits: Counter[tuple[str, str]] = Counter()

    @contextmanager
    def noting(self, within: str) -> Iterator[None]:
        before, self.within = self.within, within
        try:
            yield
        finally:
            self.within = before

    def met(self, within: str) -> dict[str, int]:
        """Return how often each operation met the host there."""
        return {name: count for (where, name), count in self.seen.items() if where == within}

    def waited(self, within: str) -> dict[str, int]:
        """Return how often the host waited there for each operation."""
        return {name: count for (where, name), count in self.waits.items() if where == within}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = list(tensors_among((*args, *kwargs.values())))
        there = [v for v in tensors if isinstance(v, FakeTensor)]
        to = torch.device(kwargs["device"]).type if kwargs.get("device") is not None else None
        if not there and to != DEVICE.type:
            return func(*args, **kwargs)
        name = func._schema.name.split("::")[1]
        if to == "cpu" or name in VALUE_READERS:
            self.seen[self.within, name] += 1
            self.waits[self.within, name] += 1
            self.copied += there[0].numel()
            return self.on_the_host(name, there[0], kwargs.get("dtype"))
        host = [v for v in tensors if not isinstance(v, FakeTensor)]
        fused = name.startswith(IN_PLACE_KERNELS)
        # A host tensor of one number is an argument of a kernel. Anything else has to be copied, and a fused optimizer
        # reads a learning rate of the host once, when it is captured.
        if name in DRAWS or (host and (fused or name in COPIES or any(v.dim() for v in host))):
            self.seen[self.within, name] += 1
        if fused:
            return None
        if host:
            args, kwargs = tree_map(self.faked, (args, kwargs))
        with self.fake:
            return func(*args, **kwargs)

    def count(self, tree: Any) -> None:
        """Count no bytes, which would take longer than all else."""

    def capture(self, body: Callable[[], None], undo: Callable[[], None]) -> Callable[[], None]:
        """Call what a capture of CUDA graphs is given, and note what of it meets the host."""
        with self.noting("step"):
            body()
        undo()
        return body


def tensors_among(values: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the tensors among the arguments of an operation and in its lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_among(value)


@dataclass
class WatchedStack(Stack):
    """A stack on a fake device, which is told when a pass is consolidated."""

    there: FakeDevice = field(default_factory=FakeDevice)

    def consolidate(self, current: TrainState, partial: PartialStage) -> TrainState:
        with self.there.noting("consolidation"):
            return super().consolidate(current, partial)


def live_a_life(there: FakeDevice, runs: Sequence[Prepared], **changes: Any) -> TrainState:
    """Build runs on a fake device, learn two tasks, write checkpoints and begin again from them.

    changes: of fields of the stack, such as use_graph.
    """
    with there:
        plain = build(runs, device=DEVICE)
        own = {one.name: getattr(plain, one.name) for one in fields(plain)} | {"use_graph": True, "capture": there}
        stack = WatchedStack(**own | changes, there=there)
        outcomes = [new_outcome(prepared, stack) for prepared in runs]
        state = stack.initialize()
        for stage in range(2):
            state, _ = stack.learn(state, stage)
        checkpointer = Checkpointer(stack, outcomes, 0, print, dict)
        point = checkpointer.after_tasks(state, 2)
        saved = [checkpointer.checkpoint_of(point, r, {}) for r in range(len(runs))]
        assert not any(isinstance(v, FakeTensor) for one in saved for v in one.tensors.values())
        again = restore_run(stack, saved)
    assert [v.shape for v in tree_leaves(again)] == [v.shape for v in tree_leaves(state)]
    assert all(v.device == DEVICE for v in tree_leaves((state, again)))
    return state
