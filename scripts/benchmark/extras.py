"""What is not a single run: start-up, the exact Fisher by itself, a sweep, growth with tasks."""

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmark.data import Shelf
from benchmark.measure import SCRIPTS, Contender, Row, clrun, command, told
from benchmark.workloads import SWEEP, SWEEP_LAMBDAS, SWEEP_SEEDS, W1, Workload, permuted

REFUSED = "lamda=400"  # a typing error


def started(rounds: int, quick: bool) -> Iterator[Row]:
    """Whole commands, from the start of the process to its end."""
    with tempfile.TemporaryDirectory(prefix="clrun-bench-") as folder:
        lines = {
            "clrun --help": (clrun("--help"), 0),
            f"clrun {REFUSED} (refused)": (clrun(REFUSED), 2),
            "clrun (the default run)": (clrun(*(["epochs=2"] if quick else [])), 0),
        }
        for number in range(rounds):
            for phase, (line, code) in lines.items():
                outputs = [] if phase == "clrun --help" else [f"outputs={folder}/{number}"]
                yield row("start-up", "clrun", phase, number, *command([*line, *outputs], code))


def row(workload: str, contender: str, phase: str, number: int, cpu: float, wall: float, **more: Any) -> Row:
    return {
        "workload": workload, "contender": contender, "phase": phase, "round": number,
        "cpu_seconds": cpu, "wall_seconds": wall, **more,
    }  # fmt: skip


def probes(name: str, specs: Sequence[Mapping[str, Any]], rounds: int) -> Iterator[Row]:
    """A probe is a fresh process a spec, which answers with rows of its own, made in turn within it."""
    for spec in specs:
        probe = Contender("probe")
        try:
            yield from probe.ask({**spec, "probe": name, "rounds": rounds})["rows"]
        finally:
            probe.close()


def fisher_alone(shelf: Shelf, rounds: int, quick: bool) -> Iterator[Row]:
    """The exact Fisher of W1's network with 2 and with 10 outputs that answer."""
    spec = told(W1, shelf, 0, "cpu", tiny=quick)
    narrow = {**spec, "what": "2 outputs"}
    wide = {**spec, "what": "10 outputs", "overrides": [*spec["overrides"], "tasks=1"], "groups": [list(range(10))]}
    yield from probes("fisher", [narrow, wide], rounds)


def growth(shelf: Shelf, pythons: Mapping[str, str], rounds: int, quick: bool) -> Iterator[Row]:
    """EWC's step early and late in a long stream, and what the process and the state weigh after each length."""
    for tasks in (3, 6) if quick else (5, 25, 100):
        spec = told(permuted(tasks), shelf, 0, "cpu", tiny=quick)
        yield from probes("growth", [{**spec, "steps": tasks == (6 if quick else 100)}], rounds)

    if "avalanche" in pythons:
        yield from peer_growth(Contender("avalanche-tensors", pythons["avalanche"]), shelf, rounds, quick)


def peer_growth(peer: Contender, shelf: Shelf, rounds: int, quick: bool) -> Iterator[Row]:
    spec = told(permuted(3 if quick else 20), shelf, 0, "cpu", tiny=quick) | {"peer_lambda": {"avalanche": 1e4}}
    try:
        for number in range(rounds):
            answer = peer.ask({**spec, "growth": True, "seed": number})
            for phase, (cpu, wall, count) in answer["phases"].items():
                yield row("W6 tasks", peer.name, phase, number, cpu, wall, count=count, memory_mb=answer["mb"])
    finally:
        peer.close()


def sweep(shelf: Shelf, members: Sequence[Contender], rounds: int, quick: bool) -> Iterator[Row]:
    """32 runs: the floor one after another in one process, clrun's -m with its workers, and single runs of peers."""
    lambdas, seeds = (SWEEP_LAMBDAS[:2], range(2)) if quick else (SWEEP_LAMBDAS, SWEEP_SEEDS)
    spec, runs = told(SWEEP, shelf, 0, "cpu", tiny=quick), len(lambdas) * len(seeds)
    for number in range(rounds):
        yield floor_sweep(spec, lambdas, seeds, number)
        yield clrun_sweep(spec, lambdas, seeds, number)
        for peer in members:
            cpu, wall, _ = peer.ask({**spec, "seed": number})["phases"]["whole"]
            note = f"a single run x {runs}, extrapolated, without start-up"
            yield row("W4", peer.name, "sweep", number, cpu * runs, wall * runs, count=runs, note=note)


def floor_sweep(spec: Mapping[str, Any], lambdas: Sequence[float], seeds: Sequence[int], number: int) -> Row:
    asked = [{**spec, "lambda": strength, "seed": seed} for strength in lambdas for seed in seeds]
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(asked, file)
        file.flush()
        line = [sys.executable, str(SCRIPTS / "benchmark" / "floor_worker.py"), file.name]
        spent = command(line)
    return row("W4", "floor", "sweep", number, *spent, count=len(asked), note="one after another in one process")


def clrun_sweep(spec: Mapping[str, Any], lambdas: Sequence[float], seeds: Sequence[int], number: int) -> Row:
    fixed = [o for o in spec["overrides"] if not o.startswith(("lambda=", "seed="))]
    swept = [f"lambda={','.join(map(str, lambdas))}", f"seed={','.join(map(str, seeds))}"]
    with tempfile.TemporaryDirectory(prefix="clrun-bench-") as outputs:
        _, wall = command(clrun("-m", *fixed, *swept, f"outputs={outputs}"))
    runs, unknown = len(lambdas) * len(seeds), float("nan")  # of its workers' CPU time: they are not its own children
    return row("W4", "clrun", "sweep", number, unknown, wall, count=runs, note="clrun -m, workers=auto")


def of_peers(workload: Workload, asked: Sequence[str]) -> list[str]:
    return [name for name in workload.peers if name.partition("-")[0] in asked]
