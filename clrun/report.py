"""`clrun-report [DIR]`: statistics over the seeds of many runs, as tables and pictures.

A row is a group: runs that differ in nothing but the seed, on one stream. For n values x with mean m and standard
deviation s (n - 1), the 95 % interval of the mean is m -+ t(0.975, n - 1) s / sqrt(n), Student's t; for n = 1 there is
none. A diverged run has no accuracy: it is counted beside the mean, never in it.
"""

import argparse
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
import pandas as pd
from scipy.stats import t as student

from clrun import catalog, metrics, results
from clrun.errors import UsageError

LEVEL = 0.95
DERIVED = ("gap_closed", "intransigence", "accuracy_per_second", "accuracy_per_mb", "accuracy_per_wh")
MEASURES = (
    *metrics.SUMMARY_METRICS,
    "validation_accuracy",
    *metrics.CONTINUAL_METRICS,
    *(cost for cost in results.COSTS if cost not in ("stack_size", "threads")),
    *DERIVED,
)
REFERENCES = ("joint", "finetune")
STATISTICS = ("n", "mean", "sd", "low", "high")


class Statistic(NamedTuple):
    """Of n values: mean, standard deviation (n - 1), and the 95 % t-interval of the mean; nan where undefined."""

    n: int
    mean: float
    sd: float
    low: float
    high: float


def statistic(values: pd.Series) -> Statistic:
    """Of the values that are there."""
    found = values.dropna().astype(float)
    n, mean, sd = len(found), found.mean(), found.std()
    half = student.ppf((1 + LEVEL) / 2, n - 1) * sd / np.sqrt(n) if n > 1 else np.nan
    return Statistic(n, mean, sd, mean - half, mean + half)


# ---------------------------------------------------------------- what is read


def read(folder: Path) -> pd.DataFrame:
    """The runs of a folder, one a row, with what follows from them (`DERIVED`). UsageError where there are none."""
    runs = results.collect(folder)
    if runs.empty and (folder / "results.csv").is_file():
        runs = results.read_summary(folder / "results.csv")
    if runs.empty:
        raise UsageError(f"{folder}: there are no finished runs there; name the folder that clrun's outputs= named.")
    return with_derived(runs)


def with_derived(runs: pd.DataFrame) -> pd.DataFrame:
    """runs with the columns of `DERIVED`, nan where they are not known."""
    runs = runs.reindex(columns=[*runs.columns, *(name for name in MEASURES if name not in runs.columns)])
    training = runs["train_seconds"] + runs["consolidate_seconds"].fillna(0)
    units = {"second": training, "mb": runs["peak_memory_mb"], "wh": runs["energy_wh"]}
    for unit, cost in units.items():
        runs[f"accuracy_per_{unit}"] = runs["average_accuracy"] / cost.where(cost > 0)
    for _, stream in runs[runs["status"] == "done"].groupby("stream"):
        joint, finetune = (by_seed(stream, name) for name in REFERENCES)
        for _, rows in stream.groupby("group"):
            runs.loc[rows.index, "gap_closed"] = gap_closed(rows, joint, finetune)
            runs.loc[rows.index, "intransigence"] = intransigence(rows, joint)
    return runs


def by_seed(runs: pd.DataFrame, strategy: str) -> pd.Series:
    """seed -> average accuracy of a strategy's runs."""
    rows = runs[runs["strategy"] == strategy].drop_duplicates("seed")
    return rows.set_index("seed")["average_accuracy"]


def gap_closed(rows: pd.DataFrame, joint: pd.Series, finetune: pd.Series) -> pd.Series:
    """(accuracy - finetune) / mean(joint - finetune), paired by seed, over the seeds that all three were run with; the
    mean of it is the share of the mean gap. nan for the two themselves, and where joint is not the better one."""
    upper, lower = rows["seed"].map(joint), rows["seed"].map(finetune)
    shared = upper.notna() & lower.notna() & rows["average_accuracy"].notna() & ~rows["strategy"].isin(REFERENCES)
    gap = (upper - lower)[shared].mean()
    return ((rows["average_accuracy"] - lower) / gap).where(shared & (gap > 0))


def intransigence(rows: pd.DataFrame, joint: pd.Series) -> pd.Series:
    """What is lost in learning: joint's accuracy minus the accuracy on each task when it was learnt, means over tasks,
    paired by seed (Chaudhry et al. 2018, with all tasks as the reference). nan for joint itself."""
    own = rows["learning_accuracy"].where(rows["strategy"] != "joint")
    return rows["seed"].map(joint) - own


# ---------------------------------------------------------------- the table


def varying(runs: pd.DataFrame) -> list[str]:
    """The keys in which groups differ, strategy first: within a strategy, or between two in a value that both take."""
    private = {key for key, said in catalog.read().root.items() if not said.identity}
    apart = {"run", "group", "status", "seed", "strategy", "stream", *results.TAIL, *MEASURES} | private
    firsts = runs.drop_duplicates(["stream", "group"])
    keys = [key for key in runs.columns if key not in apart]
    return ["strategy", *(key for key in keys if differs(firsts, key))]


def differs(groups: pd.DataFrame, key: str) -> bool:
    """Whether a key tells groups apart; that one strategy takes it and another does not is no difference."""
    within = groups.groupby("strategy")[key].nunique(dropna=False)
    return bool((within > 1).any()) or groups[key].nunique() > 1


@dataclass(frozen=True)
class Row:
    """A group of runs: what it is, and what it measured."""

    stream: str
    group: str
    keys: Mapping[str, object]  # of the varying keys
    done: pd.DataFrame
    diverged: int

    def __getitem__(self, measure: str) -> Statistic:
        return statistic(self.done[measure])

    @property
    def label(self) -> str:
        """'ewc lambda=100'."""
        told = [f"{key}={text(value)}" for key, value in self.keys.items() if key != "strategy" and not pd.isna(value)]
        return " ".join([str(self.keys["strategy"]), *told])


def text(value: object) -> str:
    """A key's value as it is typed; empty where it is not taken."""
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower()
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.15g}"
    return str(value)


def rows_of(runs: pd.DataFrame) -> list[Row]:
    """One row a group; runs of different streams are never in one."""
    keys = varying(runs)
    return [
        Row(stream, group, rows.iloc[0][keys].to_dict(), rows[rows["status"] == "done"], int(diverged(rows).sum()))
        for (stream, group), rows in runs.groupby(["stream", "group"], sort=False)
    ]


def diverged(runs: pd.DataFrame) -> pd.Series:
    return runs["status"] == "diverged"


def ordered(rows: Sequence[Row], by: str, reverse: bool) -> list[Row]:
    """By a measure, the largest first, or by a key, the smallest first; what has none last. UsageError if neither."""
    keys = list(rows[0].keys)
    if by not in (*MEASURES, *keys):
        raise UsageError(
            f"--sort {by}: rows are sorted by a measure or by a key in which they differ: "
            f"{', '.join((*keys, *MEASURES))}."
        )
    found = [row[by].mean if by in MEASURES else row.keys[by] for row in rows]
    order = pd.Series(found).sort_values(ascending=(by in MEASURES) == reverse, kind="stable", na_position="last")
    return [rows[i] for i in order.index]


def table(rows: Sequence[Row]) -> pd.DataFrame:
    """report.csv: group, the varying keys, metric, n, mean, sd, low, high. `diverged`: of n runs the share that did."""
    lines = []
    for row in rows:
        head = {"group": row.group, **row.keys}
        found = {measure: row[measure] for measure in MEASURES}
        lines += [{**head, "metric": name, **one._asdict()} for name, one in found.items() if one.n]
        ended = len(row.done) + row.diverged
        lines.append({**head, "metric": "diverged", "n": ended, "mean": row.diverged / ended})
    return results.objects(lines, ["group", *rows[0].keys, "metric", *STATISTICS])


# ---------------------------------------------------------------- for readers

SHARES = (*metrics.SUMMARY_METRICS, "validation_accuracy", *metrics.CONTINUAL_METRICS, "gap_closed", "intransigence")


def number(measure: str, value: float) -> str:
    """In percent for shares, with three digits for costs; empty for nan."""
    if np.isnan(value):
        return ""
    return f"{100 * value:.1f}" if measure in SHARES else f"{value:.3g}"


def cells(row: Row, measure: str, shown: Sequence[str]) -> dict[str, str]:
    """A line for readers: the measure in full, others as mean ± standard deviation."""
    main = row[measure]
    interval = "" if np.isnan(main.low) else f"[{number(measure, main.low)}, {number(measure, main.high)}]"
    told = {key: text(value) for key, value in row.keys.items()}
    told |= {"n": str(main.n), "diverged": str(row.diverged) if row.diverged else ""}
    told |= {measure: number(measure, main.mean), "sd": number(measure, main.sd), "95 % interval": interval}
    return told | {name: with_deviation(name, row[name]) for name in shown if name != measure}


def with_deviation(measure: str, one: Statistic) -> str:
    """'98.1 ± 0.4'."""
    mean, sd = number(measure, one.mean), number(measure, one.sd)
    return f"{mean} ± {sd}" if mean and sd else mean


def readable(rows: Sequence[Row], measure: str) -> pd.DataFrame:
    """Rows of one stream as text; columns in which nothing stands are left out."""
    others = ("average_accuracy", "forgetting", "learning_accuracy", "validation_accuracy", "train_seconds", *DERIVED)
    lines = pd.DataFrame([cells(row, measure, others) for row in rows]).fillna("")
    return lines.loc[:, (lines != "").any()]


def markdown(lines: pd.DataFrame) -> str:
    """A table of text in Markdown."""
    body = [[cell.replace("|", "\\|") for cell in line] for line in lines.to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(line)} |" for line in [list(lines), ["---"] * lines.shape[1], *body])


def latex(lines: pd.DataFrame) -> str:
    """The same for LaTeX (needs its package booktabs)."""
    return lines.to_latex(index=False, escape=True).replace("±", "$\\pm$")


def remarks(rows: Sequence[Row]) -> list[str]:
    """What a reader of these rows must know."""
    said = [
        f"{row.label}: {row.diverged} of {row.diverged + len(row.done)} runs diverged; they are in no mean."
        for row in rows
        if row.diverged
    ]
    lonely = sum(len(row.done) == 1 for row in rows)
    said += (
        [f"{lonely} rows have one run each: no deviation, no interval; type e.g. 'seed=range(5)'."] if lonely else []
    )
    told = pd.concat([row.done for row in rows])
    if "task_id_at_test" in told and told["task_id_at_test"].astype(str).str.lower().eq("true").any():
        said.append("task_id_at_test=true: the task's number was given at test time in these rows.")
    if told["device"].nunique() > 1:
        said.append(f"Costs are of different devices: {', '.join(sorted(told['device'].dropna().unique()))}.")
    return said


def heading(row: Row) -> str:
    """What the rows of a stream have in common."""
    one = row.done.iloc[0] if len(row.done) else row.keys
    named = [f"{one[key]}" for key in ("dataset", "split") if key in one]
    named += [f"{key} {one[key]}" for key in ("scenario", "tasks") if key in one]
    return f"{', '.join(named)} (stream {row.stream})"


# ---------------------------------------------------------------- two groups


def chosen(rows: Sequence[Row], said: str) -> list[Row]:
    """The rows that a text names: a strategy, a group's hash, or 'ewc lambda=100' as in a label. UsageError if none."""
    words = said.replace(",", " ").split()
    found = [row for row in rows if row.group == said or set(words) <= set(row.label.split())]
    if not found:
        raise UsageError(f"--compare {said}: there is no such row; there are {'; '.join(row.label for row in rows)}.")
    return found


def pairs(rows: Sequence[Row], a: str, b: str) -> list[tuple[Row, Row]]:
    """The rows named a and b, stream by stream. UsageError where they share no stream, or a text names several rows."""
    ours, theirs = chosen(rows, a), chosen(rows, b)
    found = [(one, other) for one in ours for other in theirs if one.stream == other.stream]
    for said, side in ((a, [one.group for one, _ in found]), (b, [other.group for _, other in found])):
        if len(set(side)) < len(side):
            other = chosen(rows, b if said == a else a)
            raise UsageError(
                f"--compare {a} {b}: that is several rows; name one of each, such as "
                f"'{other[0].label}' or its group {other[0].group}."
            )
    if not found:
        raise UsageError(f"--compare {a} {b}: they have no stream in common, so their accuracies do not compare.")
    return found


def difference(one: Row, other: Row, measure: str) -> pd.Series:
    """seed -> measure of one minus measure of the other, over the seeds that both are done with."""
    return (one.done.set_index("seed")[measure] - other.done.set_index("seed")[measure]).dropna()


def verdict(one: Row, other: Row, measure: str) -> str:
    """Mean difference, interval and n in a sentence, and what they allow to say."""
    found = statistic(difference(one, other, measure))
    head = f"{measure}, {one.label} minus {other.label}: "
    lost = one.diverged + other.diverged
    tail = f" {lost} diverged runs are left out." if lost else ""
    if found.n < 2:
        return f"{head}n = {found.n} pairs with the same seed: too few to tell anything; run both with 5 seeds.{tail}"
    interval = f"[{number(measure, found.low)}, {number(measure, found.high)}]"
    told = f"{head}{number(measure, found.mean)} (95 % interval {interval}, n = {found.n} pairs by seed)."
    return f"{told} {judged(found)}{tail}"


def judged(found: Statistic) -> str:
    """Whether the interval excludes 0; if not, how many pairs would be needed for it to, all else being equal."""
    if found.low > 0 or found.high < 0:
        return "The interval excludes 0."
    if found.mean == 0:
        return f"n = {found.n} is too small to tell them apart, if they differ at all."
    return (
        f"n = {found.n} is too small to tell: the interval includes 0. If mean and deviation stay as they are, about "
        f"{enough(found)} pairs would do."
    )


def enough(found: Statistic) -> int:
    """The smallest n at which the interval would exclude 0; at most 10000."""
    n = np.arange(2, 10001)
    half = student.ppf((1 + LEVEL) / 2, n - 1) * found.sd / np.sqrt(n)
    return int(n[half < abs(found.mean)].min(initial=10000))


# ---------------------------------------------------------------- the command


def cli() -> NoReturn:
    """The console script."""
    from clrun.cli import end_with

    end_with(lambda _: command(sys.argv[1:]))


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    from clrun.cli import Parser

    parser = Parser(prog="clrun-report", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("folder", nargs="?", type=Path, default=Path("outputs"), help="what clrun's outputs= named")
    parser.add_argument("--sort", default="average_accuracy", metavar="NAME", help="a measure or a key")
    parser.add_argument("--reverse", action="store_true", help="the other way round")
    parser.add_argument("--measure", default="average_accuracy", metavar="NAME", help="which to show in full")
    parser.add_argument("--compare", nargs=2, metavar=("A", "B"), help="two rows, such as ewc 'si c=0.1', by seed")
    parser.add_argument("--no-pictures", action="store_true", help="tables alone")
    return parser.parse_args(list(arguments))


def command(arguments: Sequence[str]) -> None:
    """Write report.csv, report.md, report.tex and pictures into the folder, and print the tables."""
    asked = parsed(arguments)
    if asked.measure not in MEASURES:
        raise UsageError(f"--measure {asked.measure}: there are {', '.join(MEASURES)}.")
    rows = ordered(rows_of(read(asked.folder)), asked.sort, asked.reverse)
    if asked.compare:
        for one, other in pairs(rows, *asked.compare):
            print(verdict(one, other, asked.measure))
        return
    results.write_table(asked.folder / "report.csv", table(rows))
    write_readable(asked.folder, rows, asked.measure)
    if not asked.no_pictures:
        from clrun import report_pictures

        report_pictures.draw(asked.folder, rows)
    print(f"Written: {asked.folder / 'report.csv'}, .md, .tex" + (", report/" if not asked.no_pictures else ""))


def streams(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows, stream by stream."""
    names = dict.fromkeys(row.stream for row in rows)
    return [[row for row in rows if row.stream == name] for name in names]


def write_readable(folder: Path, rows: Sequence[Row], measure: str) -> None:
    """report.md, report.tex and the terminal: one table a stream."""
    texts: list[str] = []
    sources: list[str] = []
    for part in streams(rows):
        lines, said = readable(part, measure), remarks(part)
        texts.append("\n\n".join([f"## {heading(part[0])}", markdown(lines), *said]))
        sources.append("\n".join([f"% {heading(part[0])}", latex(lines), *(f"% {remark}" for remark in said)]))
        tell(heading(part[0]), lines, said)
    results.write_text(folder / "report.md", "\n\n".join(texts) + "\n")
    results.write_text(folder / "report.tex", "\n\n".join(sources) + "\n")


def tell(title: str, lines: pd.DataFrame, said: Collection[str]) -> None:
    """A table on the terminal, and what is to be said of it."""
    from clrun import terminal

    console = terminal.make_console()
    shown = terminal.titled(title)
    for name in lines:
        shown.add_column(name.replace("_", "\n"), justify="left" if name == "strategy" else "right")
    for line in lines.itertuples(index=False):
        shown.add_row(*line)
    console.print(shown)
    for remark in said:
        terminal.warn(console, remark)


if __name__ == "__main__":
    cli()
