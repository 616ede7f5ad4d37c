"""Single parts of clrun's engine beside the floor's, in turn within one process; see worker.py."""

import resource
import sys
from collections.abc import Callable, Mapping
from typing import Any

from benchmark.worker import Answer, Clock, one_thread, serve

SAMPLES = 2048  # of which the Fisher is taken at once


def run(spec: Mapping[str, Any]) -> Answer:
    return {"rows": {"fisher": fisher, "growth": growth}[spec["probe"]](spec)}


def engine(spec: Mapping[str, Any]):
    """clrun's stack of one run, as clrun itself builds it."""
    from clrun.config import composition
    from clrun.runs.build import build
    from clrun.runs.prepare import prepare
    from clrun.runs.train import prepare_torch

    prepared = prepare(composition.compose(*spec["overrides"]))
    prepare_torch(prepared.settings)
    return build([prepared])


def row(workload: str, contender: str, phase: str, number: int, spent: list[float], **more: Any) -> dict[str, Any]:
    cpu, wall, count = spent
    return {
        "workload": workload, "contender": contender, "phase": phase, "round": number,
        "cpu_seconds": cpu, "wall_seconds": wall, "count": count, **more,
    }  # fmt: skip


# ---------------------------------------------------------------- the exact Fisher


def fisher(spec: Mapping[str, Any]) -> list[dict[str, Any]]:
    """clrun's `fisher` and the floor's on the first task's samples at the same initial weights."""
    rows, (ours, theirs, n) = [], estimators(spec)
    difference(ours(), theirs())
    for number in range(spec["rounds"]):
        clock = Clock()
        for name, f in {"floor": theirs, "clrun": ours}.items():
            with clock.phase(name):
                f()
            clock.count(name, n)
        rows += [row("fisher", name, spec["what"], number, spent) for name, spent in clock.phases.items()]
    return rows


def estimators(spec: Mapping[str, Any]) -> tuple[Callable, Callable, int]:
    """() -> (P,): clrun's mean over the samples, the floor's, and how many samples."""
    import torch

    from benchmark import floor
    from clrun.strategy import diagonal_fisher as exact

    stack = engine(spec)
    initialize = stack.initialize()
    pool = stack.pool(0, "train", initialize.theta.dtype).first(SAMPLES)
    experiment = floor.Experiment(spec)
    task, n = experiment.tasks[0], len(pool.rows)
    rows = pool.rows % len(experiment.x)
    parameters = floor.Parameters(floor.layers(experiment), "cpu")
    parameters.theta.copy_(initialize.theta)
    resting = stack.strategy.eval_mode(initialize.stats)

    def ours() -> torch.Tensor:
        return exact(resting, initialize.theta, initialize.state, stack.hp, pool)

    @torch.no_grad()
    def theirs() -> torch.Tensor:
        x = experiment.pictures(rows, task)
        pieces = floor.fisher(spec["model"], parameters.leaves, x, task.lo, task.hi)
        return torch.cat([piece.reshape(-1) for piece in pieces]) / n

    return ours, theirs, n


def difference(ours, theirs) -> float:
    """The largest difference, of the largest entry. Raises ValueError where the two do not agree."""
    apart = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    if not apart < 1e-4:
        raise ValueError(f"clrun's Fisher and the floor's differ by {apart:.1e} of the largest entry")
    return apart


# ---------------------------------------------------------------- growth with tasks

PASSES = 10  # over each task, in turn, of a round: one is a tenth of a second, which is less than what disturbs it


def growth(spec: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every task is learnt and consolidated, none is evaluated; then steps of task 2 and of the last, in turn."""
    stack, T = engine(spec), spec["tasks"]
    run, clock, early = stack.initialize(), Clock(), None
    with clock.phase("whole"):
        for stage in range(T):
            early = copied(run) if stage == 1 else early
            late = copied(run)
            run, half = stack.train(run, stack.new_stage(stage))
            run = stack.consolidate(run, half)
            clock.count("whole", half.start)
    unit = 1e6 if sys.platform == "darwin" else 1e3
    memory = {
        "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit,
        "state_mb": stack.state_bytes(run) / 1e6,
    }
    rows = [row("W6 tasks", "clrun", f"{T} tasks", 0, clock.phases["whole"], **memory)]
    return rows + (steps(stack, {2: early, T: late}, spec["rounds"]) if spec["steps"] else [])


def copied(run):
    """The run as it is now, whatever the engine goes on to write."""
    import torch
    from torch.utils._pytree import tree_map

    return tree_map(torch.clone, run)


def steps(stack, starts: Mapping[int, Any], rounds: int) -> list[dict[str, Any]]:
    """A task's training from where it began, again and again: {number of the task: run}."""
    rows = []
    for number in range(rounds):
        clock = Clock()
        for task, start in PASSES * list(starts.items()):
            run, phase = copied(start), f"step of task {task}"
            with clock.phase(phase):
                _, half = stack.train(run, stack.new_stage(task - 1))
            clock.count(phase, half.start)
        rows += [row("W6 tasks", "clrun", phase, number, spent) for phase, spent in clock.phases.items()]
    return rows


if __name__ == "__main__":
    one_thread()
    serve(run)
