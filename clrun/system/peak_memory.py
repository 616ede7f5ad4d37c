"""The largest memory that a run has used, on the GPU or in this process."""

import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

RESET = Path("/proc/self/clear_refs")  # Linux: writing "5" resets the peak, see proc(5)


def forget_peak() -> None:
    """Let `peak_memory` begin anew, where the device, or Linux, allows it."""
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    elif RESET.exists():
        with suppress(OSError):  # not allowed: the peak is then of the whole process, as on other systems
            RESET.write_text("5")


def peak_memory() -> int:
    """Return the largest number of bytes since `forget_peak`: allocated on the GPU where one is in use, else held by
    this process."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, kilobytes on Linux
