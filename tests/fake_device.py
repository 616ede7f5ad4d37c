"""A device that is not there: tensors on it have shapes and no values, those of the host are real. Whatever a stack
does to its device is seen, for its whole life, without a card: copies, values that are waited for, tensors of two
devices that meet.

"lazy" is a type of device that needs no card, driver or stream, so that autograd works on it.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from clrun.data.sampler import EpochSampler
from clrun.engine.stack import Stack
from clrun.engine.state import PartialStage, TrainState
from clrun.engine.steppers import Stepper
from clrun.runs.build import build
from clrun.runs.checkpointer import Checkpointer, restore_run
from clrun.runs.prepared import Prepared
from clrun.runs.recording import new_outcome

DEVICE = torch.device("lazy:0")
# Operations whose result, or its shape, the host can know only once the device has computed it.
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal"}
DRAWS = {
    "rand",
    "randn",
    "randperm",
    "randint",
    "uniform_",
    "normal_",
    "bernoulli",
    "bernoulli_",
    "multinomial",
    "rand_like",
    "randn_like",
}
COPIES = {"_to_copy", "copy_"}


class FakeDevice(TorchDispatchMode):
    """A mode in which tensors on DEVICE are fake.

    seen: (within, operation) of what met the host. within: "step" while a training step is taken, "consolidation" while
    `Strategy.after_phase` is called, otherwise "".
    """

    def __init__(self) -> None:
        super().__init__()
        self.fake, self.within = FakeTensorMode(allow_non_fake_inputs=True), ""
        self.seen: set[tuple[str, str]] = set()

    @contextmanager
    def noting(self, within: str) -> Iterator[None]:
        before, self.within = self.within, within
        try:
            yield
        finally:
            self.within = before

    def met(self, within: str) -> set[str]:
        """Return the operations that met the host there."""
        return {name for where, name in self.seen if where == within}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = list(tensors_among((*args, *kwargs.values())))
        there = [v for v in tensors if isinstance(v, FakeTensor)]
        to = torch.device(kwargs["device"]).type if kwargs.get("device") is not None else None
        if not there and to != DEVICE.type:
            return func(*args, **kwargs)
        name = func._schema.name.split("::")[1]
        if to == "cpu" or name in WAITS or (name == "copy_" and not isinstance(args[0], FakeTensor)):
            self.seen.add((self.within, name))
            return self.answer(name, there[0], kwargs.get("dtype"))
        host = [v for v in tensors if not isinstance(v, FakeTensor)]
        # A host tensor of one number is an argument of a kernel. Anything else has to be copied.
        if name in DRAWS or (host and (name in COPIES or any(v.dim() for v in host))):
            self.seen.add((self.within, name))
        if host:
            args, kwargs = tree_map(self.faked, (args, kwargs))
        with self.fake:
            return func(*args, **kwargs)

    def faked(self, v: Any) -> Any:
        return self.fake.from_tensor(v) if isinstance(v, Tensor) and not isinstance(v, FakeTensor) else v

    def answer(self, name: str, v: Tensor, dtype: torch.dtype | None) -> Any:
        """Return zeros for values that are asked for, and one row where their number would depend on values."""
        if name == "_local_scalar_dense":
            return torch.zeros((), dtype=v.dtype).item()
        if name == "equal":
            return True
        if name in COPIES:
            return torch.zeros(v.shape, dtype=dtype or v.dtype)
        with self.fake:
            return torch.zeros(1, v.dim() or 1, dtype=torch.long, device=DEVICE)

    def __enter__(self) -> "FakeDevice":
        torch._C._set_only_lift_cpu_tensors(True)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch._C._set_only_lift_cpu_tensors(False)
        super().__exit__(*error)


def tensors_among(values: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the tensors among the arguments of an operation and in its lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_among(value)


@dataclass
class WatchedStack(Stack):
    """A stack on a fake device, which is told when a step is taken and when a pass is consolidated."""

    there: FakeDevice = field(default_factory=FakeDevice)

    def make_stepper(self, current: TrainState, samplers: Sequence[EpochSampler]) -> Stepper:
        stepper: Any = super().make_stepper(current, samplers)
        take_step = stepper.take_step

        def noted(*arguments: Any) -> Any:
            with self.there.noting("step"):
                return take_step(*arguments)

        stepper.take_step = noted
        return stepper

    def consolidate(self, current: TrainState, partial: PartialStage) -> TrainState:
        with self.there.noting("consolidation"):
            return super().consolidate(current, partial)


def live_a_life(there: FakeDevice, runs: Sequence[Prepared], **changes: Any) -> TrainState:
    """Build runs on a fake device, learn two tasks, write checkpoints and begin again from them.

    changes: of fields of the stack, such as use_graph.
    """
    with there:
        plain = build(runs, device=DEVICE)
        own = {one.name: getattr(plain, one.name) for one in fields(plain)} | {"use_graph": True}
        stack = WatchedStack(**own | changes, there=there)
        outcomes = [new_outcome(prepared, stack) for prepared in runs]
        state = stack.initialize()
        for stage in range(2):
            state, _ = stack.learn(state, stage)
        checkpointer = Checkpointer(stack, outcomes, 0, print, dict)
        point = checkpointer.after_tasks(state, 2)
        saved = [checkpointer.checkpoint_of(point, r) for r in range(len(runs))]
        assert not any(isinstance(v, FakeTensor) for one in saved for v in one.tensors.values())
        again = restore_run(stack, saved)
    assert [v.shape for v in tree_leaves(again)] == [v.shape for v in tree_leaves(state)]
    assert all(v.device == DEVICE for v in tree_leaves((state, again)))
    return state
