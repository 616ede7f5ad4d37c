"""This machine: its processor, its cores, and its memory.

A size that cannot fit into memory is refused before any of it is allocated, because the system would kill the run.
"""

import os
from functools import cache
from pathlib import Path

from clrun.system.errors import UsageError


@cache
def device_name(device: str) -> str:
    """'cuda (NVIDIA H100)', 'cpu (AMD EPYC 7763)'; the bare kind where the system does not say the model."""
    kind = device.split(":")[0]
    if kind == "cuda":
        import torch

        return f"{kind} ({torch.cuda.get_device_name(device)})"
    model = processor_name(Path("/proc/cpuinfo"))
    return f"{kind} ({model})" if model else kind


def processor_name(cpuinfo: Path) -> str:
    """The processor's model name from Linux's list of processors; empty where there is none."""
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


@cache
def memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def refuse_if_too_large(needed: int, what: str, instead: str) -> None:
    """UsageError where this many bytes do not fit. what: "dataset.pad=9 (images of 26 x 26 pixels)"."""
    if needed > memory():
        raise UsageError(
            f"{what} takes about {needed / 1e9:.3g} GB of memory, and this machine has {memory() / 1e9:.3g}; "
            f"type {instead}."
        )


def cores() -> int:
    """CPU cores that this process may use."""
    usable = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(usable(0)) if usable else os.cpu_count() or 1
