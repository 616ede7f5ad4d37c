"""Energy that an NVIDIA GPU has drawn, by NVML (the package nvidia-ml-py, which the extra `energy` installs).

    E = counter(now) - counter(start)               where the board counts (Volta and later), in mJ
    E = sum_k (P_k + P_k+1) / 2 * (t_k+1 - t_k)      where it tells its power P alone, in mW, every PERIOD seconds

It is the whole board's energy: what other programs draw on it is in it, and so is what it draws when idle. Without a
GPU, without the package, or where the driver does not tell (a slice of a GPU, say), it is unknown: nan.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import isnan, nan
from threading import Event, Lock, Thread
from time import perf_counter
from typing import Any

import torch

PERIOD = 0.1  # seconds between two looks at the power


MILLIJOULES = 3.6e6  # in a watt-hour


Meter = Callable[[], float]  # Wh since it was started; nan where unknown


def unknown() -> float:
    """The meter of a device that does not tell."""
    return nan


@contextmanager
def meter(device: torch.device) -> Iterator[Meter]:
    """A meter of this device, for as long as the block lasts."""
    nvml = library() if device.type == "cuda" else None
    if nvml is None:
        yield unknown
        return
    with of_board(nvml, f"GPU-{torch.cuda.get_device_properties(device).uuid}") as found:
        yield found


def library() -> Any:
    """NVML's binding; None where it is not installed."""
    try:
        import pynvml
    except ModuleNotFoundError:
        return None
    return pynvml


@contextmanager
def of_board(nvml: Any, uuid: str) -> Iterator[Meter]:
    """A meter of the board with this identifier. nvml: the module pynvml, or what behaves like it."""
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:  # no driver to ask
        yield unknown
        return
    try:
        with best(nvml, uuid) as found:
            yield found
    finally:
        nvml.nvmlShutdown()


@contextmanager
def best(nvml: Any, uuid: str) -> Iterator[Meter]:
    """The counter; where there is none the integral of the power; where that is not told either, nothing."""
    try:
        board = nvml.nvmlDeviceGetHandleByUUID(uuid)
    except nvml.NVMLError:
        yield unknown
        return
    energy = told(nvml, lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(board))
    power = told(nvml, lambda: nvml.nvmlDeviceGetPowerUsage(board))
    start = energy()
    if not isnan(start):
        yield lambda: (energy() - start) / MILLIJOULES
    elif isnan(power()):
        yield unknown
    else:
        with watched(Integral(power)) as integral:
            yield lambda: integral.now() / MILLIJOULES


def told(nvml: Any, ask: Callable[[], int]) -> Callable[[], float]:
    """What the driver answers; nan where it answers with an error."""

    def answer() -> float:
        try:
            return float(ask())
        except nvml.NVMLError:
            return nan

    return answer


class Integral:
    """Of a quantity over the seconds of a clock, by the trapezoidal rule."""

    def __init__(self, quantity: Callable[[], float], clock: Callable[[], float] = perf_counter) -> None:
        self.quantity, self.clock, self.lock = quantity, clock, Lock()
        self.time, self.value, self.total = clock(), quantity(), 0.0

    def now(self) -> float:
        """Look once more; the integral up to now."""
        with self.lock:
            time, value = self.clock(), self.quantity()
            self.total += (self.value + value) / 2 * (time - self.time)
            self.time, self.value = time, value
            return self.total


@contextmanager
def watched(integral: Integral) -> Iterator[Integral]:
    """Have a thread look every PERIOD seconds."""
    done = Event()

    def watch() -> None:
        while not done.wait(PERIOD):
            integral.now()

    thread = Thread(target=watch, name="power", daemon=True)
    thread.start()
    try:
        yield integral
    finally:
        done.set()
        thread.join()
