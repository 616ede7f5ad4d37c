"""What each saving of a captured step is worth by graph_model.py: the step as it is, and without one of them at a time.

python scripts/benchmark/graph_items.py                    # EWC in W1, alone and 64 runs at once
python scripts/benchmark/graph_items.py --strategy er --widths 100,100
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmark import graph_model
from benchmark.graph_model import MASKED, MONITORED, PLAIN, Cost, captured, cost, w1, widths_of
from clrun.engine.static_step import Pull, StaticStep
from clrun.engine.step import StepKind
from clrun.optimizers import Adam, Optimizer
from clrun.runs.build import build

CAPTURED = 4  # runs that are captured of a stack


def pure_optimizer() -> ExitStack:
    """Adam as a function that returns what is new, which is then copied over theta and the optimizer's state."""
    both = ExitStack()
    for name in ("in_place", "in_place_stack"):
        both.enter_context(patch.object(Adam, name, getattr(Optimizer, name)))
    return both


WHOLE = property(lambda self: False, lambda self, value: None)  # an attribute that stays False

# What is left out, the kind of step that is counted then, and how it is left out.
ITEMS: dict[str, tuple[StepKind, Callable[[], AbstractContextManager]]] = {
    "as it is": (PLAIN, nullcontext),
    "the optimizer is not fused, and what it returns is copied": (PLAIN, pure_optimizer),
    "lambda F is made at each step": (PLAIN, lambda: patch.object(Pull, "settle", lambda self: None)),
    "the norm, and the penalty's value, at each step": (MONITORED, nullcontext),
    "the gradient is one vector": (PLAIN, lambda: patch.object(StaticStep, "by_leaf", WHOLE, create=True)),
    "bytes become floats in a kernel of their own": (PLAIN, lambda: patch.object(graph_model, "FUSED", False)),
    "masks, though no run is over": (MASKED, nullcontext),
}


def counted(strategy: str, widths: str, runs: int) -> Iterator[tuple[str, Cost | None]]:
    """Yield what is left out, and the cost of a step then; None where a single run has no such step."""
    alone, few = runs == 1, min(runs, CAPTURED)
    for name, (kind, left_out) in ITEMS.items():
        with tempfile.TemporaryDirectory(prefix="clrun-items-") as folder, left_out():
            stack = build(w1(folder, strategy, range(few), kind is MASKED, widths_of(widths)))
            steps, size = captured(stack), 4 * stack.initialize().theta.numel()
            yield name, cost(steps[kind], size, runs / few, alone) if kind in steps else None


def main(line: Sequence[str] | None = None, show: Callable[[str], None] = print) -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--strategy", default="ewc")
    flags.add_argument("--runs", type=int, default=64, help="of the stack")
    flags.add_argument("--widths", default="400,400", help="of the hidden layers")
    asked = flags.parse_args(line)
    torch.set_num_threads(1)
    columns = [dict(counted(asked.strategy, asked.widths, runs)) for runs in (1, asked.runs)]
    show(f"| {asked.strategy} | kernels alone | passes over theta | µs | kernels of {asked.runs} | passes | µs |")
    show("|---|---|---|---|---|---|---|")
    for name in ITEMS:
        cells = [
            f"{one.kernels} | {one.passes:.1f} | {one.seconds * 1e6:.0f}" if one else " | | "
            for one in (column[name] for column in columns)
        ]
        show(f"| {name} | {' | '.join(cells)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
