"""A bare loop over ResNet-18 with batch norm whose step is a CUDA graph, as a process; see worker.py. Only torch."""

from collections.abc import Mapping
from typing import Any

from benchmark.worker import Answer, Clock, one_thread, serve


def run(spec: Mapping[str, Any]) -> Answer:
    """The steps of all tasks, without evaluation. memory_mb: at most, on CUDA."""
    import torch

    from benchmark.bare_resnet import steps_of

    torch.set_num_threads(1)
    cuda = spec["device"] == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    clock = Clock(torch.cuda.synchronize if cuda else lambda: None)
    with clock.phase("whole"):
        taken = steps_of(spec, clock)
    clock.count("training", taken)
    memory = torch.cuda.max_memory_allocated() / 1e6 if cuda else None
    note = "full batches alone, recorded as a CUDA graph" if cuda else "full batches alone"
    return {"phases": clock.phases, "memory_mb": memory, "note": note}


if __name__ == "__main__":
    one_thread()
    serve(run)
