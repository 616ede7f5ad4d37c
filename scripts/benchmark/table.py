"""From the CSV of a benchmark to its tables in docs/results/performance.md. Ratios are taken within a round."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pandas as pd

from benchmark.workloads import SINGLE, SWEEP

PHASES = ("training", "consolidation", "evaluation", "plots", "whole")
NAMES = {
    "floor": "floor", "floor-graph": "floor, CUDA graphs", "ours": "clrun", "avalanche": "Avalanche",
    "avalanche-tensors": "Avalanche, tensors in memory", "clarena": "CLArena",
}  # fmt: skip
BEGIN, END = "<!-- {}: made by scripts/bench.py --table -->", "<!-- end of {} -->"


def tables(rows: pd.DataFrame) -> str:
    """All tables that the rows allow, as markdown."""
    parts = [circumstances(rows)]
    parts += [single(rows[rows.workload == name], workload.about) for name, workload in SINGLE.items()]
    parts += [sweep(rows[rows.workload == "W4"]), tasks(rows[rows.workload == "W6 tasks"]), widths(rows)]
    parts += [fisher(rows[rows.workload == "fisher"]), started(rows[rows.workload == "start-up"])]
    parts += [stacks(rows[rows.workload.isin(("stack", "sweep", "resnet"))])]
    return "\n\n".join(part for part in parts if part)


def circumstances(rows: pd.DataFrame) -> str:
    """Where, with what and when."""
    told = [f"{name} {', '.join(sorted(rows[name].dropna().astype(str).unique()))}" for name in ("torch", "commit")]
    where = ", ".join(rows.hardware.dropna().unique())
    threads = ", ".join(str(int(n)) for n in rows.threads.dropna().unique())
    return f"{where}; {threads} thread; {'; '.join(told)}."


def spread(values: Sequence[float], shown: Callable[[float], str]) -> str:
    """median unit (min to max)."""
    values = pd.Series(values).dropna()
    if values.empty:
        return ""
    middle, low, high = (shown(v) for v in (values.median(), values.min(), values.max()))
    return middle if low == high else f"{middle} ({low.split()[0]} to {high.split()[0]})"


def seconds(value: float) -> str:
    return f"{value:.3f} s" if value < 0.1 else f"{value:.2f} s" if value < 10 else f"{value:.0f} s"


def times(value: float) -> str:
    return f"{value:.2f} ×"


def markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def by_round(rows: pd.DataFrame, contender: str, phase: str, what: str = "cpu_seconds") -> pd.Series:
    mine = rows[(rows.contender == contender) & (rows.phase == phase)]
    return mine.set_index("round")[what]


def ratio(rows: pd.DataFrame, contender: str, phase: str, base: str = "floor", what: str = "cpu_seconds") -> str:
    """Of the base's time in the same round."""
    return spread(by_round(rows, contender, phase, what) / by_round(rows, base, phase, what), times)


def present(rows: pd.DataFrame) -> list[str]:
    return [name for name in NAMES if name in set(rows.contender)]


# ---------------------------------------------------------------- single runs


def single(rows: pd.DataFrame, about: str) -> str:
    """CPU seconds of each phase, and in how many times the floor's that is."""
    if rows.empty:
        return ""
    name, n = rows.workload.iloc[0], rows["round"].nunique()
    body = []
    for contender in present(rows):
        mine = rows[rows.contender == contender]
        cells = [NAMES[contender], *(spread(mine.groupby("round")[m].first(), percent) for m in SCORES)]
        body.append(cells + [cell(rows, contender, phase) for phase in PHASES])
    wall = spread(by_round(rows, "floor", "whole", "wall_seconds"), seconds)
    caption = f"**{name}**: {about}. CPU seconds, n = {n}; the floor's wall time for the whole is {wall}."
    return f"{caption}\n\n{markdown(['', 'accuracy', 'forgetting', *PHASES], body)}{peers_said(rows)}"


SCORES = ("accuracy", "forgetting")


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def cell(rows: pd.DataFrame, contender: str, phase: str) -> str:
    """1.08 × (1.05 to 1.12), 2.51 s; the floor: 2.31 s (2.20 to 2.40)."""
    mine, floor = by_round(rows, contender, phase), by_round(rows, "floor", phase)
    if mine.empty or mine.median() < 0.001:
        return ""
    if contender == "floor" or floor.empty or floor.median() < 0.001:
        return spread(mine, seconds)
    return f"{ratio(rows, contender, phase)}, {seconds(mine.median())}"


def peers_said(rows: pd.DataFrame) -> str:
    """How many times longer than clrun the peers take, without start-up."""
    others = [name for name in present(rows) if not name.startswith(("floor", "ours"))]
    plain = by_round(rows, "ours", "whole") - by_round(rows, "ours", "plots")  # as with plots=false
    lines = [
        f"{NAMES[o]} takes {ratio(rows, o, 'whole', 'ours')} clrun's CPU time for the whole, "
        f"{spread(by_round(rows, o, 'whole') / plain, times)} without its plots"
        for o in others
    ]
    notes = [f"{NAMES[o]}: {note}" for o in others for note in rows[rows.contender == o].note.dropna().unique()]
    return "".join(f"\n\n{'; '.join(said)}." for said in (lines, notes) if said)


# ---------------------------------------------------------------- everything else


def sweep(rows: pd.DataFrame) -> str:
    if rows.empty:
        return ""
    body = []
    for contender in (name for name in dict.fromkeys(["floor", "clrun", *NAMES]) if name in set(rows.contender)):
        mine = rows[rows.contender == contender]
        spent = [spread(mine[what], seconds) for what in ("wall_seconds", "cpu_seconds")]
        relative = ratio(rows, contender, "sweep", what="wall_seconds")
        body.append([NAMES.get(contender, contender), *spent, relative, mine.note.iloc[0], str(len(mine))])
    head = ["", "wall time", "CPU time", "wall time of the floor's", "how", "n"]
    return f"**W4**: {SWEEP.about}.\n\n{markdown(head, body)}"


def tasks(rows: pd.DataFrame) -> str:
    """Steps early and late, and what is held after each length."""
    if rows.empty:
        return ""
    steps = markdown(["EWC's step", "early", "late", "late of early", "n"], list(slowdowns(rows)))
    held = rows[(rows.contender == "clrun") & rows.memory_mb.notna()]
    held = held.sort_values("phase", key=lambda s: s.str.split().str[0].astype(int))
    body = [[r.phase, f"{r.memory_mb:.0f} MB", f"{r.state_mb:.2f} MB"] for r in held.itertuples()]
    table = markdown(["clrun", "the process at most", "EWC's state"], body)
    return f"**W6**, growth with tasks (Permuted MNIST, 784-400-400):\n\n{steps}\n\n{table}"


def slowdowns(rows: pd.DataFrame) -> Iterator[list[str]]:
    """A step of task 2 beside one of the last task, a contender."""
    for contender in rows.contender.unique():
        found = rows[(rows.contender == contender) & rows.phase.str.startswith("step")].phase.unique()
        phases = sorted(found, key=lambda p: int(p.split()[-1]))
        early, late = (by_round(rows, contender, p) / by_round(rows, contender, p, "count") * 1e6 for p in phases)
        shown = [f"{spread(v, micro)}, task {p.split()[-1]}" for v, p in zip((early, late), phases, strict=True)]
        yield [NAMES.get(contender, contender), *shown, spread(late / early, lambda v: f"{v:.3f}"), str(len(late))]


def micro(value: float) -> str:
    return f"{value:,.0f} µs"


def widths(rows: pd.DataFrame) -> str:
    mine = rows[rows.workload.str.startswith("W6 width") & (rows.phase == "training")]
    if mine.empty:
        return ""
    body = []
    for name in mine.workload.unique():
        one = mine[mine.workload == name]
        each = [by_round(one, c, "training") / by_round(one, c, "training", "count") * 1e6 for c in ("floor", "ours")]
        width = name.split()[-1]
        shown = [f"784-{width}-{width}", *(spread(v, micro) for v in each), ratio(one, "ours", "training")]
        body.append([*shown, str(len(each[0]))])
    head = ["EWC's step", "floor", "clrun", "clrun of the floor's", "n"]
    return f"**W6**, growth with parameters (batch 128):\n\n{markdown(head, body)}"


def fisher(rows: pd.DataFrame) -> str:
    if rows.empty:
        return ""
    body = []
    for phase in rows.phase.unique():
        each = [by_round(rows, c, phase) / by_round(rows, c, phase, "count") * 1e3 for c in ("floor", "clrun")]
        body.append([phase, *(spread(v, lambda x: f"{x:.4f} ms") for v in each)])
        body[-1] += [ratio(rows, "clrun", phase), str(len(each[0]))]
    head = ["exact Fisher of 784-400-400, a sample", "floor", "clrun", "clrun of the floor's", "n"]
    return markdown(head, body)


def started(rows: pd.DataFrame) -> str:
    if rows.empty:
        return ""
    body = []
    for phase in rows.phase.unique():
        mine = rows[rows.phase == phase]
        body.append([f"`{phase}`" if "(" not in phase else phase, spread(mine.cpu_seconds, seconds)])
        body[-1] += [spread(mine.wall_seconds, seconds), str(len(mine))]
    return markdown(["whole command", "CPU time", "wall time", "n"], body)


def stacks(rows: pd.DataFrame) -> str:
    """On a GPU: many runs as a stack and one after another, and ResNet-18."""
    if rows.empty:
        return ""
    named = {"stack": "W1", "sweep": "W1", "resnet": "ResNet-18"}
    body = [
        [
            f"{named[r.workload]}, {r.contender}", r.phase, f"{int(r.count)}", seconds(r.wall_seconds),
            "" if pd.isna(r.accuracy) else percent(r.accuracy),
            "" if pd.isna(r.memory_mb) else f"{r.memory_mb:.0f} MB", r.note or "",
        ]
        for r in rows.fillna({"note": ""}).itertuples()
    ]  # fmt: skip
    return markdown(["", "what", "runs, or steps", "wall time", "accuracy", "peak memory", "how"], body)


# ---------------------------------------------------------------- into the page


def entered(page: str, name: str, text: str) -> str:
    """The page with what stands between the marks of `name` replaced. ValueError if there are no such marks."""
    begin, end = BEGIN.format(name), END.format(name)
    if begin not in page or end not in page:
        raise ValueError(f"there are no lines '{begin}' and '{end}'")
    before, _, rest = page.partition(begin)
    return f"{before}{begin}\n\n{text}\n\n{end}{rest.partition(end)[2]}"


def found(folder: Path) -> Iterator[tuple[str, pd.DataFrame]]:
    """The benchmarks that lie there: cpu, cuda."""
    for name in ("cpu", "cuda"):
        path = folder / f"performance_{name}.csv"
        if path.exists():
            yield name, pd.read_csv(path, dtype={"commit": str, "note": str})
