"""On a GPU: single runs beside a floor whose steps are a CUDA graph, and stacks beside runs one after another."""

from collections.abc import Callable, Iterator, Sequence

from benchmark.data import Shelf
from benchmark.extras import of_peers
from benchmark.measure import Contender, Row, interleaved, told
from benchmark.workloads import SINGLE, SWEEP_LAMBDAS, W1

STACKS = (1, 8, 64, 256)
SERIAL = 8  # runs one after another that are measured, at most; the rest is extrapolated and says so
SWEEP = [(strength, seed) for strength in (*SWEEP_LAMBDAS, 1.0, 1e5, 1e6, 1e7) for seed in range(20)]


def plan(
    shelf: Shelf, member: Callable[[str], Contender], found: Sequence[str], rounds: int, quick: bool
) -> Iterator[tuple[str, Callable[[], Iterator[Row]]]]:
    for name in ("W1", "W1-100", "W2", "W3", "W5"):
        workload = SINGLE[name]
        graphed = ["floor-graph"] if name.startswith("W1") else []
        members = [member(one) for one in ["floor", *graphed, "ours", *of_peers(workload, found)]]
        yield name, lambda w=workload, m=members: interleaved(w, shelf, m, rounds, "cuda")
    yield "stack", lambda: stacks(shelf, member("stack"), quick)


def stacks(shelf: Shelf, probe: Contender, quick: bool) -> Iterator[Row]:
    """R runs of W1 that differ in seed as one stack, and one after another; then 8 lambdas x 20 seeds as one sweep."""
    spec = told(W1, shelf, 0, "cuda", tiny=quick)
    probe.ask({**spec, "runs": [(1000.0, 0), (1000.0, 1)], "stacked": True})  # first calls
    for size in STACKS[:2] if quick else STACKS:
        runs = [(1000.0, seed) for seed in range(size)]
        yield row(probe, spec, runs, True, "one stack")
        few = runs[:SERIAL]
        yield row(probe, spec, few, False, "one after another", len(runs))
    yield row(probe, spec, SWEEP[:4] if quick else SWEEP, True, "8 lambdas x 20 seeds, stack=auto")


def row(probe: Contender, spec, runs, stacked: bool, phase: str, of: int | None = None) -> Row:
    """of: how many runs the time is extrapolated to."""
    answer, count = probe.ask({**spec, "runs": runs, "stacked": stacked}), of or len(runs)
    factor = count / len(runs)
    return {
        "workload": "stack", "contender": "clrun", "phase": phase, "round": 0, "count": count,
        "cpu_seconds": answer["cpu"] * factor, "wall_seconds": answer["wall"] * factor,
        "accuracy": answer["accuracy"], "memory_mb": answer["memory_mb"],
        "note": f"{len(runs)} runs measured, extrapolated" if factor > 1 else None,
    }  # fmt: skip
