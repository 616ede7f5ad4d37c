"""Time the captured training step of W1 on a card, as graph_model.py predicts it: microseconds by kind of step.

    python scripts/gpu/step_times.py --out FOLDER                       # every case below
    python scripts/gpu/step_times.py --out FOLDER --device cpu --quick  # a rehearsal: emulated graphs, 2 runs

FOLDER gets step_times.csv. A case is a strategy, a network, settings and a number of runs. Its graphs are those with
which it has learnt two tasks, so that a penalty pulls to something. They are replayed in bursts of BURST steps, each
between two events of the device. `microseconds` is the median over the bursts. The CSV is rewritten after every case.
"""

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pandas as pd
import torch
from bench import commit, hardware
from benchmark.emulation import EmulatedCapture
from benchmark.graph_model import MASKED, MONITORED, PLAIN, STRATEGIES, w1

from clrun.runs.build import build
from clrun.runs.train import prepare_torch
from clrun.system.paths import CONF

BURST, BURSTS = 64, 15  # steps, and how often
KINDS = {PLAIN: "plain", MONITORED: "monitored", MASKED: "masked"}


class Case(NamedTuple):
    """What is timed. classes: 12 make theta so long that every run of a stack begins at a multiple of 16 bytes."""

    strategy: str
    runs: int
    network: str = "model.widths=[400,400]"
    ragged: bool = False
    typed: tuple[str, ...] = ()
    classes: int = 10


def cases() -> Iterator[Case]:
    """Yield strategies of the model's table, then settings, sizes, convolutions, other strategies, compiled ones."""
    for strategy in STRATEGIES:
        yield from (Case(strategy, 1), Case(strategy, 64), Case(strategy, 64, ragged=True))
    for runs in (8, 256):
        yield Case("ewc", runs)
    for strategy in ("finetune", "ewc", "er"):
        yield from (Case(strategy, runs, "model.widths=[100,100]") for runs in (1, 64, 256))
    for typed in ("precision=tf32", "precision=bfloat16", "deterministic=true"):
        yield from (Case("ewc", runs, typed=(typed,)) for runs in (1, 64))
    for typed in ((), ("precision=tf32",)):
        yield Case("ewc", 64, typed=typed, classes=12)
    for network in ("model=cnn model.width=16", "model=resnet18 model.width=64 model.norm=batch"):
        for typed in ((), ("precision=tf32",), ("precision=bfloat16",)):
            yield from (Case("finetune", runs, network, typed=typed) for runs in (1, 8))
    yield Case("finetune", 64, "model=cnn model.width=16")
    names = sorted(path.stem for path in (CONF / "strategy").glob("*.yaml"))
    yield from (Case(name, runs) for name in names if name not in STRATEGIES for runs in (1, 8))
    yield from (Case("ewc", runs, typed=("compile=true",)) for runs in (1, 64))


def bursts(
    replay: Callable[[], None], restart: Callable[[], Any], device: str, steps: int = BURST, number: int = BURSTS
) -> list[float]:
    """Return the microseconds a step of each burst, after one burst that does not count."""
    found = []
    for _ in range(number + 1):
        restart()
        if device == "cuda":
            first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            first.record()
            for _ in range(steps):
                replay()
            last.record()
            last.synchronize()
            found.append(first.elapsed_time(last) * 1e3 / steps)
        else:
            began = time.perf_counter()
            for _ in range(steps):
                replay()
            found.append((time.perf_counter() - began) * 1e6 / steps)
    return found[1:]


def timed(case: Case, device: str, folder: str, quick: bool = False) -> Iterator[dict[str, Any]]:
    """Yield a row for each kind of step that the second task has. quick: of one burst of one step."""
    size = (1, 1) if quick else (BURST, BURSTS)
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    shape = (1, 28, 28) if "widths" in case.network else (3, 32, 32)
    more = case.ragged, case.network.split(), device, case.classes, shape, case.typed
    runs = w1(folder, case.strategy, range(case.runs), *more)
    prepare_torch(runs[0].settings)
    stack = replace(build(runs), use_graph=True, capture=EmulatedCapture() if device == "cpu" else None)
    current = stack.initialize()
    for stage in range(2):
        began = time.perf_counter()
        current, _ = stack.learn(current, stage)
        spent = time.perf_counter() - began
    stepper = stack.graph_stepper
    assert stepper is not None  # the tasks take steps
    memory = torch.cuda.max_memory_allocated() / 1e6 if device == "cuda" else None
    for kind, name in KINDS.items():
        if kind in stepper.replays:
            found = bursts(stepper.replays[kind], stepper.position.zero_, device, *size)
            yield {
                "kind": name, "microseconds": statistics.median(found), "least": min(found), "most": max(found),
                "bursts": len(found), "task_seconds": spent, "memory_mb": memory,
            }  # fmt: skip


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--device", default="cuda")
    flags.add_argument("--out", type=Path, required=True)
    flags.add_argument("--quick", action="store_true", help="2 runs a stack at most, and one step: a rehearsal")
    flags.add_argument("--only", help="strategies, by commas")
    flags.add_argument("--skip", type=int, default=0, help="cases, the first ones, that are left out")
    flags.add_argument("--count", type=int, help="cases that follow those, all if not given")
    asked = flags.parse_args()
    torch.set_num_threads(1)
    asked.out.mkdir(parents=True, exist_ok=True)
    where = {"hardware": hardware(asked.device), "torch": torch.__version__, "commit": commit()}
    rows: list[dict[str, Any]] = []
    last = None if asked.count is None else asked.skip + asked.count
    for case in itertools.islice(cases(), asked.skip, last):
        if asked.only and case.strategy not in asked.only.split(","):
            continue
        one = case._replace(runs=min(case.runs, 2)) if asked.quick else case
        told = one._asdict() | {"typed": " ".join(one.typed)}
        with tempfile.TemporaryDirectory(prefix="clrun-steps-") as folder:
            try:
                rows += [told | row | where for row in timed(one, asked.device, folder, asked.quick)]
            except Exception as error:  # the other cases are worth their time
                rows.append(told | {"kind": f"{type(error).__name__}: {error}"[:300]} | where)
        beside = asked.out / ".step_times.csv"
        pd.DataFrame(rows).to_csv(beside, index=False, float_format="%.6g")
        beside.replace(asked.out / "step_times.csv")
        print(
            rows[-1]["strategy"],
            one.runs,
            one.network,
            told["typed"],
            rows[-1]["kind"],
            rows[-1].get("microseconds"),
            flush=True,
        )


if __name__ == "__main__":
    main()
