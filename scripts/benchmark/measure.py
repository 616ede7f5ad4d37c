"""Contenders as processes, rounds that take turns, and rows."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.data import Shelf
from benchmark.peers import PINNED as PEERS
from benchmark.worker import MARK
from benchmark.workloads import Workload, overrides_of, settings_of, spec_of
from clrun.results import metrics

SCRIPTS = Path(__file__).resolve().parents[1]
Row = dict[str, Any]
COLUMNS = (
    "workload", "contender", "phase", "round", "cpu_seconds", "wall_seconds", "count", "accuracy", "forgetting",
    "memory_mb", "state_mb", "note", "hardware", "device", "threads", "torch", "commit",
)  # fmt: skip


class Broken(RuntimeError):
    """A contender that failed, with what it said."""


@dataclass
class Contender:
    """A process that answers specs; started when it is first asked. scripts: the folder of that name of a checkout."""

    name: str
    python: str = sys.executable
    scripts: Path = SCRIPTS
    process: subprocess.Popen | None = field(default=None, repr=False)

    @property
    def worker(self) -> Path:
        return self.scripts / "benchmark" / f"{self.name.partition('-')[0]}_worker.py"

    def ask(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        """Its answer. Raises Broken."""
        process = self.started()
        process.stdin.write(json.dumps({**spec, "variant": self.name}) + "\n")
        process.stdin.flush()
        said = []
        for line in process.stdout:
            if line.startswith(MARK):
                return json.loads(line.removeprefix(MARK))
            said.append(line)
        self.close()
        raise Broken(f"{self.name} ended with code {process.returncode}:\n{''.join(said[-40:])}")

    def started(self) -> subprocess.Popen:
        if self.process is None:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
            line = [self.python, str(self.worker)]
            self.process = subprocess.Popen(line, **pipes, text=True, env=environment(self.name, self.scripts))
        return self.process

    def close(self) -> None:
        if self.process is not None:
            self.process.stdin.close()
            self.process.wait()
            self.process.stdout.close()
        self.process = None


def environment(name: str = "", scripts: Path = SCRIPTS) -> dict[str, str]:
    """One thread, and the clrun of a checkout's `scripts`; nothing of it, nor of PYTHONPATH, where a peer runs."""
    known = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
    ours = [str(scripts.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    paths = [str(scripts)] if name.partition("-")[0] in PEERS else [str(scripts), *ours]
    return known | {"PYTHONPATH": os.pathsep.join(paths)}


@contextmanager
def crew(pythons: Mapping[str, str]) -> Iterator[Callable[[str], Contender]]:
    """name -> its process, the same for all workloads. pythons: of the peers' environments."""
    made: dict[str, Contender] = {}

    def member(name: str) -> Contender:
        if name not in made:
            made[name] = Contender(name, pythons.get(name.partition("-")[0], sys.executable))
        return made[name]

    try:
        yield member
    finally:
        for one in made.values():
            one.close()


def told(workload: Workload, shelf: Shelf, seed: int, device: str, tiny: bool = False) -> dict[str, Any]:
    """The spec of one run."""
    places = shelf.places(workload, tiny)
    file, classes = shelf.file(workload, places)
    spec = spec_of(workload, settings_of(workload, places, seed, device), classes, file)
    return spec | {"overrides": overrides_of(workload, places, seed, device)}


def interleaved(
    workload: Workload, shelf: Shelf, members: Sequence[Contender], rounds: int, device: str
) -> Iterator[Row]:
    """Rows of every phase: A B C, B C A, ..., each round with a seed of its own; before them a tiny run of each."""
    for one in members:
        one.ask(told(workload, shelf, 0, device, tiny=True))
    for number in range(rounds):
        turn = number % len(members)
        for one in [*members[turn:], *members[:turn]]:
            answer = one.ask(told(workload, shelf, number, device))
            yield from rows_of(workload.name, one.name, number, answer)


def rows_of(workload: str, contender: str, number: int, answer: Mapping[str, Any]) -> Iterator[Row]:
    """One row a phase."""
    accuracy, forgetting = scores(answer["matrix"])
    for phase, (cpu, wall, count) in answer["phases"].items():
        yield {
            "workload": workload, "contender": contender, "phase": phase, "round": number,
            "cpu_seconds": cpu, "wall_seconds": wall, "count": count or None,
            "accuracy": accuracy, "forgetting": forgetting, "state_mb": answer.get("state_mb"),
            "note": answer.get("note"),
        }  # fmt: skip


def scores(matrix: Sequence[Sequence[float]]) -> tuple[float, float]:
    """(T, T) accuracies after each task -> average accuracy and forgetting, by clrun's formulas for everybody."""
    rows = np.array(matrix)
    measured = metrics.forgetting(np.vstack([np.full(len(rows), np.nan), rows]))
    return float(rows[-1].mean()), float(np.nanmean(measured))


# ---------------------------------------------------------------- whole commands


def command(line: Sequence[str], expected: int = 0) -> tuple[float, float]:
    """A process from its start to its end: CPU seconds (with those of its children), wall seconds.

    Raises Broken where it ends otherwise than expected.
    """
    began = time.perf_counter()
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment())
    said = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stdout.close()
    if process.returncode != expected:
        raise Broken(f"{' '.join(line)} ended with code {process.returncode}:\n{said[-4000:]}")
    return used.ru_utime + used.ru_stime, time.perf_counter() - began


def clrun(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "clrun.commands.run", *arguments]
