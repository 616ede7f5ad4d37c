"""The largest memory that a run has used, on the GPU or in this process."""

import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

from clrun.system.cards import CARDS, Cards

RESET = Path("/proc/self/clear_refs")  # Linux: writing "5" resets the peak, see proc(5)


def forget_peak(device: torch.device, cards: Cards = CARDS) -> None:
    """Let `peak_memory` begin anew, on a card and where Linux allows it."""
    if device.type == "cuda":
        cards.forget_peak(device.index)
    elif RESET.exists():
        with suppress(OSError):  # not allowed: the peak is then of the whole process, as on other systems
            RESET.write_text("5")


def peak_memory(device: torch.device, cards: Cards = CARDS) -> int:
    """Return the largest number of bytes since `forget_peak`: allocated on the card that is trained on, else held by
    this process."""
    if device.type == "cuda":
        return cards.peak_bytes(device.index)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, kilobytes on Linux
