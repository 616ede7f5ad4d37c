"""The energy that an NVIDIA GPU has drawn, by NVML (the package nvidia-ml-py, which the extra `energy` installs).

    E = counter(now) - counter(start)               where the board has a counter (Volta and later), in mJ
    E = sum_k (P_k + P_k+1) / 2 * (t_k+1 - t_k)      where it states its power P alone, in mW, read at intervals

E is the energy of the whole board: it includes what other programs draw on it, and what it draws when idle. Without a
GPU, without the package, or where the driver states neither E nor P (of a slice of a GPU, say), E is unknown: nan.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import isnan, nan
from threading import Event, Lock, Thread
from time import perf_counter
from typing import Any

import torch

READING_INTERVAL = 0.1  # seconds between two readings of the power
MILLIJOULES_PER_WATT_HOUR = 3.6e6  # mJ in a Wh

# A function that returns the energy in Wh since the meter was started; nan where it is unknown.
Meter = Callable[[], float]


def unknown_energy() -> float:
    """Return nan, as the meter of a device whose energy is unknown does."""
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
        yield unknown_energy
        return
    with board_meter(nvml, f"GPU-{torch.cuda.get_device_properties(device).uuid}") as meter_of_board:
        yield meter_of_board


@contextmanager
def board_meter(nvml: Any, uuid: str, seconds: float = READING_INTERVAL) -> Iterator[Meter]:
    """Yield a meter of the board with this identifier.

    nvml: the module pynvml, or an object with the same functions. seconds: the interval between two readings of the
    power, where there is no counter.
    """
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:  # no driver
        yield unknown_energy
        return
    try:
        with counter_or_integral(nvml, uuid, seconds) as meter_of_board:
            yield meter_of_board
    finally:
        nvml.nvmlShutdown()


@contextmanager
def counter_or_integral(nvml: Any, uuid: str, seconds: float) -> Iterator[Meter]:
    """Yield a meter that reads the counter; without a counter, one that integrates the power; else `unknown_energy`."""
    try:
        board = nvml.nvmlDeviceGetHandleByUUID(uuid)
    except nvml.NVMLError:
        yield unknown_energy
        return
    read_counter = nan_on_error(nvml, lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(board))
    read_power = nan_on_error(nvml, lambda: nvml.nvmlDeviceGetPowerUsage(board))
    start = read_counter()
    if not isnan(start):
        yield lambda: (read_counter() - start) / MILLIJOULES_PER_WATT_HOUR
    elif isnan(read_power()):
        yield unknown_energy
    else:
        with updated_regularly(Integral(read_power), seconds) as integral:
            yield lambda: integral.update() / MILLIJOULES_PER_WATT_HOUR


def nan_on_error(nvml: Any, query: Callable[[], int]) -> Callable[[], float]:
    """Return a function that returns the answer of the driver to a query; nan where the driver reports an error."""

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
        self.last_time, self.last_value, self.total = clock(), quantity(), 0.0

    def update(self) -> float:
        """Read the quantity once more, and return the integral up to now."""
        with self.lock:
            time, value = self.clock(), self.quantity()
            self.total += (self.last_value + value) / 2 * (time - self.last_time)
            self.last_time, self.last_value = time, value
            return self.total


@contextmanager
def updated_regularly(integral: Integral, seconds: float) -> Iterator[Integral]:
    """Let a thread read the quantity of an integral at this interval while the block runs."""
    done = Event()

    def update_until_done() -> None:
        while not done.wait(seconds):
            integral.update()

    thread = Thread(target=update_until_done, name="power", daemon=True)
    thread.start()
    try:
        yield integral
    finally:
        done.set()
        thread.join()
