"""What a captured training step costs on a card, by a model: kernels, bytes and microseconds. No card is needed.

    python scripts/benchmark/graph_model.py                       # the table of all strategies below
    python scripts/benchmark/graph_model.py --only ewc,si --runs 64

The step of workload W1 (Split MNIST, 784-400-400, batch 128, Adam) is captured on the CPU by `emulation.py`, on random
pictures, and every operation is counted: one kernel or more, the bytes that it reads and writes, the products of its
matrices. A stack is captured with a few runs and its bytes are scaled up. The times follow from the constants below, so
they are a model of an H100 and no measurement. A stack is *even* where all its runs have equally many steps, and
*ragged* where some are over before others: from then on, its steps are *masked*. At *monitored* steps, one of sixteen,
the gradient's norm and the penalty are computed.

The *floor* of a single run is the step of the bare loop in floor.py, counted in the same way, in a task after the
first, where there is a penalty: the kernels and bytes that a program for this step alone needs.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from benchmark.emulation import EmulatedCapture, Operation, OperationLog, Spec
from benchmark.floor import Experiment, Floor
from clrun.config import composition
from clrun.engine.stack import Stack
from clrun.engine.step import StepKind
from clrun.runs.build import build
from clrun.runs.prepare import prepare
from clrun.runs.prepared import Prepared

# Seconds: of a node of a graph that waits for the one before, and what a kernel takes beside its bytes.
NODE, KERNEL = 2.2e-6, 1.5e-6

# Bytes a second that elementwise kernels reach: from memory, and from the cache that holds what is below CACHED bytes.
MEMORY, CACHE, CACHED = 2.7e12, 5.0e12, 12e6

PRODUCTS = 40e12  # floating-point operations a second of products in float32
PRODUCT, LONE_PRODUCT = 3e-6, 4e-6  # seconds: that a product takes at least, in a stack and alone

STRATEGIES = {
    "finetune": (), "ewc": ("lambda=1000",), "si": (), "er": ("memory_size=500",), "derpp": ("memory_size=500",),
    "agem": ("memory_size=500",), "lwf": (),
}  # fmt: skip

FUSED = True  # whether bytes become floats in the kernel that scales them, as on a card

WITH_FLOOR = ("finetune", "ewc")  # the strategies whose step can be captured as the bare loop takes it

PLAIN, MONITORED = StepKind(monitored=False, masked=False), StepKind(monitored=True, masked=False)
MASKED = StepKind(monitored=False, masked=True)

# Kernels of an operation, where they are not one.
KERNELS = {
    "sort": 6, "argsort": 6, "scatter_reduce": 2, "scatter": 2, "index_put": 2, "constant_pad_nd": 2,
    "native_group_norm": 2, "native_group_norm_backward": 4, "convolution_backward": 3,
    "empty": 0, "empty_like": 0, "new_empty": 0, "empty_strided": 0, "new_empty_strided": 0,
}  # fmt: skip
FILLING = {"zero_", "fill_", "full", "zeros", "zeros_like", "new_zeros", "ones", "ones_like", "full_like", "new_full"}
FILLING |= {"arange", "scalar_tensor"}
GATHERING = {"index_select", "gather", "index"}


class Cost(NamedTuple):
    """What a captured step costs."""

    kernels: int
    bytes: float
    passes: float  # over theta: bytes / bytes of theta
    seconds: float


def kernels(one: Operation) -> int:
    """Return how many kernels an operation launches."""
    if one.view or not (one.outs or one.name.startswith("_fused")):
        return 0
    if one.name == "copy_" and one.ins[0] == one.ins[1]:  # onto itself
        return 0
    return KERNELS.get(one.name, 1)


def unique(specs: Sequence[Spec]) -> int:
    return sum(one.bytes for one in specs)


def traffic(one: Operation) -> int:
    """Return the bytes that an operation reads and writes."""
    written = unique(one.outs)
    if one.name.startswith(
        "_fused"
    ):  # all but the learning rate and the counters are read; the gradient is not written
        large = [v.bytes for v in one.ins if v.shape]
        gradients = len(large) // (4 if "adam" in one.name else 3 if has_velocity(one) else 2)
        return 2 * sum(large) - sum(large[gradients : 2 * gradients])
    if one.name in GATHERING:
        return 2 * written + one.ins[-1].bytes
    if one.name in ("index_copy_", "copy_"):
        return 2 * one.ins[-1].bytes
    if one.name in FILLING:
        return written
    return unique(one.ins) + written


def has_velocity(one: Operation) -> bool:
    return bool(one.args[2])


def products(one: Operation) -> int:
    """Return the floating-point operations of a product of matrices, 0 of anything else."""
    if one.name not in ("mm", "addmm", "bmm", "baddbmm"):
        return 0
    a, b = one.ins[-2:]
    n = 2
    for size in a.shape:
        n *= size
    return n * b.shape[-1]


def seconds(one: Operation, scale: float, alone: bool) -> float:
    """Return the time of an operation in a stack that is `scale` times as large as the one captured."""
    k, b, f = kernels(one), traffic(one) * scale, products(one) * scale
    if not k:
        return 0.0
    large = max((v.bytes for v in one.ins + one.outs), default=0) * scale
    by_bytes = b / (MEMORY if large > CACHED else CACHE) + KERNEL * k
    is_dot = one.outs and one.outs[0].shape[-2:] == (1, 1)
    if f and not is_dot:
        least = LONE_PRODUCT * (1 + min(1, f / 8e7)) if alone else PRODUCT + f / PRODUCTS
        return max(least, by_bytes)
    return max(NODE * k, by_bytes)


def cost(operations: Sequence[Operation], theta_bytes: int, scale: float = 1, alone: bool = False) -> Cost:
    """Return what the operations of a step cost; theta_bytes: of all runs captured."""
    b = sum(traffic(one) for one in operations if kernels(one))
    k = sum(kernels(one) for one in operations)
    return Cost(k, b * scale, b / theta_bytes, sum(seconds(one, scale, alone) for one in operations))


# ---------------------------------------------------------------- the steps that are counted


def w1(
    folder: str, strategy: str, seeds: Sequence[int], ragged: bool, network: Sequence[str], device: str = "cpu",
    classes: int = 10, shape: tuple[int, int, int] = (1, 28, 28), typed: Sequence[str] = (),
) -> list[Prepared]:  # fmt: skip
    """Return runs of W1 with one epoch a task, which make one stack; even: every task has equally many samples.

    network: the settings that say which. typed: more settings. shape: of the pictures.
    """
    overrides = [
        "dataset=arrays", f"dataset.file={pictures(folder, ragged, classes, shape)}", "split=classes",
        f"tasks={classes // 2}", "scenario=task", "optimizer=adam", "lr=0.001", "batch_size=128", "epochs=1",
        *network, f"strategy={strategy}", *STRATEGIES.get(strategy, ()), f"outputs={folder}", f"device={device}",
        *typed,
    ]  # fmt: skip
    return [prepare(composition.compose(*overrides, f"seed={seed}")) for seed in seeds]


def widths_of(widths: str) -> tuple[str]:
    """Return the setting of hidden layers of these widths."""
    return (f"model.widths=[{widths}]",)


def pictures(folder: str, ragged: bool, classes: int, shape: tuple[int, int, int]) -> str:
    """Write random pictures of a shape, more of some classes than of others if `ragged`; return their file."""
    path = Path(folder) / f"pictures_{ragged}_{classes}_{shape[-1]}.npz"
    if not path.exists():
        random = np.random.default_rng(0)
        y = np.repeat(np.arange(classes), [520 + 150 * ragged * c for c in range(classes)])
        x = random.integers(0, 256, (len(y), *shape), dtype=np.uint8)
        np.savez(path, x_train=x, y_train=y, x_test=x[::50], y_test=y[::50])
    return str(path)


def as_on_a_card(stack: Stack) -> Stack:
    """Return a stack of a CPU whose steps do what those of a card do."""
    strategy = replace(stack.strategy, data=replace(stack.strategy.data, fused=FUSED))
    return replace(stack, strategy=strategy, use_graph=True)


def captured(stack: Stack) -> dict[StepKind, Sequence[Operation]]:
    """Return the operations of the graphs by which a stack takes the steps of its first task, by kind."""
    stack = replace(as_on_a_card(stack), capture=EmulatedCapture())
    stack.train(stack.initialize(), stack.new_stage(0))
    assert stack.graph_stepper is not None  # the task takes steps
    return {kind: replay.__self__.operations for kind, replay in stack.graph_stepper.replays.items()}


def floor_of(strategy: str, widths: str) -> Cost:
    """Return what the step of a bare loop costs for a single run."""
    with tempfile.TemporaryDirectory(prefix="clrun-floor-") as folder:
        with np.load(pictures(folder, False, 10, (1, 28, 28))) as drawn:
            file = Path(folder) / "floor.npz"
            np.savez(file, x=drawn["x_train"], y=drawn["y_train"], train=len(drawn["x_train"]))
        spec = {
            "file": file, "groups": [[2 * task, 2 * task + 1] for task in range(5)], "scenario": "task",
            "split": "classes", "normalize": True, "model": "mlp", "widths": [int(w) for w in widths.split(",")],
            "strategy": strategy, "lambda": 1000.0, "memory": 0, "device": "cpu", "seed": 0, "lr": 1e-3,
        }  # fmt: skip
        floor = Floor(Experiment(spec))
    task = floor.experiment.tasks[1]
    with OperationLog() as log:
        floor.step(task.train[:128], task, 1)
    return cost(log.operations, 4 * floor.parameters.theta.numel(), alone=True)


def rows(names: Sequence[str], runs: int, few: int, widths: str) -> Iterator[tuple[str, str, dict[StepKind, Cost]]]:
    """Yield (strategy, alone or even or ragged, the cost of a step of each kind)."""
    with tempfile.TemporaryDirectory(prefix="clrun-model-") as folder:
        for name in names:
            for shape in ("alone", "even", "ragged"):
                alone = shape == "alone"
                stack = build(w1(folder, name, range(1 if alone else few), shape == "ragged", widths_of(widths)))
                size, scale = 4 * stack.initialize().theta.numel(), 1 if alone else runs / few
                kinds = captured(stack).items()
                yield name, shape, {kind: cost(operations, size, scale, alone) for kind, operations in kinds}


def main(line: Sequence[str] | None = None, show: Callable[[str], None] = print) -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--only", type=lambda text: text.split(","), default=list(STRATEGIES))
    flags.add_argument("--runs", type=int, default=64, help="of the stacks")
    flags.add_argument("--captured", type=int, default=4, help="runs that are captured of a stack")
    flags.add_argument("--widths", default="400,400", help="of the hidden layers")
    asked = flags.parse_args(line)
    torch.set_num_threads(1)
    head = f"MB | µs | {asked.runs} alone / stack | µs monitored | µs masked | kernels masked"
    show(f"| strategy | runs | kernels | passes over theta | {head} |")
    show("|---|---|---|---|---|---|---|---|---|---|")
    lone, floors = 0.0, []
    for name, shape, kinds in rows(asked.only, asked.runs, asked.captured, asked.widths):
        one = kinds[PLAIN]
        lone = one.seconds if shape == "alone" else lone
        ratio = "" if shape == "alone" else f"{asked.runs * lone / one.seconds:.1f}"
        size = "1" if shape == "alone" else f"{asked.runs}, {shape}"
        others = [f"{kinds[kind].seconds * 1e6:.0f}" if kind in kinds else "" for kind in (MONITORED, MASKED)]
        others.append(str(kinds[MASKED].kernels) if MASKED in kinds else "")
        numbers = f"{one.passes:.1f} | {one.bytes / 1e6:.0f} | {one.seconds * 1e6:.0f} | {ratio}"
        show(f"| {name} | {size} | {one.kernels} | {numbers} | {' | '.join(others)} |")
        if shape == "alone" and name in WITH_FLOOR:
            floors.append((name, floor_of(name, asked.widths), one))
    if floors:
        show("")
        show("| strategy, alone | kernels of the floor | passes over theta | MB | µs | a run / its floor |")
        show("|---|---|---|---|---|---|")
    for name, least, one in floors:
        numbers = f"{least.passes:.1f} | {least.bytes / 1e6:.0f} | {least.seconds * 1e6:.0f}"
        show(f"| {name} | {least.kernels} | {numbers} | {one.seconds / least.seconds:.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
