"""The energy that an NVIDIA GPU has drawn, by NVML (the package nvidia-ml-py, which the extra `energy` installs).

    E = counter(now) - counter(start)               where the board has a counter (Volta and later), in mJ
    E = sum_k (P_k + P_k+1) / 2 * (t_k+1 - t_k)      where it states its power P alone, in mW, read at intervals

It is the energy of the whole board: it includes what other programs draw on it, and what it draws when idle. Without a
GPU, without the package, or where the driver states neither (of a slice of a GPU, say), it is unknown: nan.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import isnan, nan
from threading import Event, Lock, Thread
from time import perf_counter
from typing import Any

import torch

SECONDS_BETWEEN_READINGS = 0.1  # of the power
MILLIJOULES_PER_WATT_HOUR = 3.6e6

Meter = Callable[[], float]  # returns the Wh since it was started; nan where unknown


def unknown() -> float:
    """Return nan: the meter of a device whose energy is unknown."""
    return nan


def nvml_binding() -> Any:
    """Return the Python module of NVML; None where it is not installed."""
    try:
        import pynvml
    except ModuleNotFoundError:
        return None
    return pynvml


@contextmanager
def meter(device: torch.device, binding: Callable[[], Any] = nvml_binding) -> Iterator[Meter]:
    """Yield a meter of this device, which is valid while the block runs."""
    nvml = binding() if device.type == "cuda" else None
    if nvml is None:
        yield unknown
        return
    with board_meter(nvml, f"GPU-{torch.cuda.get_device_properties(device).uuid}") as energy:
        yield energy


@contextmanager
def board_meter(nvml: Any, uuid: str, seconds: float = SECONDS_BETWEEN_READINGS) -> Iterator[Meter]:
    """Yield a meter of the board with this identifier. nvml: the module pynvml, or what behaves like it. seconds:
    between two readings of the power, where there is no counter."""
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:  # no driver
        yield unknown
        return
    try:
        with counter_or_integral(nvml, uuid, seconds) as energy:
            yield energy
    finally:
        nvml.nvmlShutdown()


@contextmanager
def counter_or_integral(nvml: Any, uuid: str, seconds: float) -> Iterator[Meter]:
    """Yield a meter that reads the counter; without a counter, one that integrates the power; else `unknown`."""
    try:
        board = nvml.nvmlDeviceGetHandleByUUID(uuid)
    except nvml.NVMLError:
        yield unknown
        return
    energy = reader(nvml, lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(board))
    power = reader(nvml, lambda: nvml.nvmlDeviceGetPowerUsage(board))
    start = energy()
    if not isnan(start):
        yield lambda: (energy() - start) / MILLIJOULES_PER_WATT_HOUR
    elif isnan(power()):
        yield unknown
    else:
        with updated_regularly(Integral(power), seconds) as integral:
            yield lambda: integral.now() / MILLIJOULES_PER_WATT_HOUR


def reader(nvml: Any, query: Callable[[], int]) -> Callable[[], float]:
    """Return a function that asks the driver; nan where it answers with an error."""

    def read() -> float:
        try:
            return float(query())
        except nvml.NVMLError:
            return nan

    return read


class Integral:
    """The integral of a quantity over the seconds of a clock, by the trapezoidal rule."""

    def __init__(self, quantity: Callable[[], float], clock: Callable[[], float] = perf_counter) -> None:
        self.quantity, self.clock, self.lock = quantity, clock, Lock()
        self.time, self.value, self.total = clock(), quantity(), 0.0

    def now(self) -> float:
        """Read the quantity once more, and return the integral up to now."""
        with self.lock:
            time, value = self.clock(), self.quantity()
            self.total += (self.value + value) / 2 * (time - self.time)
            self.time, self.value = time, value
            return self.total


@contextmanager
def updated_regularly(integral: Integral, seconds: float) -> Iterator[Integral]:
    """Let a thread read the quantity of an integral at this interval while the block runs."""
    done = Event()

    def update() -> None:
        while not done.wait(seconds):
            integral.now()

    thread = Thread(target=update, name="power", daemon=True)
    thread.start()
    try:
        yield integral
    finally:
        done.set()
        thread.join()
