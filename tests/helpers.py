"""What several test files share: independent statements of a network and of a memory."""

import json
import os
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

from clrun.data.batches import StepContext
from clrun.results import run_files
from clrun.runs import train
from clrun.runs.prepared import Prepared
from clrun.strategy import Memory
from clrun.system import locks
from clrun.system.paths import PACKAGE

CPU = torch.device("cpu")


def python_path(*folders: Path) -> str:
    """Return PYTHONPATH for a child process: these folders, by default this checkout, and then what is there already,
    as a machine may have clrun's dependencies in a folder that PYTHONPATH alone names."""
    mine = [str(folder) for folder in folders or (PACKAGE.parent,)]
    return os.pathsep.join([*mine, *filter(None, [os.environ.get("PYTHONPATH")])])


def summaries(strategy: str = "*", outputs: str | Path = "outputs") -> list[Path]:
    """Return summary.csv of each finished run of a strategy, by default of all, in a folder of outputs, sorted."""
    return sorted(Path(outputs).glob(f"runs/{strategy}/*/summary.csv"))


def rows_of(reports):
    """Return the rows of health.csv of a run trained alone, one for each report of a task from the first on."""
    return [{"task": report.stage + 1} | report.health[0] for report in reports]


def warnings_in(prepared: Prepared) -> str:
    """Train a run and return the warnings in its summary.csv, "" for none."""
    train.train_run(prepared, quiet=True)
    said = run_files.read_summary(prepared.directory / "summary.csv").iloc[0]["warnings"]
    return "" if pd.isna(said) else said


def module_of(net, theta):
    """Return an MLP (a Net, or the one of a strategy) as a torch.nn.Module with the parameters theta (P,)."""
    net = getattr(net, "net", net)
    pieces, layers = net.layout.view(theta), [nn.Flatten()]
    for name in [*net.network.taps, "head"]:
        weight = pieces[f"{name}.weight"]
        layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
        layer.load_state_dict({"weight": weight, "bias": pieces[f"{name}.bias"]})
        layers += [layer, nn.ReLU()] if name != "head" else [layer]
    return nn.Sequential(*layers)


@dataclass
class ListReservoir:
    """Vitter's algorithm R, a sample at a time, on lists; `kept` are whatever tuples are offered."""

    size: int
    kept: list = field(default_factory=list)
    offered: int = 0

    def offer(self, sample, u):
        """Offer one sample with a random number u in [0, 1)."""
        place = self.offered if self.offered < self.size else int(u * (self.offered + 1))
        self.offered += 1
        if place == len(self.kept) < self.size:
            self.kept.append(sample)
        elif place < self.size:
            self.kept[place] = sample

    def draw(self, noise):
        """Return a kept sample for each random number in [0, 1)."""
        return [self.kept[int(u * len(self.kept))] for u in noise]


def empty_memory(size):
    """Return an empty memory of `size` slots."""
    return Memory(torch.zeros(size, dtype=torch.long), torch.zeros((), dtype=torch.long))


def as_class(strategy, cls):
    """Return a strategy's settings and network as an instance of another class, such as a broken subclass."""
    return cls(**{field.name: getattr(strategy, field.name) for field in fields(strategy)})


def hold(directory: Path, process: subprocess.Popen) -> None:
    """Write the lock of a run as that of another process."""
    owner = replace(locks.this_process(), pid=process.pid, started=locks.start_time(process.pid))
    directory.mkdir(parents=True, exist_ok=True)
    (directory / locks.NAME).write_text(json.dumps(asdict(owner)))


def second_task(stack):
    """A stack of one after its first task, and what a step of the second takes."""
    run, _ = stack.learn(stack.initialize(), 0)
    pool = stack.pool(0, "train", torch.float64)
    rows = stack.strategy.data.rows(stack.streams[0].train[1], 1)[:8]
    when = StepContext(torch.tensor(1), torch.tensor(1), torch.tensor(0.5), torch.tensor(0), pool.noise[:, :8].float())
    draw = stack.strategy.data.index(stack.tables, rows, torch.ones(8, dtype=torch.float64))
    return run, (stack.lr, stack.hp, stack.tables, draw, when)


def slow_but(cases: Iterable[Any], fast: Callable[[Any], bool]) -> list[Any]:
    """Cases of a parametrised test, of which those that are not fast ones are left to `-m slow`."""
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=() if fast(case) else pytest.mark.slow)
        for case in cases
    ]


class MadeUpCards:
    """Cards that are not there, in place of `clrun.system.cards.Cards`."""

    def __init__(self, *free: int) -> None:
        self.free, self.told = free, []

    def count(self) -> int:
        return len(self.free)

    def name(self, index: int) -> str:
        return f"NVIDIA Made Up {index}"

    def free_bytes(self, index: int) -> int:
        return self.free[index]

    def choose(self, index: int) -> None:
        self.told.append(("choose", index))

    def release(self) -> None:
        self.told.append(("release",))

    def forget_peak(self, index: int | None) -> None:
        self.told.append(("forget_peak", index))

    def peak_bytes(self, index: int | None) -> int:
        return 7_000_000
