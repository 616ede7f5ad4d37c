"""clrun as a process; see worker.py. A run is clrun's own, from its overrides to its files; three methods of its engine
are timed on the way."""

from collections.abc import Mapping
from typing import Any

from benchmark.worker import Answer, Clock, one_thread, serve

# methods of the engine's Stack
PHASES = {"train": "training", "consolidate": "consolidation", "evaluate": "evaluation"}


def run(spec: Mapping[str, Any]) -> Answer:
    """A whole run in an empty folder."""
    import tempfile
    from pathlib import Path

    import pandas as pd
    import torch

    from clrun.config import composition
    from clrun.runs.prepare import prepare
    from clrun.runs.train import train_runs

    clock = Clock(torch.cuda.synchronize if spec["device"] == "cuda" else lambda: None)
    with tempfile.TemporaryDirectory(prefix="clrun-bench-") as outputs, watched(clock):
        with clock.phase("load"):
            prepared = prepare(composition.compose(*spec["overrides"], f"outputs={outputs}"))
        with clock.phase("whole"):
            (status,) = train_runs([prepared], quiet=True)
        if status != "done":
            raise RuntimeError(f"{spec['overrides']}: the run ended as {status}")
        folder = Path(prepared.directory)
        matrix = pd.read_csv(folder / "accuracy_matrix.csv").filter(regex=r"^task_\d+$").to_numpy()[1:]
        clock.count("training", pd.read_csv(folder / "health.csv")["steps"].sum())
        clock.count("consolidation", sum(len(pool) for pool in prepared.stream.train))
        state = pd.read_csv(folder / "summary.csv")["state_mb"].item()
    return {"matrix": matrix.tolist(), "phases": clock.phases, "state_mb": state}


def watched(clock: Clock):
    """While it is open, the phases of every engine stack are charged to the clock."""
    from contextlib import ExitStack
    from unittest.mock import patch

    from clrun.engine.stack import Stack
    from clrun.results import plots

    watching = ExitStack()
    watching.enter_context(patch.object(plots, "draw", clock.timed("plots", plots.draw)))
    for method, phase in PHASES.items():
        watching.enter_context(patch.object(Stack, method, timed(clock, phase, getattr(Stack, method))))
    return watching


def timed(clock: Clock, phase: str, method):
    """A function, not a bound object, so that it is still a method."""

    def inner(stack, *args, **keywords):
        with clock.phase(phase):
            return method(stack, *args, **keywords)

    return inner


if __name__ == "__main__":
    one_thread()
    serve(run)
