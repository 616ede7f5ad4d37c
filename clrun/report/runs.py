"""What a report reads: the runs of a folder, and the metrics that compare each run with others of its setup.

A stream is what is learnt and asked: accuracies of one stream can be compared. A setup is a stream and how it is
learnt, but for the strategy: the network, lr, epochs and so on. joint and finetune are references for runs of their own
setup, since a difference to those of another one would not be the strategy's alone.

accuracy_kept    = average_accuracy - that of finetune       (what forgetting would have taken), same seed
total_seconds    = train_seconds + consolidate_seconds
relative_seconds = total_seconds / that of finetune, same seed
kept_per_second  = accuracy_kept / total_seconds
kept_per_mb      = accuracy_kept / state_mb                  (what the strategy keeps beside its network)
kept_per_wh      = accuracy_kept / energy_wh
gap_closed       = (average_accuracy - finetune) / mean over the seeds of (joint - finetune)
intransigence    = joint's average_accuracy - learning_accuracy     (Chaudhry et al. 2018: joint on tasks 1 to k)
carbon_g         = energy_wh / 1000 * grams_per_kwh
money            = wall_seconds / 3600 * price_per_hour
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from clrun.config import catalog
from clrun.results import collection, columns, costs, metrics, run_files, searched_runs
from clrun.results.columns import SUMMARY_HEAD, SUMMARY_TAIL
from clrun.results.outcome import RunStatus
from clrun.results.reading import LARGEST, read_table
from clrun.system.errors import UsageError
from clrun.system.messages import announce

NAMED = 5  # lines that a message names

REFERENCES = ("joint", "finetune")  # strategies: the upper and the lower reference
RETRAINING = ("cumulative", "scratch")  # strategies that keep all data and train on all tasks again and again

# Strategies that break the rules of a stream, with how: they are bounds, and no contenders of methods that keep them.
BOUNDS = {"joint": "learns all tasks at once"} | dict.fromkeys(RETRAINING, "keeps all data")
KEPT = ("accuracy_kept", "kept_per_second", "kept_per_mb", "kept_per_wh")
DERIVED = tuple(columns.REPORT_METRIC_MEANINGS)
MEASURES = (
    *columns.SUMMARY_METRICS,
    *columns.OVERALL_METRICS,
    "validation_accuracy",
    "task_aware_accuracy",
    *columns.CONTINUAL_METRICS,
    *columns.ONLINE_MEANINGS,
    *(cost for cost in columns.COSTS if cost not in ("stack_size", "threads")),
    *DERIVED,
)

# The least and the largest value that a measure can have: accuracies, differences of two accuracies, and costs. The
# others have no bounds.
ACCURACIES = (
    "average_accuracy",
    "average_incremental_accuracy",
    "learning_accuracy",
    "overall_accuracy",
    "validation_accuracy",
    "task_aware_accuracy",
    "min_accuracy",
    "worst_case_accuracy",
    *columns.ONLINE_MEANINGS,
)
DIFFERENCES = ("forgetting", "backward_transfer", "forward_transfer", "stability_gap", "accuracy_kept", "intransigence")
COSTS = (*(cost for cost in columns.COSTS if cost in MEASURES), "total_seconds", "relative_seconds")


def read(
    folder: Path,
    grams_per_kwh: float | None = None,
    price_per_hour: float | None = None,
    say: Callable[[str], None] = announce,
    trials: bool = False,
) -> pd.DataFrame:
    """Return the runs of a folder, one per row, with all MEASURES. Raise UsageError where there are none.

    trials: whether those are among them that a search has trained. grams_per_kwh, price_per_hour: values that replace
    those of the runs. say: prints a sentence, such as that a folder is a copy and was left out.
    """
    runs = collection.collect(folder, say)
    if runs.empty and next(folder.glob("runs/*/*/summary.csv"), None) is None and (folder / "results.csv").is_file():
        runs = run_files.read_summary(folder / "results.csv")
    if runs.empty:
        raise UsageError(f"{folder}: there are no finished runs there; name the folder that clrun's outputs= named.")
    refuse_unreadable(runs, folder)
    runs = once(completed(runs), say)
    if not trials:
        runs = without_trials(runs, folder, say)
    at_once = runs["strategy"] == "joint"  # of one stage; clrun left this cell empty only later
    for name in ("average_incremental_accuracy", "overall_incremental_accuracy"):
        runs[name] = runs[name].mask(at_once)
    if grams_per_kwh is not None:
        runs = runs.assign(carbon_g=costs.carbon(runs["energy_wh"], grams_per_kwh), grams_per_kwh=grams_per_kwh)
    if price_per_hour is not None:
        runs = runs.assign(money=costs.money(runs["wall_seconds"], price_per_hour), price_per_hour=price_per_hour)
    return with_derived(runs)


def bounds_of(measure: str) -> tuple[float, float]:
    """Return the least and the largest value that a measure can have; a mean of it lies between them, too."""
    if measure in ACCURACIES:
        return 0.0, 1.0
    if measure in DIFFERENCES:
        return -1.0, 1.0
    return (0.0, np.inf) if measure in COSTS else (-np.inf, np.inf)


def refuse_unreadable(runs: pd.DataFrame, folder: Path) -> None:
    """Raise UsageError for a table made by hand that lacks strategies, or that has words in place of numbers."""
    if "strategy" not in runs or runs["strategy"].isna().any():
        raise UsageError(f"{folder / 'results.csv'}: every row needs a strategy; write its name into that column.")
    for name in (name for name in MEASURES if name in runs):
        wrong = runs[name][pd.to_numeric(runs[name], errors="coerce").isna() & runs[name].notna()]
        if len(wrong):
            raise UsageError(f"{folder / 'results.csv'}: {name}={wrong.iloc[0]} is no number; write a share as 0.981.")
        low, high = bounds_of(name)
        outside = runs[name][~pd.to_numeric(runs[name]).between(max(low, -LARGEST), min(high, LARGEST))].dropna()
        if len(outside):
            limits = "from 0 to 1; write 98.1 % as 0.981" if name in ACCURACIES else f"from {low:g} to {high:g}"
            raise UsageError(f"{folder / 'results.csv'}: {name}={outside.iloc[0]} cannot be: it is {limits}.")


def completed(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs with every column that a report uses.

    What a table made by hand may leave out follows from its keys: the stream from those that say what is learnt, the
    setup from those that belong to no strategy, the group from all but the seed; and its runs are done.
    """
    used = [*SUMMARY_HEAD, "stream", "setup", *SUMMARY_TAIL, *MEASURES]
    keys = keys_of(runs)
    runs = with_streams(runs, [key for key in keys if catalog.defines_stream(key)])
    defining = {"group": keys, "setup": [key for key in keys if defines_setup(key)]}
    defining["stream"] = [key for key in keys if catalog.defines_stream(key)]
    columns = list(dict.fromkeys([*runs.columns, *used]))
    made = {name: with_hashes(runs, name, keys) for name, keys in defining.items()}
    runs = runs.reindex(columns=columns)
    return runs.assign(**made, status=runs["status"].astype(object).fillna(RunStatus.DONE.value))


def once(runs: pd.DataFrame, say: Callable[[str], None]) -> pd.DataFrame:
    """Return every run once, and say which rows were left out: those with the identity of a row above, and those of a
    table made by hand that equal a row above in all settings and in the seed."""
    numbers = pd.Series(range(2, len(runs) + 2), runs.index)  # of the lines in results.csv
    same = runs["run"].notna() & runs["run"].duplicated()
    same |= runs["seed"].notna() & runs.duplicated(["stream", "group", "seed"])
    if same.any():
        listed = ", ".join(map(str, numbers[same][:NAMED])) + (", ..." if same.sum() > NAMED else "")
        say(f"A run counts once, so {same.sum()} rows that are there twice were left out (results.csv, line {listed}).")
    return runs[~same].reset_index(drop=True)


def keys_of(runs: pd.DataFrame) -> list[str]:
    """Return the columns that identify a run, but for its seed."""
    outside_identity = {key for key, spec in catalog.read().root.items() if not spec.identity}
    others = {"run", "group", "stream", "setup", "status", "seed", *SUMMARY_TAIL, *MEASURES} | outside_identity
    return [key for key in runs.columns if key not in others]


def with_hashes(runs: pd.DataFrame, name: str, keys: Sequence[str]) -> pd.Series:
    """Return the column `group`, `setup` or `stream`, with a hash of these keys where it is empty."""
    column = runs[name].astype(object) if name in runs else pd.Series(np.nan, runs.index, object)
    empty = column.isna()
    return column.where(~empty, hashed(runs[empty], keys)) if empty.any() else column


def hashed(runs: pd.DataFrame, keys: Sequence[str]) -> pd.Series:
    """Return 10 hexadecimal digits for each run, equal for runs in which all these keys are equal."""
    texts = [repr(values) for values in runs[list(keys)].astype(str).to_numpy().tolist()]
    return pd.Series([hashlib.sha1(text.encode()).hexdigest()[:10] for text in texts], runs.index, object)


def with_streams(runs: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Return runs of which those of earlier versions have the columns `setup` and `stream` that they would have today.

    Those versions wrote the setup into the column `stream`. What the stream is, follows from another run of the setup,
    and for data sets whose samples their name tells from these keys, which define it. Of other data sets the files may
    have changed meanwhile, so that such runs are of one stream only if they are of one setup.
    """
    if "stream" not in runs:
        return runs
    setup = runs["setup"].astype(object) if "setup" in runs else pd.Series(np.nan, runs.index, object)
    old = setup.isna() & runs["stream"].notna()
    if not old.any():
        return runs
    setup, stream = setup.where(~old, runs["stream"]), runs["stream"].astype(object)
    new = ~old & setup.notna() & stream.notna()
    known = dict(zip(setup[new], stream[new], strict=True))
    stream = stream.where(~old, setup.map(known).astype(object).fillna(stream))
    told = hashed(runs, [*keys, *(["init_stream"] if "init_stream" in runs else [])])
    alike = runs["dataset"].isin(catalog.fixed_datasets()) & stream.notna()
    names = stream[alike].groupby(told[alike]).first().to_dict()
    names |= stream[alike & new].groupby(told[alike & new]).first().to_dict()  # that of today, where there is one
    runs = runs.copy()  # in one piece of memory; pandas warns of a table that was made column by column
    return runs.assign(setup=setup, stream=stream.where(~(old & alike), told.map(names).astype(object).fillna(stream)))


def without_trials(runs: pd.DataFrame, folder: Path, say: Callable[[str], None]) -> pd.DataFrame:
    """Return the runs without those that a search has trained, and say how many there are. Raise UsageError where no
    other is left."""
    searched = searched_runs.read(folder)
    trial = runs["run"].astype(str).isin(searched)
    if trial.any():
        if trial.all():
            raise UsageError(f"{folder}: all runs there are trials of searches; type --trials to see them.")
        say(f"{trial.sum()} runs of searches (clrun-tune) were left out; --trials shows them.")
    return runs[~trial].reset_index(drop=True)


def defines_setup(key: str) -> bool:
    """Return whether runs with different values of this key are of different setups.

    It is so for the keys that belong to no strategy, but for `evaluate_every`, which does not influence the training.
    """
    groups = [group for group in catalog.GROUPS if group != "strategy"]
    return key != "evaluate_every" and (key in catalog.read().root or key.partition(".")[0] in groups)


def with_derived(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs with the columns DERIVED, nan where they are not known."""
    runs = runs.assign(**dict.fromkeys(DERIVED, np.nan))
    runs["total_seconds"] = runs["train_seconds"] + runs["consolidate_seconds"].fillna(0)
    for _, alike in runs[runs["status"] == RunStatus.DONE].groupby(["stream", "setup"]):
        finetune, joint = (by_seed(alike, name, "average_accuracy") for name in ("finetune", "joint"))
        seconds = by_seed(alike, "finetune", "total_seconds")
        kept = alike["average_accuracy"] - alike["seed"].map(finetune)
        runs.loc[alike.index, "accuracy_kept"] = kept.where(alike["strategy"] != "finetune")
        runs.loc[alike.index, "relative_seconds"] = alike["total_seconds"] / alike["seed"].map(seconds)
        runs.loc[alike.index, "gap_closed"] = gap_closed_by_run(alike, joint, finetune)
        runs.loc[alike.index, "intransigence"] = intransigence(alike, joint)
    for unit, cost in {"second": "total_seconds", "mb": "state_mb", "wh": "energy_wh"}.items():
        runs[f"kept_per_{unit}"] = runs["accuracy_kept"] / runs[cost].where(runs[cost] > 0)
    return runs


def by_seed(runs: pd.DataFrame, strategy: str, measure: str) -> pd.Series:
    """Return a measure of the runs of a strategy by their seed."""
    rows = runs[runs["strategy"] == strategy].drop_duplicates("seed")
    return rows.set_index("seed")[measure]


def gap_closed_by_run(rows: pd.DataFrame, joint: pd.Series, finetune: pd.Series) -> pd.Series:
    """Return (accuracy - finetune) / mean(joint - finetune) of each run of a setup, paired by seed, over the seeds of
    its group that all three were run with, so that its mean is the share of the mean gap.

    It is nan for joint and finetune themselves, and where joint is not better.
    """
    upper, lower = rows["seed"].map(joint), rows["seed"].map(finetune)
    shared = upper.notna() & lower.notna() & rows["average_accuracy"].notna() & ~rows["strategy"].isin(REFERENCES)
    gaps, closed = upper - lower, pd.Series(np.nan, rows.index)
    if not shared.any():  # nothing to compare with, in however many groups
        return closed
    mean_gaps = gaps[shared].groupby(rows["group"][shared]).transform("mean")
    closed[shared] = metrics.gap_closed(rows["average_accuracy"][shared], lower[shared], mean_gaps)
    return closed


def intransigence(rows: pd.DataFrame, joint: pd.Series) -> pd.Series:
    """Return joint's accuracy minus the accuracy on each task just after it was learnt, means over the tasks, paired by
    seed. It is nan for joint itself.

    The reference of Chaudhry et al. 2018 for task k is trained on tasks 1 to k (as the runs of `scratch` are); here it
    is joint training on all tasks.
    """
    learning = rows["learning_accuracy"].where(rows["strategy"] != "joint")
    return rows["seed"].map(joint) - learning


# ---------------------------------------------------------------- the files of a run


def guessing_accuracy(run: Path) -> float:
    """Return the accuracy of guessing among the outputs that are active at the end, mean over the tasks that are
    measured.

    It is `Prepared.chance` (clrun/runs/prepared.py), here from the files of the run: a report loads no data sets. Raise
    UnreadableFile.
    """
    outputs = round(len(read_table(run / "confusion.csv")) ** 0.5)
    summary, tasks = run_files.summary_of(run), run / "tasks.csv"
    measured = read_table(run / "accuracy_matrix.csv").filter(regex=r"^task_\d+$").notna().any()
    # those of a run from which this one goes on are among the columns, and not among the tasks that are added
    added = summary["tasks"] if pd.isna(summary.get("first_tasks")) else summary["first_tasks"]
    everything = len(measured) - added + summary["tasks"]
    # runs of earlier versions have no tasks.csv with split=domains
    by_class = summary["split"] == "classes" or (summary["split"] == "domains" and tasks.is_file())
    if summary["scenario"] == "class" and summary["active"] == "seen" and not pd.isna(summary.get("first_tasks")):
        seen = len(read_table(tasks)) if by_class else outputs * len(measured) / everything
        return 1 / seen
    if summary["scenario"] != "task":
        return 1 / outputs
    if not by_class:
        return everything / outputs
    return float((1 / read_table(tasks).groupby("task").size())[measured.to_numpy()].mean())
