"""This machine: its processor, its cores, and its memory."""

import os
import sys
from functools import cache
from pathlib import Path

from clrun.system.errors import UsageError


@cache
def device_name(device: str) -> str:
    """Return the kind of a device and its model, such as 'cuda (NVIDIA H100)' or 'cpu (AMD EPYC 7763)'; the kind alone
    where the system does not state the model. device: as PyTorch names it."""
    kind = device.split(":")[0]
    if kind == "cuda":
        import torch  # late: a CPU is named without it

        return f"{kind} ({torch.cuda.get_device_name(device)})"
    model = processor_name(Path("/proc/cpuinfo"))
    return f"{kind} ({model})" if model else kind


def processor_name(cpuinfo: Path) -> str:
    """Return the model of the processor, from Linux's list of processors; empty where there is no such list."""
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


@cache
def memory_bytes() -> int:
    """Return the size of this machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def refuse_if_too_large(needed: int, what: str, instead: str) -> None:
    """Raise UsageError if this many bytes exceed the machine's memory, before any of them is allocated: the system
    would kill the process.

    what, instead: the cause and the remedy, such as "dataset.pad=9 (images of 26 x 26 pixels)" and "a smaller one".
    """
    if needed > memory_bytes():
        raise UsageError(
            f"{what} takes about {needed / 1e9:.3g} GB of memory, and this machine has {memory_bytes() / 1e9:.3g}; "
            f"type {instead}."
        )


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
