"""Kill runs at random moments with SIGKILL, type the same command again, and compare the bytes of what comes out.

    python scripts/kill_and_resume.py --data digits mnist --kills 20        # mnist: from $CLRUN_DATA_DIR

For each data set one run is left alone. Then, as often as asked for, the same run is started in an empty folder, killed
at a random moment after its first checkpoint, and started again; every table in which no times stand must be the
same to the byte, and the second process must have trained fewer steps than the whole. Exit code 1 if one differs.
"""

import argparse
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from clrun.config.check_keys import last_of_each
from clrun.results.columns import TIMED_FILES

COMMON = ("device=cpu", "validation=0.1", "evaluate_every=100", "checkpoint_every=0.2")
RUNS = {"digits": ("dataset=digits", "epochs=150"), "mnist": ("dataset=mnist", "epochs=1", "strategy=ewc")}
FAST = {"digits": ("dataset=digits", "epochs=40"), "mnist": ("dataset=mnist", "iterations=200", "strategy=er")}
CHECKPOINT = "checkpoint.safetensors"
PATIENCE = 3600  # seconds for one run, on a busy machine


class Whole(NamedTuple):
    """A run that was left alone."""

    tables: dict[str, bytes]
    steps: int
    seconds: float  # from its first checkpoint to its first result


class Kill(NamedTuple):
    """A run that was killed and started again."""

    equal: bool
    begun: int  # steps that it had done when it was started again
    told: str


def start(outputs: Path, overrides: list[str]) -> subprocess.Popen:
    line = [sys.executable, "-m", "clrun.commands.run", *overrides, f"outputs={outputs}"]
    return subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> str:
    """Wait for a run; what it said. Raises RuntimeError if it failed."""
    _, told = process.communicate(timeout=PATIENCE)
    if process.returncode != 0:
        raise RuntimeError(f"exit code {process.returncode}: {told}")
    return told


def wait_for(name: str, process: subprocess.Popen, outputs: Path) -> None:
    """Return as soon as the run has a file of that name, or is over."""
    while process.poll() is None and not list(outputs.glob(f"runs/*/*/{name}")):
        time.sleep(0.002)


def tables(outputs: Path) -> dict[str, bytes]:
    """All but those in which there are times."""
    return {path.name: path.read_bytes() for path in outputs.glob("runs/*/*/*.csv") if path.name not in TIMED_FILES}


def left_alone(outputs: Path, overrides: list[str]) -> Whole:
    process = start(outputs, overrides)
    wait_for(CHECKPOINT, process, outputs)
    began = time.perf_counter()
    wait_for("confusion.csv", process, outputs)
    seconds = time.perf_counter() - began
    finish(process)
    (health,) = outputs.glob("runs/*/*/health.csv")
    return Whole(tables(outputs), int(pd.read_csv(health)["steps"].sum()), seconds)


def killed(outputs: Path, overrides: list[str], whole: Whole, wait: float) -> Kill | None:
    """Kill a run `wait` seconds after its first checkpoint and start it again; None if it was over by then."""
    process = start(outputs, overrides)
    wait_for(CHECKPOINT, process, outputs)
    time.sleep(wait)
    process.kill()
    process.communicate()
    if list(outputs.glob("runs/*/*/summary.csv")):
        return None
    told = re.search(r"continues after (.*\((\d+) steps so far\))", finish(start(outputs, overrides)))
    return Kill(tables(outputs) == whole.tables, int(told[2]) if told else 0, told[1] if told else "nothing")


def trial(data: str, kills: int, overrides: list[str], draw: random.Random, folder: Path) -> bool:
    """Kill one data set's run so many times; whether all was as it should be."""
    whole = left_alone(folder / "whole", overrides)
    print(f"{data}: {' '.join(overrides)}: {whole.steps} steps, {len(whole.tables)} tables", flush=True)
    done: list[Kill] = []
    attempt = 0
    while len(done) < kills:
        attempt += 1
        wait = draw.uniform(0, whole.seconds)
        kill = killed(folder / str(attempt), overrides, whole, wait)
        if kill is not None:
            done.append(kill)
            print(
                f"{data} {len(done)}: killed after {wait:.2f} s, continued after {kill.told}, trained "
                f"{whole.steps - kill.begun} of {whole.steps} steps: {'equal' if kill.equal else 'DIFFERENT'}",
                flush=True,
            )
    equal, fewer = sum(kill.equal for kill in done), sum(kill.begun > 0 for kill in done)
    print(f"{data}: {equal} of {kills} equal; {fewer} of {kills} trained fewer steps than the whole", flush=True)
    return equal == fewer == kills


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--data", nargs="+", choices=RUNS, default=["digits"])
    flags.add_argument("--kills", type=int, default=20)
    flags.add_argument("--fast", action="store_true", help="shorter runs")
    flags.add_argument("--seed", type=int, default=0, help="of the moments")
    asked, overrides = flags.parse_known_args()
    draw = random.Random(asked.seed)
    runs = FAST if asked.fast else RUNS
    right = []
    for data in asked.data:
        with tempfile.TemporaryDirectory(prefix="clrun-kill-") as folder:
            line = last_of_each([*runs[data], *COMMON, *overrides])
            right.append(trial(data, asked.kills, line, draw, Path(folder)))
    sys.exit(0 if all(right) else 1)


if __name__ == "__main__":
    main()
