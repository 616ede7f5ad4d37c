"""Capturing what is done to tensors that stay where they are, so that it is done again without Python: CUDA graphs.

A graph repeats kernels on the addresses that they had when it was captured. So the captured function may read and write
only tensors that outlive the graph, may not wait for the device, and does not run again: what it computed in Python is
fixed. `scripts/benchmark/emulation.py` captures in the same sense on a CPU and finds what breaks these rules.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Protocol
from weakref import WeakSet

import torch

WARM_UP_CALLS = 3  # calls before a graph is captured, in which CUDA's libraries set themselves up

Body = Callable[[], None]


class Capture(Protocol):
    """An object that captures functions."""

    def capture(self, body: Body, undo: Body) -> Body:
        """Return a function that does again what `body` does. What capturing itself did has been undone by `undo`."""


class CudaCapture:
    """A capture of CUDA graphs, which share the memory of their temporary tensors: no two run at the same time, and
    none leaves a result there.

    check_inputs: whether to raise an error if a tensor that a graph reads is freed before it is replayed, which costs
    time and is for debugging.
    """

    def __init__(self, device: torch.device, check_inputs: bool = False):
        self.device, self.check_inputs = device, check_inputs
        self.graphs: WeakSet[torch.cuda.CUDAGraph] = WeakSet()  # those that somebody still replays

    def capture(self, body: Body, undo: Body) -> Body:
        """Return the replay of a graph of `body`, which is called `WARM_UP_CALLS` times and then captured."""
        side = side_stream(self.device)
        with torch.cuda.device(self.device), without_collection():
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UP_CALLS):
                    body()
                    undo()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # Memory that was that of dropped graphs alone may not be asked for again: PyTorch takes it for an error.
            sharing = next(iter(self.graphs), None)
            pool = None if sharing is None else sharing.pool()
            # Passed only where it is asked for: PyTorch knows it since 2.13.
            checks: dict[str, Any] = {"check_input_liveness": True} if self.check_inputs else {}
            with torch.cuda.graph(graph, pool=pool, stream=side, **checks):
                body()
        self.graphs.add(graph)
        return graph.replay


@cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream of this process on which everything is warmed up and captured.

    CUDA's libraries keep memory for every stream that they were used on, tens of MB each.
    """
    return torch.cuda.Stream(device)


@contextmanager
def without_collection() -> Iterator[None]:
    """Collect no garbage meanwhile: a dead CUDA graph that is freed while another is captured may spoil it."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
