"""Compare the CPU time of runs with that of another checkout, such as one of an earlier commit.

    git worktree add ../before COMMIT
    python scripts/compare_speed.py ../before                     # W0, W1 and W3, seven rounds
    python scripts/compare_speed.py ../before --only W3 --rounds 40 --pictures 12000 2000

In a round, a process of each checkout trains on tiny data first, and then the run that is timed, with the round's seed.
The next round begins with the other checkout. The table has the medians of CPU seconds, and of the ratios of this
checkout to the other one within a round, with the smallest and the largest.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
from benchmark.data import Shelf
from benchmark.measure import Broken, Contender, Row, rows_of, told
from benchmark.table import PHASES, by_round, markdown, ratio, seconds
from benchmark.workloads import SINGLE, Workload

from clrun.system.errors import UsageError

THIS, OTHER = "ours", "ours-other"  # contenders, whose names begin with that of their worker


def arguments(line: Sequence[str] | None) -> argparse.Namespace:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("other", type=Path, metavar="CHECKOUT", help="the folder of the other checkout")
    flags.add_argument("--only", type=lambda text: text.split(","), default=["W0", "W1", "W3"], metavar="WORKLOADS",
                       help=f"some of {','.join(SINGLE)}")  # fmt: skip
    flags.add_argument("--rounds", type=int, default=7)
    flags.add_argument("--pictures", type=int, nargs=2, metavar=("TRAINING", "TEST"),
                       help="only so many, so that the two take turns within a second or so")  # fmt: skip
    flags.add_argument("--quick", action="store_true", help="on tiny drawn data: for a test, not for a number")
    flags.add_argument("--data-dir", help="the folder with MNIST in it (default: clrun's)")
    flags.add_argument("--csv", type=Path, help="where every time is written, too")
    asked = flags.parse_args(line)
    unknown = [name for name in asked.only if name not in SINGLE]
    if unknown:
        raise UsageError(f"--only: there is no {unknown[0]}; there are {', '.join(SINGLE)}.")
    if not Contender(OTHER, scripts=asked.other / "scripts").worker.is_file():
        raise UsageError(
            f"{asked.other} is no checkout of clrun with scripts/benchmark; type git worktree add {asked.other} COMMIT."
        )
    if asked.rounds < 1:
        raise UsageError(f"--rounds {asked.rounds}: type a number of at least 1.")
    return asked


def compared(workload: Workload, shelf: Shelf, other: Path, rounds: int) -> Iterator[Row]:
    """Rows of every phase of both checkouts. Each round has new processes, since where a process has its memory counts,
    too."""
    pair = [Contender(THIS), Contender(OTHER, scripts=other.resolve() / "scripts")]
    for number in range(rounds):
        for contender in pair if number % 2 else reversed(pair):
            try:
                contender.ask(told(workload, shelf, 0, "cpu", tiny=True))
                answer = contender.ask(told(workload, shelf, number, "cpu"))
            finally:
                contender.close()
            yield from rows_of(workload.name, contender.name, number, answer)


def table(rows: pd.DataFrame) -> str:
    """A line for each workload and phase, as markdown."""
    head = ["workload", "phase", "rounds", "the other checkout", "this one", "this / the other"]
    lines = []
    for name, mine in rows.groupby("workload"):
        for phase in (phase for phase in PHASES if phase in set(mine["phase"])):
            medians = [seconds(by_round(mine, contender, phase).median()) for contender in (OTHER, THIS)]
            n = str(mine["round"].nunique())
            lines.append([str(name), phase, n, *medians, ratio(mine, THIS, phase, base=OTHER)])
    return markdown(head, lines)


def main(line: Sequence[str] | None = None) -> int:
    try:
        asked = arguments(line)
    except UsageError as error:
        print(f"compare_speed: {error}", file=sys.stderr)
        return 2
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="clrun-speed-") as folder:
        shelf = Shelf(Path(folder), asked.data_dir, asked.quick)
        for name in asked.only:
            workload = SINGLE[name]
            if asked.pictures and workload.kind != "digits":
                workload = replace(workload, pictures=tuple(asked.pictures))
            try:
                for row in compared(workload, shelf, asked.other, asked.rounds):
                    rows.append(row)
                    if asked.csv:
                        pd.DataFrame(rows).to_csv(asked.csv, index=False, lineterminator="\n")
            except Broken as error:
                print(f"compare_speed: {name}: {error}", file=sys.stderr)
                return 1
            print(f"{name}: {asked.rounds} rounds", file=sys.stderr, flush=True)
    print(table(pd.DataFrame(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
