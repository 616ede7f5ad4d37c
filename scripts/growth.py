"""What a run, a sweep and a report cost beside many finished runs: wall time, seconds of the CPU, and peak memory.

    python scripts/growth.py                                   # beside 0, 1,000, 10,000 and 50,000 runs
    python scripts/growth.py --runs 0 1000 --rounds 5          # a part
    python scripts/growth.py --make 5000 --outputs outputs     # only make the folders, to try anything beside them

The finished runs are those of a sweep of EWC and SI on digits over their strengths and ten seeds, and of finetuning.
One run of each strategy is trained; the folders of the others have its files, with their own settings, identities and
seeds, and average accuracies that are drawn. Files that do not differ are hard links. They lie in a temporary folder,
which is removed, and take about 20 KB a run.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from clrun.config.composition import compose
from clrun.config.settings import Settings
from clrun.results import collection
from clrun.results.results_file import Lines
from clrun.runs import prepare, train
from clrun.runs.prepared import Prepared

SEEDS = 10

STRATEGIES = {"ewc": "lambda", "si": "c", "finetune": None}

TINY = ("epochs=1", "device=cpu")

# Commands that are measured, in this order; {n} makes the settings of every round new.
COMMANDS = {
    "a single run": ["clrun", "epochs=1", "device=cpu", "lambda={n}"],
    "a sweep of 100 runs": ["clrun", "-m", "epochs=1", "device=cpu", "plots=false", "lambda={n}", "seed=range(100)"],
    "a report": ["clrun-report", "{outputs}", "--no-plots"],
    "a report with figures": ["clrun-report", "{outputs}"],
}

SPENT = Path(__file__).parent / "benchmark" / "spent.py"

MODULES = {"clrun": "clrun", "clrun-report": "clrun.commands.report"}


class Cost(NamedTuple):
    """What a command took."""

    wall: float  # seconds
    cpu: float  # seconds of all its processes, which a busy machine changes little
    memory: float  # MB (10^6 bytes): the largest of the command's processes


# ---------------------------------------------------------------- finished runs


def settings_of_many(models: Sequence[Prepared]) -> Iterator[tuple[Prepared, Settings]]:
    """Yield the settings of more and more runs, each with the run whose files it gets."""
    step = 0
    while True:
        step += 1
        for model in models:
            strength = STRATEGIES[model.settings["strategy"]]
            if strength is None and step > 1:
                continue
            changed = {} if strength is None else {strength: float(step)}
            for seed in range(SEEDS):
                values = {**model.settings.values, **changed, "seed": seed}
                told = {**changed, **model.settings.not_default}  # in the order of clrun's folders
                knobs = {key: values[key] for key in model.settings.knobs}
                yield model, replace(model.settings, values=values, knobs=knobs, not_default=told)


def make(outputs: Path, count: int) -> None:
    """Make the folders of finished runs until there are so many; those that are there stay."""
    if not count:
        return
    with tempfile.TemporaryDirectory(prefix="clrun-model-", dir=outputs) as folder:
        typed = [f"outputs={folder}", *TINY]
        models = [prepare.prepare(compose(f"strategy={name}", *typed)) for name in STRATEGIES]
        for model in models:
            train.train_run(model, quiet=True)
        drawn = random.Random(0)
        for model, settings in islice(settings_of_many(models), count):
            place(model, replace(settings, values={**settings.values, "outputs": str(outputs)}), drawn)


def place(model: Prepared, settings: Settings, drawn: random.Random) -> None:
    """Make the folder of a finished run: the files of the model, with a row of its own in summary.csv."""
    fingerprint = model.images.fingerprint
    directory, accuracy = settings.directory(fingerprint), drawn.uniform(0.5, 1.0)
    if directory.exists():
        return
    directory.mkdir(parents=True)
    for path in model.directory.iterdir():
        if path.name not in ("summary.csv", "accuracy_matrix.csv", "costs.csv"):
            os.link(path, directory / path.name)
    shutil.copy(model.directory / "costs.csv", directory / "costs.csv")
    header, *rows = (model.directory / "accuracy_matrix.csv").read_text().splitlines()
    last = dict(zip(header.split(","), rows[-1].split(","), strict=True)) | {"average": str(accuracy)}
    matrix = [header, *rows[:-1], ",".join(last.values())]
    (directory / "accuracy_matrix.csv").write_text("\n".join(matrix) + "\n")
    _, row = collection.stamp_and_row(model.directory / "summary.csv")
    row |= {key: str(settings[key]) for key in ("seed", *settings.knobs) if key in row}
    row |= {"run": settings.identity(fingerprint), "group": settings.group(fingerprint)}
    row |= {
        "stream": settings.stream(fingerprint),
        "setup": settings.setup(fingerprint),
        "average_accuracy": str(accuracy),
        "outputs": str(settings["outputs"]),
    }
    lines = Lines(list(row))
    (directory / "summary.csv").write_bytes(lines.header() + lines.row(row))


# ---------------------------------------------------------------- measuring


def measured(command: Sequence[str], folder: Path) -> Cost:
    """Run a command in a folder. Raise RuntimeError if it fails."""
    with (folder / "output.txt").open("w+") as output:
        typed = [sys.executable, SPENT, "spent.json", sys.executable, "-m", MODULES[command[0]], *command[1:]]
        code = subprocess.run(typed, cwd=folder, stdout=output, stderr=output).returncode
        if code:
            output.seek(0)
            raise RuntimeError(f"{' '.join(command)} ended with {code}:\n{output.read()}")
    return Cost(**json.loads((folder / "spent.json").read_text()))


def costs(
    sizes: Sequence[int], rounds: int, only: Sequence[str], folder: Path
) -> Iterator[tuple[str, int, list[Cost]]]:
    """Yield what each command takes beside each number of finished runs. The commands of a round take turns beside all
    of them, so that a busy machine is equally busy for each."""
    beside = {size: folder / str(size) for size in sizes}
    for size, place_of_size in beside.items():
        place_of_size.mkdir()
        (place_of_size / "outputs").mkdir()
        make(place_of_size / "outputs", size)
        if size:  # the first report makes the index
            first = measured(["clrun-report", "outputs", "--no-plots"], place_of_size)
            print(f"the first report, which makes the index, beside {size}: {first.wall:.1f} s", file=sys.stderr)
        else:  # a report needs a run
            measured(["clrun", "epochs=1", "device=cpu"], place_of_size)
    for number, name in enumerate(only):
        found: dict[int, list[Cost]] = {size: [] for size in sizes}
        for turn in range(rounds):
            for size in sizes:
                n = 10_000_019 + 1_000 * number + turn
                typed = [word.format(n=n, outputs="outputs") for word in COMMANDS[name]]
                found[size].append(measured(typed, beside[size]))
                print(f"{name}, beside {size}: {found[size][-1]}", file=sys.stderr, flush=True)
        yield from ((name, size, found[size]) for size in sizes)


def table(rows: Sequence[tuple[str, int, list[Cost]]], base: int) -> str:
    """Return the medians, and the ratios of the seconds of the CPU and of memory to those of the same round beside the
    fewest runs, in Markdown: the median, and in brackets the smallest and the largest."""
    lines = [
        "| | finished runs | wall, s | CPU, s | ratio | peak memory, MB | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    first = {name: found for name, size, found in rows if size == base}
    for name, size, found in rows:
        wall, cpu, memory = (statistics.median(getattr(cost, field) for cost in found) for field in Cost._fields)
        pairs = list(zip(found, first[name], strict=True))
        ratios = [one.cpu / other.cpu for one, other in pairs]
        kept = statistics.median(one.memory / other.memory for one, other in pairs)
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        lines.append(f"| {name} | {size:,} | {wall:.2f} | {cpu:.2f} | {spread} | {memory:.0f} | {kept:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Make the folders, measure, and print the table."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--runs", type=int, nargs="+", default=[0, 1000, 10_000, 50_000], metavar="N")
    flags.add_argument("--rounds", type=int, default=3)
    flags.add_argument("--only", nargs="+", choices=list(COMMANDS), default=list(COMMANDS), metavar="COMMAND")
    flags.add_argument("--make", type=int, metavar="N", help="only make so many finished runs")
    flags.add_argument("--outputs", type=Path, default=Path("outputs"), help="with --make: where")
    arguments = flags.parse_args()
    if arguments.make is not None:
        arguments.outputs.mkdir(parents=True, exist_ok=True)
        make(arguments.outputs, arguments.make)
        return
    with tempfile.TemporaryDirectory(prefix="clrun-growth-") as folder:
        rows = list(costs(arguments.runs, arguments.rounds, arguments.only, Path(folder)))
    print(table(rows, min(arguments.runs)))


if __name__ == "__main__":
    main()
