"""One profile of the stacked step of W1, as torch.profiler sees it: kernels a step, and their time by kind.

    python scripts/gpu/profile_step.py --device cuda --out FOLDER [--runs 64]

FOLDER gets kernels.csv (name, calls, microseconds a step), trace.json.gz for chrome://tracing, and summary.txt. What is
profiled are replays of the graph of a step of the second task, without what is done at monitored steps.
"""

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pandas as pd
import torch
from benchmark.data import Shelf
from benchmark.emulation import EmulatedCapture
from benchmark.graph_model import PLAIN
from benchmark.measure import told
from benchmark.workloads import SINGLE

from clrun.config import composition
from clrun.runs.build import build
from clrun.runs.prepare import prepare

STEPS = 10  # that are profiled


def stack_of(device: str, runs: int, folder: Path, quick: bool):
    """Return the stack of R runs of W1 that differ in seed."""
    overrides = told(SINGLE["W1"], Shelf(folder, None, quick), 0, device, tiny=quick)["overrides"]
    fixed = [o for o in overrides if not o.startswith(("seed=", "epochs="))]
    typed = [[*fixed, f"iterations={STEPS}", f"seed={seed}", f"outputs={folder}"] for seed in range(runs)]
    return build([prepare(composition.compose(*one)) for one in typed])


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--device", default="cuda")
    flags.add_argument("--out", type=Path, required=True)
    flags.add_argument("--runs", type=int, default=64)
    flags.add_argument("--quick", action="store_true", help="4 runs on drawn data: a rehearsal")
    asked = flags.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="clrun-profile-") as folder:
        stack = stack_of(asked.device, 4 if asked.quick else asked.runs, Path(folder), asked.quick)
        capture = EmulatedCapture() if asked.device == "cpu" else None
        stack = replace(stack, use_graph=True, capture=capture)
        current, _ = stack.learn(stack.initialize(), 0)
        stack.train(current, stack.new_stage(1))
        stepper = stack.graph_stepper
        assert stepper is not None  # the tasks take steps
        stepper.position.zero_()
        kinds = [torch.profiler.ProfilerActivity.CPU]
        kinds += [torch.profiler.ProfilerActivity.CUDA] if asked.device == "cuda" else []
        with torch.profiler.profile(activities=kinds, record_shapes=True) as profile:
            for _ in range(STEPS):
                stepper.replays[PLAIN]()
            if asked.device == "cuda":
                torch.cuda.synchronize()
    asked.out.mkdir(parents=True, exist_ok=True)
    profile.export_chrome_trace(str(asked.out / "trace.json.gz"))
    write(profile, asked.out, asked.device)


def write(profile: torch.profiler.profile, out: Path, device: str) -> None:
    """Write the kernels, the most expensive first, and the share of the matrix products."""
    of = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    rows = [(e.key, e.count / STEPS, getattr(e, of) / STEPS) for e in profile.key_averages() if getattr(e, of) > 0]
    table = pd.DataFrame(rows, columns=["kernel", "calls_a_step", "microseconds_a_step"])
    table = table.sort_values("microseconds_a_step", ascending=False)
    table.to_csv(out / "kernels.csv", index=False, float_format="%.6g")
    products = table.kernel.str.contains("gemm|bmm|::mm|addmm|cutlass", case=False)
    whole, product = table.microseconds_a_step.sum(), table[products].microseconds_a_step.sum()
    said = (
        f"{table.calls_a_step.sum():.0f} calls, {whole:.0f} us a step; matrix products {100 * product / whole:.0f} %\n"
    )
    (out / "summary.txt").write_text(said)
    print(said, table.head(25).to_string(index=False), sep="\n")


if __name__ == "__main__":
    main()
