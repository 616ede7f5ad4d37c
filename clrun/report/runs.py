"""What a report reads: the runs of a folder, one a row, and what follows for each from the others of its stream.

accuracy_kept    = average_accuracy - that of finetune       (what forgetting would have taken), same seed
total_seconds    = train_seconds + consolidate_seconds
relative_seconds = total_seconds / that of finetune, same seed
kept_per_second  = accuracy_kept / total_seconds
kept_per_mb      = accuracy_kept / state_mb                  (what the strategy keeps beside its network)
kept_per_wh      = accuracy_kept / energy_wh
gap_closed       = (average_accuracy - finetune) / mean over the seeds of (joint - finetune)
intransigence    = joint's average_accuracy - learning_accuracy
carbon_g         = energy_wh / 1000 * grams_per_kwh
money            = wall_seconds / 3600 * price_per_hour
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from clrun.config import catalog
from clrun.results import columns, costs, run_files
from clrun.results.columns import SUMMARY_HEAD, SUMMARY_TAIL
from clrun.results.outcome import RunStatus
from clrun.system.errors import UsageError

REFERENCES = ("joint", "finetune")


KEPT = ("accuracy_kept", "kept_per_second", "kept_per_mb", "kept_per_wh")


DERIVED = tuple(columns.REPORT_METRIC_MEANINGS)


MEASURES = (
    *columns.SUMMARY_METRICS,
    "validation_accuracy",
    *columns.CONTINUAL_METRICS,
    *(cost for cost in columns.COSTS if cost not in ("stack_size", "threads")),
    *DERIVED,
)


def read(folder: Path, grams_per_kwh: float | None = None, price_per_hour: float | None = None) -> pd.DataFrame:
    """The runs of a folder, one a row, with all MEASURES. UsageError where there are none.

    grams_per_kwh, price_per_hour: in place of what the runs were told.
    """
    runs = run_files.collect(folder)
    if runs.empty and (folder / "results.csv").is_file():
        runs = run_files.read_summary(folder / "results.csv")
    if runs.empty:
        raise UsageError(f"{folder}: there are no finished runs there; name the folder that clrun's outputs= named.")
    refuse_unreadable(runs, folder)
    runs = completed(runs)
    if grams_per_kwh is not None:
        runs = runs.assign(carbon_g=costs.carbon(runs["energy_wh"], grams_per_kwh), grams_per_kwh=grams_per_kwh)
    if price_per_hour is not None:
        runs = runs.assign(money=costs.money(runs["wall_seconds"], price_per_hour), price_per_hour=price_per_hour)
    return with_derived(runs)


def refuse_unreadable(runs: pd.DataFrame, folder: Path) -> None:
    """UsageError for a table made by hand that says nothing of strategies, or has words where numbers belong."""
    if "strategy" not in runs or runs["strategy"].isna().any():
        raise UsageError(f"{folder / 'results.csv'}: every row needs a strategy; write its name into that column.")
    for name in (name for name in MEASURES if name in runs):
        wrong = runs[name][pd.to_numeric(runs[name], errors="coerce").isna() & runs[name].notna()]
        if len(wrong):
            raise UsageError(f"{folder / 'results.csv'}: {name}={wrong.iloc[0]} is no number; write a share as 0.981.")


def completed(runs: pd.DataFrame) -> pd.DataFrame:
    """runs with every column that a report looks at. What a table made by hand may leave out follows from its keys:
    the stream from those that belong to no strategy, the group from all but the seed; and its runs are done."""
    asked = [*SUMMARY_HEAD, "stream", *SUMMARY_TAIL, *MEASURES]
    keys = keys_of(runs)
    said = {"group": hashed(runs, keys), "stream": hashed(runs, [key for key in keys if tells_streams(key)])}
    runs = runs.reindex(columns=list(dict.fromkeys([*runs.columns, *asked])))
    made = {name: runs[name].astype(object).where(runs[name].notna(), values) for name, values in said.items()}
    return runs.assign(**made, status=runs["status"].astype(object).fillna(RunStatus.DONE.value))


def keys_of(runs: pd.DataFrame) -> list[str]:
    """The columns that say what a run is, but for its seed."""
    private = {key for key, said in catalog.read().root.items() if not said.identity}
    apart = {"run", "group", "stream", "status", "seed", *SUMMARY_TAIL, *MEASURES} | private
    return [key for key in runs.columns if key not in apart]


def hashed(runs: pd.DataFrame, keys: Sequence[str]) -> pd.Series:
    """10 hex digits of each run: equal where the keys are."""
    told = [repr(values) for values in runs[list(keys)].astype(str).to_numpy().tolist()]
    return pd.Series([hashlib.sha1(text.encode()).hexdigest()[:10] for text in told], runs.index, object)


def tells_streams(key: str) -> bool:
    """Whether a key belongs to no strategy, and not to how often a run was looked at."""
    groups = [group for group in catalog.GROUPS if group != "strategy"]
    return key != "evaluate_every" and (key in catalog.read().root or key.partition(".")[0] in groups)


def with_derived(runs: pd.DataFrame) -> pd.DataFrame:
    """runs with the columns of `DERIVED`, nan where they are not known."""
    runs = runs.assign(**dict.fromkeys(DERIVED, np.nan))
    runs["total_seconds"] = runs["train_seconds"] + runs["consolidate_seconds"].fillna(0)
    for _, stream in runs[runs["status"] == RunStatus.DONE].groupby("stream"):
        finetune, joint = (by_seed(stream, name, "average_accuracy") for name in ("finetune", "joint"))
        seconds = by_seed(stream, "finetune", "total_seconds")
        kept = stream["average_accuracy"] - stream["seed"].map(finetune)
        runs.loc[stream.index, "accuracy_kept"] = kept.where(stream["strategy"] != "finetune")
        runs.loc[stream.index, "relative_seconds"] = stream["total_seconds"] / stream["seed"].map(seconds)
        for _, rows in stream.groupby("group"):
            runs.loc[rows.index, "gap_closed"] = gap_closed(rows, joint, finetune)
            runs.loc[rows.index, "intransigence"] = intransigence(rows, joint)
    for unit, cost in {"second": "total_seconds", "mb": "state_mb", "wh": "energy_wh"}.items():
        runs[f"kept_per_{unit}"] = runs["accuracy_kept"] / runs[cost].where(runs[cost] > 0)
    return runs


def by_seed(runs: pd.DataFrame, strategy: str, measure: str) -> pd.Series:
    """seed -> what a strategy's runs measured."""
    rows = runs[runs["strategy"] == strategy].drop_duplicates("seed")
    return rows.set_index("seed")[measure]


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


# ---------------------------------------------------------------- the files of a run


def directory(folder: Path, run: str) -> Path | None:
    """Where a run lies; None where only its summary is there."""
    return next(folder.glob(f"runs/*/*-{run}"), None)


def chance(run: Path) -> float:
    """Accuracy of guessing among the outputs that may answer at the end, mean over tasks; from a run's files."""
    outputs = round(len(pd.read_csv(run / "confusion.csv")) ** 0.5)
    summary = pd.read_csv(run / "summary.csv").iloc[0]
    if summary["scenario"] == "class" and summary["active"] == "seen" and not pd.isna(summary.get("first_tasks")):
        by_class = summary["split"] == "classes"
        seen = len(pd.read_csv(run / "tasks.csv")) if by_class else outputs * summary["first_tasks"] / summary["tasks"]
        return 1 / seen
    if summary["scenario"] != "task":
        return 1 / outputs
    if summary["split"] != "classes":
        return summary["tasks"] / outputs
    return float((1 / pd.read_csv(run / "tasks.csv").groupby("task").size()).mean())
