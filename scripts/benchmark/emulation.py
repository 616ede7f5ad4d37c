"""CUDA graphs on a CPU: what is recorded is the operations below autograd and vmap, on the very memory. A replay runs
them again into the same memory, after everything that only the graph owns was overwritten. Python does not run again.

What a real capture refuses raises `Refused`: values that are waited for, shapes that depend on data, random numbers.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

Body = Callable[[], None]

WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal"}
DRAWING = {"rand", "randn", "rand_like", "randn_like", "randint", "randperm", "bernoulli", "bernoulli_", "uniform_"}
DRAWING |= {"normal_", "multinomial", "native_dropout"}

OF_ONE_MATRIX = {"cholesky_solve", "_cholesky_solve_helper"}  # of several, a card cannot record them

POISON = 1  # what integers are overwritten with; floats with nan


class Refused(Exception):
    """An operation that no CUDA graph can hold."""


class Spec(NamedTuple):
    """A tensor that an operation reads or writes."""

    shape: tuple[int, ...]
    bytes: int  # that are really there: an axis of stride 0 counts once
    storage: int  # a number of its memory


class Operation(NamedTuple):
    """One recorded operation."""

    call: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any  # new tensors; None where it writes into what it is given, or returns a view
    name: str
    view: bool
    ins: tuple[Spec, ...]
    outs: tuple[Spec, ...]


def tensors(tree: Any) -> list[torch.Tensor]:
    return [v for v in tree_leaves(tree) if isinstance(v, torch.Tensor)]


def spec(v: torch.Tensor) -> Spec:
    n = 1
    for size, stride in zip(v.shape, v.stride(), strict=True):
        n *= size if stride else 1
    return Spec(tuple(v.shape), n * v.element_size() if v.numel() else 0, v.untyped_storage()._cdata)


def held(v: Any) -> Any:
    """The same memory as another tensor, whose shape nothing changes any more; what is no tensor, as it is."""
    return v.detach() if isinstance(v, torch.Tensor) else v


class OperationLog(TorchDispatchMode):
    """Every operation while it is entered, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        of_several = name in OF_ONE_MATRIX and any(v.dim() > 2 for v in tensors(args))
        if name in WAITING | DRAWING or of_several:
            raise Refused(name)
        ins, given_to = tuple(spec(v) for v in tensors((args, kwargs))), tree_map(held, (args, kwargs))
        out = func(*args, **kwargs)
        aliases = [r.alias_info for r in func._schema.returns if r.alias_info is not None]
        outs = tuple(spec(v) for v in tensors(out))
        given = {one.storage for one in ins}
        unstated = not aliases and bool(outs) and all(one.storage in given for one in outs)  # such as _unsafe_view
        view = unstated or torch.Tag.inplace_view in func.tags or any(not alias.is_write for alias in aliases)
        fresh = None if aliases or view else tree_map(held, out)
        self.operations.append(Operation(func, *given_to, fresh, name, view, ins, outs))
        return out


class EmulatedGraph:
    """A capture that can be replayed."""

    def __init__(self, operations: list[Operation]):
        self.operations = operations
        self.played = [one for one in operations if not one.view]
        self.replays = 0

    def owned(self) -> Iterator[torch.Tensor]:
        """The tensors that the operations have made, and their memory as a whole."""
        storages = {v.untyped_storage()._cdata: v for one in self.played for v in tensors(one.out)}
        for v in storages.values():
            if v.untyped_storage().nbytes():
                yield torch.empty(0, dtype=v.dtype).set_(v.untyped_storage())

    def replay(self) -> None:
        self.replays += 1
        with torch.no_grad():
            for memory in self.owned():
                memory.fill_(torch.nan if memory.dtype.is_floating_point else POISON)
            for one in self.played:
                again = one.call(*one.args, **one.kwargs)
                for old, new in zip(tensors(one.out), tensors(again) if one.out is not None else (), strict=True):
                    old.copy_(new)


class EmulatedCapture:
    """A capture, as `clrun.engine.capture.Capture` says, whose graphs are emulated."""

    def __init__(self) -> None:
        self.graphs: list[EmulatedGraph] = []

    def capture(self, body: Body, undo: Body) -> Body:
        body()  # the warm-up
        undo()
        with OperationLog() as log:
            body()
        undo()
        self.graphs.append(EmulatedGraph(log.operations))
        return self.graphs[-1].replay
