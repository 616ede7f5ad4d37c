"""Measure clrun against a bare loop and against its peers, in one run whose contenders take turns.

    python scripts/bench.py                           # the floor and clrun: about 8 minutes on an idle machine
    python scripts/bench.py --peers                   # with Avalanche and CLArena, installed when first asked for
    python scripts/bench.py --only W1,W3 --rounds 3
    python scripts/bench.py --table                   # docs/results/performance.md from the CSVs beside it

Every contender is a process of one thread. A round asks each of them for the same run, with a seed of the round; rounds
start with another contender in turn. Times are CPU seconds of the process (and wall seconds), a phase at a time.
The CSV is written anew, atomically, after every row; with --only, its rows of other workloads stay. Peers are
pinned; see scripts/benchmark/peers.py.
"""

import argparse
import io
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd
from benchmark import cuda, extras, peers, table
from benchmark.data import Shelf
from benchmark.measure import COLUMNS, Broken, Row, crew, interleaved
from benchmark.workloads import SINGLE, WIDTHS, of_width

from clrun.system.errors import UsageError

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs" / "results"
Part = tuple[str, Callable[[], Iterator[Row]]]
NAMES = (*SINGLE, "W4", "W6", "start-up", "fisher", "stack", "sweep", "resnet")


def arguments(line: Sequence[str] | None) -> argparse.Namespace:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--rounds", type=int, default=5)
    flags.add_argument("--only", type=lambda text: text.split(","), help=f"some of {','.join(NAMES)}")
    flags.add_argument("--quick", action="store_true", help="on tiny drawn data: for a test, not for a number")
    flags.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    flags.add_argument(
        "--card", action="store_true", help="what --device cuda measures, on whichever device: a rehearsal"
    )
    flags.add_argument(
        "--peers", type=lambda text: text.split(","), nargs="?", const=list(peers.PINNED), default=[], metavar="PEERS",
        help=f"also {' and '.join(peers.PINNED)}, or those that are named",
    )  # fmt: skip
    flags.add_argument("--peer-env", type=Path, default=peers.default_folder(), help="the folder of their environments")
    flags.add_argument("--data-dir", help="the folder with MNIST in it (default: clrun's)")
    flags.add_argument("--csv", type=Path, help="default: docs/results/performance_<device>.csv")
    flags.add_argument("--table", action="store_true", help="measure nothing; enter the CSVs into --page")
    flags.add_argument("--page", type=Path, default=DOCS / "performance.md")
    asked = flags.parse_args(line)
    for flag, said, known in (("--only", asked.only or (), NAMES), ("--peers", asked.peers, peers.PINNED)):
        unknown = [name for name in said if name not in known]
        if unknown:
            raise UsageError(f"{flag} {','.join(said)}: there is no {unknown[0]}; there are {', '.join(known)}.")
    return asked


def hardware(device: str) -> str:
    """Cores and processor, or the card."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux
        model = platform.processor() or platform.machine()
    return f"{os.cpu_count()} cores of {model}"


def commit() -> str:
    """Of this checkout; a trailing + where clrun itself has been changed since."""
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain", "clrun", "conf"], capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def plan(asked: argparse.Namespace, shelf: Shelf, member: Callable, found: Mapping[str, str]) -> Iterator[Part]:
    """What is to be measured, in order: (name, how). found: the peers that are to be asked, and their Pythons."""
    rounds, quick = asked.rounds, asked.quick
    if asked.card or asked.device == "cuda":
        yield from cuda.plan(shelf, member, found, rounds, quick, asked.device)
        return
    yield "start-up", lambda: extras.started(rounds, quick)
    yield "fisher", lambda: extras.fisher_alone(shelf, rounds, quick)
    for name, workload in SINGLE.items():
        names = ["floor", "ours", *extras.of_peers(workload, found)]
        yield name, lambda w=workload, n=names: interleaved(w, shelf, [member(one) for one in n], rounds, "cpu")
    for width in WIDTHS[:1] if quick else WIDTHS:
        pair = [member("floor"), member("ours")]
        yield "W6", lambda w=width, p=pair: interleaved(of_width(w), shelf, p, rounds, "cpu")
    yield "W6", lambda: extras.growth(shelf, found, rounds, quick)
    others = [member(name) for name in extras.of_peers(extras.SWEEP, found)]
    yield "W4", lambda: extras.sweep(shelf, others, max(1, rounds // 2), quick)


def measure(asked: argparse.Namespace) -> int:
    """Every part of the plan that is asked for, into the CSV; 1 if a contender failed in one, else 0."""
    import torch

    if asked.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: there is no CUDA device here; leave --device out to measure on the CPU.")
    target = asked.csv or DOCS / f"performance_{asked.device}.csv"
    kept = pd.read_csv(target, dtype={"commit": str}) if asked.only and target.exists() else pd.DataFrame()
    always = {
        "hardware": hardware(asked.device), "device": asked.device, "threads": 1, "torch": torch.__version__,
        "commit": commit(),
    }  # fmt: skip
    rows: list[Row] = []
    failed = 0
    pythons = peers.ready(asked.peer_env, asked.peers)
    with tempfile.TemporaryDirectory(prefix="clrun-bench-") as folder, crew(pythons) as member:
        for name, how in plan(asked, Shelf(Path(folder), asked.data_dir, asked.quick), member, pythons):
            if asked.only is None or name in asked.only:
                try:
                    for row in how():
                        rows.append(row | always)
                        write(target, joined(kept, pd.DataFrame(rows, columns=COLUMNS)))
                except Broken as error:  # what the others have shown stays
                    failed = 1
                    print(f"bench: {name}: {error}", file=sys.stderr)
                write(target, joined(kept, pd.DataFrame(rows, columns=COLUMNS)))
                print(f"{name}: {len(rows)} rows in {target}", file=sys.stderr, flush=True)
    return failed


def joined(kept: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """What has been measured now, beside what --only left out."""
    if kept.empty:
        return rows
    return pd.concat([kept[~kept.workload.isin(rows.workload)], rows], ignore_index=True)


def write(target: Path, rows: pd.DataFrame) -> None:
    """Under a temporary name, then renamed."""
    text = io.StringIO()
    rows.to_csv(text, index=False, float_format="%.6g", lineterminator="\n")
    replace(target, text.getvalue())


def replace(target: Path, text: str) -> None:
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(target)


def tabulate(asked: argparse.Namespace) -> int:
    """The tables of every CSV that lies beside the page, or of --csv as the CPU's, between the page's marks."""
    page = asked.page.read_text(encoding="utf-8")
    given = [("cpu", pd.read_csv(asked.csv, dtype={"commit": str, "note": str}))] if asked.csv else None
    for name, rows in given or table.found(asked.page.parent):
        page = table.entered(page, name, table.tables(rows))
    replace(asked.page, page)
    return 0


def main(line: Sequence[str] | None = None) -> int:
    try:
        asked = arguments(line)
        return tabulate(asked) if asked.table else measure(asked)
    except UsageError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
