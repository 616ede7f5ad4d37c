"""Many runs of clrun in one process, as stacks or one after another; see worker.py."""

from collections.abc import Mapping
from typing import Any

from benchmark.worker import Answer, Clock, one_thread, serve


def run(spec: Mapping[str, Any]) -> Answer:
    """runs: [(lambda, seed)], lambda None where there is none; stacked: as few stacks as clrun would make of them."""
    import tempfile

    import pandas as pd
    import torch

    from clrun.config import composition
    from clrun.runs.memory import memory_need
    from clrun.runs.prepare import prepare
    from clrun.runs.train import train_runs
    from clrun.sweep import plan

    cuda = spec["device"] == "cuda"
    clock = Clock(torch.cuda.synchronize if cuda else lambda: None)
    fixed = [o for o in spec["overrides"] if not o.startswith(("lambda=", "seed="))]
    with tempfile.TemporaryDirectory(prefix="clrun-bench-") as outputs:
        strengths = [[] if strength is None else [f"lambda={strength}"] for strength, _ in spec["runs"]]
        seeds = [[f"seed={seed}", f"outputs={outputs}"] for _, seed in spec["runs"]]
        told = [[*fixed, *strength, *seed] for strength, seed in zip(strengths, seeds, strict=True)]
        prepared = [prepare(composition.compose(*overrides)) for overrides in told]
        reckoned = memory_need(prepared[0]).of(len(prepared) if spec["stacked"] else 1) / 1e6
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        with clock.phase("whole"):
            for stack in plan.stacks(prepared) if spec["stacked"] else [[one] for one in prepared]:
                train_runs(stack, quiet=True)
        found = [pd.read_csv(one.directory / "summary.csv")["average_accuracy"].item() for one in prepared]
    cpu, wall, _ = clock.phases["whole"]
    memory = torch.cuda.max_memory_allocated() / 1e6 if cuda else None
    return {"cpu": cpu, "wall": wall, "accuracy": sum(found) / len(found), "memory_mb": memory, "reckoned_mb": reckoned}


if __name__ == "__main__":
    one_thread()
    serve(run)
