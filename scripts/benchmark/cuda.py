"""On a GPU: single runs beside a floor whose steps are a CUDA graph, and stacks beside runs one after another."""

from collections.abc import Callable, Iterator, Sequence

from benchmark.data import Shelf
from benchmark.extras import of_peers
from benchmark.measure import Contender, Row, interleaved, told
from benchmark.workloads import RESNET, SINGLE, SWEEP_LAMBDAS, W1

STACKS = (256, 64, 8, 1)  # the largest first: a part that is ended early has what is known least
SERIAL = 8  # runs one after another that are measured, at most; the rest is extrapolated and says so
SWEEP = [(strength, seed) for strength in (*SWEEP_LAMBDAS, 1.0, 1e5, 1e6, 1e7) for seed in range(20)]


def plan(
    shelf: Shelf, member: Callable[[str], Contender], found: Sequence[str], rounds: int, quick: bool, device: str
) -> Iterator[tuple[str, Callable[[], Iterator[Row]]]]:
    for name in ("W1", "W1-100", "W2", "W3", "W5"):
        workload = SINGLE[name]
        graphed = ["floor-graph"] if name.startswith("W1") else []
        members = [member(one) for one in ["floor", *graphed, "ours", *of_peers(workload, found)]]
        yield name, lambda w=workload, m=members: interleaved(w, shelf, m, rounds, device)
    yield "stack", lambda: stacks(shelf, member("stack"), quick, device)
    yield "sweep", lambda: sweep(shelf, member("stack"), quick, device)
    yield "resnet", lambda: resnets(shelf, member("stack"), member("bare"), rounds, quick, device)


def stacks(shelf: Shelf, probe: Contender, quick: bool, device: str) -> Iterator[Row]:
    """R runs of W1 that differ in seed as one stack, and one after another."""
    spec = told(W1, shelf, 0, device, tiny=quick)
    probe.ask({**spec, "runs": [(1000.0, 0), (1000.0, 1)], "stacked": True})  # first calls
    for size in STACKS[-2:] if quick else STACKS:
        runs = [(1000.0, seed) for seed in range(size)]
        yield row(probe, spec, runs, True, "one stack")
        few = runs[:SERIAL]
        yield row(probe, spec, few, False, "one after another", len(runs))


def sweep(shelf: Shelf, probe: Contender, quick: bool, device: str) -> Iterator[Row]:
    """8 lambdas x 20 seeds of W1 as one sweep."""
    spec = told(W1, shelf, 0, device, tiny=quick)
    probe.ask({**spec, "runs": [(1000.0, 0), (1000.0, 1)], "stacked": True})  # first calls
    yield row(probe, spec, SWEEP[:4] if quick else SWEEP, True, "8 lambdas x 20 seeds, stack=auto", workload="sweep")


def resnets(shelf: Shelf, probe: Contender, bare: Contender, rounds: int, quick: bool, device: str) -> Iterator[Row]:
    """ResNet-18 with batch norm on pictures of 32 x 32 x 3: alone, eight as a stack, and a bare loop."""
    spec = told(RESNET, shelf, 0, device, tiny=quick)
    if quick:
        spec = spec | {"overrides": [*spec["overrides"], "model.width=2"], "width": 2}
    probe.ask({**spec, "runs": [(None, 0)], "stacked": True})  # first calls
    for number in range(rounds):
        answer = bare.ask({**spec, "seed": number})
        cpu, wall, steps = answer["phases"]["training"]
        yield {
            "workload": "resnet", "contender": "bare loop", "phase": "training", "round": number, "count": steps,
            "cpu_seconds": cpu, "wall_seconds": wall, "memory_mb": answer["memory_mb"], "note": answer["note"],
        }  # fmt: skip
        yield row(probe, spec, [(None, number)], False, "one run", number=number, workload="resnet")
        several = [(None, seed) for seed in range(2 if quick else 8)]
        yield row(probe, spec, several, True, "one stack", number=number, workload="resnet")


def row(
    probe: Contender, spec, runs, stacked: bool, phase: str, of: int | None = None, number: int = 0,
    workload: str = "stack",
) -> Row:  # fmt: skip
    """of: how many runs the time is extrapolated to. The note also says how much memory was reckoned with."""
    answer, count = probe.ask({**spec, "runs": runs, "stacked": stacked}), of or len(runs)
    factor = count / len(runs)
    return {
        "workload": workload, "contender": "clrun", "phase": phase, "round": number, "count": count,
        "cpu_seconds": answer["cpu"] * factor, "wall_seconds": answer["wall"] * factor,
        "accuracy": answer["accuracy"], "memory_mb": answer["memory_mb"],
        "note": f"{answer['reckoned_mb']:.0f} MB reckoned"
        + (f"; {len(runs)} runs measured, extrapolated" if factor > 1 else ""),
    }  # fmt: skip
