"""The files of a run, each written under a temporary name and then renamed, so that nobody ever reads half a file."""

import csv
import io
import json
import math
import os
import subprocess
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pandas as pd
import yaml

import clrun
from clrun import metrics
from clrun.catalog import SOURCES
from clrun.errors import UsageError

HEAD = ("run", "group", "status", "strategy", "dataset", "split", "scenario", "tasks", "model", "seed")
COSTS = (
    "train_seconds",
    "consolidate_seconds",
    "eval_seconds",
    "wall_seconds",
    "samples_per_second",
    "peak_memory_mb",
    "state_mb",
    "energy_wh",
    "stack_size",
    "threads",
    "carbon_g",
    "money",
)
TASK_COSTS = ("task", "train_seconds", "consolidate_seconds", "eval_seconds", "samples", "energy_wh")  # of costs.csv
TIMED = ("summary.csv", "costs.csv")  # the tables of a run in which times stand; two equal runs have all others equal
PROVENANCE = ("device", "torch_version", "clrun_version", "commit")
TAIL = (
    *metrics.SUMMARY_METRICS,
    "validation_accuracy",
    *metrics.CONTINUAL_METRICS,
    *COSTS,
    "diverged_at",
    "warnings",
    *PROVENANCE,
)
HASHES = ("run", "group", "stream", "commit", *SOURCES)  # text, though "0012345678" and "12e4567890" look like numbers
BETWEEN_WARNINGS = " | "
SECONDS_BETWEEN_LOOKS = 5.0  # at the tables of a run that is under way
HALVES = (".*.tmp", ".tmp*")  # files that are being written: ours, and those of the library that writes tensors


@dataclass
class Outcome:
    """What a run has measured so far. T tasks, C outputs; tasks and stages count from 1."""

    directory: Path
    run: str
    group: str
    stream: str
    values: Mapping[str, Any]  # every checked key, flat
    class_names: Sequence[str]  # (C,), of the outputs
    correct: np.ndarray  # (T+1, T) int, -1: not measured
    counts: np.ndarray  # (T,) int: test samples
    validation_correct: np.ndarray | None = None  # (T+1, T) int, -1: not measured
    validation_counts: np.ndarray | None = None  # (T,) int
    confusion: np.ndarray | None = None  # (C, C) int: [true, predicted]
    over_training: Sequence[Mapping[str, Any]] | None = None  # rows: step (of the run), stage, eval_task, accuracy
    health: Sequence[Mapping[str, Any]] = ()  # one row a task learnt
    task_costs: Sequence[Mapping[str, Any]] = ()  # rows of costs.csv: before any training, then one a task learnt
    costs: Mapping[str, Any] = field(default_factory=dict)  # keys: COSTS; a missing one is an empty cell
    status: str = "running"  # "done" or "diverged" at the end
    diverged_at: str | None = None
    warnings: Sequence[str] = ()
    forward_transfer_defined: bool = True
    forgetting_defined: bool = True  # False for joint training: no order in which to forget
    task_classes: Sequence[Sequence[str]] | None = None  # the classes of each task, where tasks differ by their classes
    task_angles: Sequence[float] | None = None  # degrees, where tasks differ by how pictures are turned
    device: str = "cpu"  # as torch names it: "cpu", "cuda", "cuda:0"
    shown_at: float = -math.inf  # monotonic seconds, when its files were last written

    @property
    def accuracy(self) -> np.ndarray:
        """(T+1, T) test accuracy, nan where not measured."""
        return metrics.accuracy_matrix(self.correct, self.counts)

    @property
    def validation(self) -> np.ndarray | None:
        """(T+1, T) accuracy on the held-out training samples; None without any."""
        if self.validation_correct is None:
            return None
        return metrics.accuracy_matrix(self.validation_correct, self.validation_counts)


# Writing


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed onto it when the block ends well and removed when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, all or nothing."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a CSV, all or nothing: floats in full, nan and None as empty cells, lines end in a newline."""
    with replacing(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n", encoding="utf-8")


def write_config(directory: Path, nested: Mapping[str, Any]) -> None:
    """config.yaml: the checked configuration, groups nested, in the order given."""
    plain = json.loads(json.dumps(nested, default=str))
    write_text(
        directory / "config.yaml", yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, default_flow_style=None)
    )


def write_failed(directory: Path, reason: str, traceback: str) -> None:
    """failed.txt of a crashed run: the reason, an empty line, the traceback."""
    write_text(directory / "failed.txt", f"{reason.rstrip()}\n\n{traceback.rstrip()}\n")


def clear_failed(directory: Path) -> None:
    """Remove failed.txt: the run is being tried again."""
    (directory / "failed.txt").unlink(missing_ok=True)


def clear_halves(directory: Path) -> None:
    """Remove what a process that was killed has left of files that it was writing; for the owner of the run alone."""
    for path in (path for pattern in HALVES for path in directory.glob(pattern)):
        path.unlink(missing_ok=True)


def finished(directory: Path) -> bool:
    """Whether the run has ended: summary.csv is written last."""
    return (directory / "summary.csv").is_file()


def pictured(directory: Path) -> bool:
    """Whether a run's pictures are drawn: this one is drawn last."""
    return (directory / "accuracy_over_tasks.png").is_file()


def show_progress(outcome: Outcome) -> None:
    """`write_progress`, unless that was a moment ago: nobody can read faster, and tasks can be shorter than writing."""
    if monotonic() - outcome.shown_at >= SECONDS_BETWEEN_LOOKS:
        write_progress(outcome)
        outcome.shown_at = monotonic()


def write_progress(outcome: Outcome) -> None:
    """All that is known after a task: the matrices, forgetting.csv, accuracy.csv, health.csv, costs.csv, and where
    there is something to say tasks.csv and accuracy_over_training.csv."""
    directory = outcome.directory
    write_table(directory / "accuracy_matrix.csv", matrix_table(outcome.accuracy, not outcome.forgetting_defined))
    if outcome.validation is not None:
        write_table(
            directory / "validation_matrix.csv", matrix_table(outcome.validation, not outcome.forgetting_defined)
        )
    write_table(directory / "forgetting.csv", forgetting_of(outcome))
    write_table(directory / "accuracy.csv", long_table(outcome))
    write_table(directory / "health.csv", health_table(outcome.health))
    write_table(directory / "costs.csv", objects(outcome.task_costs, TASK_COSTS))
    if outcome.task_classes is not None:
        write_table(directory / "tasks.csv", tasks_table(outcome.task_classes))
    if outcome.task_angles is not None:
        write_table(directory / "tasks.csv", angles_table(outcome.task_angles))
    if outcome.over_training is not None:
        write_table(directory / "accuracy_over_training.csv", over_training_table(outcome))


def write_final(outcome: Outcome, pictures: bool = True) -> None:
    """The files of `write_progress`, confusion.csv, the pictures, and summary.csv last: its presence is the end."""
    write_progress(outcome)
    if outcome.confusion is not None:
        write_table(outcome.directory / "confusion.csv", confusion_table(outcome))
    if pictures:
        from clrun import plots  # matplotlib costs half a second

        plots.draw(outcome.directory)
    write_table(outcome.directory / "summary.csv", objects([summary_row(outcome)]))


# Tables


def objects(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Rows as a table that leaves every cell as it is: integers beside empty cells stay integers."""
    return pd.DataFrame(list(rows), columns=columns, dtype=object)


def matrix_table(accuracy: np.ndarray, at_once: bool = False) -> pd.DataFrame:
    """accuracy (T+1, T) -> after_task, task_1 ... task_T, average (over the tasks learnt so far; row 0: over all)."""
    table = pd.DataFrame(accuracy, columns=[f"task_{j + 1}" for j in range(accuracy.shape[1])])
    table.insert(0, "after_task", range(len(accuracy)))
    return table.assign(average=metrics.averages_so_far(accuracy, at_once))


def forgetting_of(outcome: Outcome) -> pd.DataFrame:
    """forgetting.csv."""
    return metrics.forgetting_table(outcome.accuracy, outcome.forgetting_defined, outcome.forward_transfer_defined)


def long_table(outcome: Outcome) -> pd.DataFrame:
    """accuracy.csv: one row for each cell that was measured."""
    columns = ["run", "strategy", "seed", "after_task", "eval_task", "correct", "n", "accuracy"]
    after, task = np.nonzero(np.asarray(outcome.correct) >= 0)
    named = {"run": outcome.run, "strategy": outcome.values["strategy"], "seed": outcome.values["seed"]}
    measured = {
        "after_task": after,
        "eval_task": task + 1,
        "correct": np.asarray(outcome.correct)[after, task],
        "n": np.asarray(outcome.counts)[task],
        "accuracy": outcome.accuracy[after, task],
    }
    return pd.DataFrame(measured).assign(**named)[columns]


def confusion_table(outcome: Outcome) -> pd.DataFrame:
    """confusion.csv: every pair of outputs, those that never met with count 0."""
    names = np.array(outcome.class_names, dtype=object)
    columns = {"true_class": names.repeat(len(names)), "predicted_class": np.tile(names, len(names))}
    return pd.DataFrame(columns).assign(count=np.asarray(outcome.confusion).ravel())


def over_training_table(outcome: Outcome) -> pd.DataFrame:
    """accuracy_over_training.csv."""
    rows = pd.DataFrame(outcome.over_training, columns=["step", "stage", "eval_task", "accuracy"])
    rows.insert(0, "run", outcome.run)
    rows.insert(1, "seed", outcome.values["seed"])
    return rows


def health_table(health: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """health.csv: `task` first, then the strategy's and the engine's own columns."""
    rows = [{"task": number, **row} for number, row in enumerate(health, start=1)]
    return objects(rows) if rows else pd.DataFrame(columns=["task"])


def tasks_table(task_classes: Sequence[Sequence[str]]) -> pd.DataFrame:
    """tasks.csv: task, class; one row a class, in the order of the outputs."""
    pairs = [{"task": task, "class": name} for task, names in enumerate(task_classes, start=1) for name in names]
    return objects(pairs, ["task", "class"])


def angles_table(task_angles: Sequence[float]) -> pd.DataFrame:
    """tasks.csv of a rotated stream: task, angle (degrees, counter-clockwise)."""
    return objects([{"task": task, "angle": angle} for task, angle in enumerate(task_angles, start=1)])


def summary_row(outcome: Outcome) -> dict[str, Any]:
    """The row of summary.csv, in its order: HEAD, stream, every other checked key, TAIL."""
    identity = {"run": outcome.run, "group": outcome.group, "status": outcome.status}
    head = identity | {name: outcome.values[name] for name in HEAD if name not in identity}
    other = {key: cell(value) for key, value in outcome.values.items() if key not in (*HEAD, *TAIL)}
    measured = {
        **metrics_of(outcome),
        "threads": outcome.values.get("threads"),
        **outcome.costs,
        "diverged_at": outcome.diverged_at,
        "warnings": BETWEEN_WARNINGS.join(outcome.warnings) or None,
        **provenance(outcome.device),
    }
    return {**head, "stream": outcome.stream, **other, **{name: measured.get(name) for name in TAIL}}


def metrics_of(outcome: Outcome) -> dict[str, float]:
    """The summary's metrics by name; a metric that was not measured is missing or nan."""
    found = metrics.summary_metrics(outcome.accuracy, outcome.forgetting_defined, outcome.forward_transfer_defined)
    if outcome.validation is not None:
        found["validation_accuracy"] = metrics.average_accuracy(outcome.validation)
    if outcome.over_training is not None and outcome.forgetting_defined:
        found |= metrics.continual_metrics(outcome.accuracy, outcome.over_training)
    return found


def cell(value: Any) -> Any:
    """A checked value as one cell: lists as JSON, the rest as it is."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | tuple | dict) else value


# Where a run was made


def provenance(device: str = "cpu") -> dict[str, str]:
    """device (kind and model name), torch_version, clrun_version, commit (of clrun's own checkout, else empty)."""
    return {
        "device": device_name(device),
        "torch_version": version("torch"),
        "clrun_version": clrun.__version__,
        "commit": commit(),
    }


@cache
def device_name(device: str) -> str:
    """'cuda (NVIDIA H100)', 'cpu (AMD EPYC 7763)'; the bare kind where the system does not say the model."""
    kind = device.split(":")[0]
    if kind == "cuda":
        import torch

        return f"{kind} ({torch.cuda.get_device_name(device)})"
    model = processor_name(Path("/proc/cpuinfo"))
    return f"{kind} ({model})" if model else kind


def processor_name(cpuinfo: Path) -> str:
    """The processor's model name from Linux's list of processors; empty where there is none."""
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


@cache
def commit() -> str:
    """The commit of clrun's own checkout, '+' appended where tracked files differ from it; empty if installed.

    Only a `.git` beside the package counts: a virtual environment inside somebody's project is not a checkout of clrun.
    """
    root = Path(clrun.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):  # no git here: the commit stays unknown
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""


# Reading


def read_summary(path: Path) -> pd.DataFrame:
    """A summary.csv or results.csv as a table: hashes as text, only an empty cell is nan.

    Raises UsageError, naming the file, where it is empty or cut short.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    rows_of(path, text)
    return pd.read_csv(io.StringIO(text), dtype=dict.fromkeys(HASHES, str), keep_default_na=False, na_values=[""])


def rows_of(path: Path, text: str) -> list[dict[str, str]]:
    """The rows of a summary.csv or results.csv with their cells as text. Raises UsageError where it is not whole."""
    try:
        header, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    except (ValueError, csv.Error):  # no line at all, or a quotation that never ends
        header, rows = [], []
    whole = text.endswith("\n") and header[:1] == ["run"] and rows
    if not whole or any(len(row) != len(header) for row in rows):
        raise UsageError(
            f"{path} is empty or cut short; clrun never leaves such a file, so another program wrote it or the disk "
            f"failed. Delete it and type the same command again."
        )
    return [dict(zip(header, row, strict=True)) for row in rows]


def collect(outputs: Path) -> pd.DataFrame:
    """Write outputs/results.csv, all summary rows of all runs sorted by path, and return it as `read_summary` does.

    Several processes may collect at once: whoever writes looks again afterwards and writes again if a run has ended
    meanwhile, so that the last one to write has seen every run. Without any finished run nothing is written.
    Raises UsageError for a summary that is empty or cut short.
    """
    seen = None
    while seen != (present := summaries(outputs)):
        seen = present
        if present:
            write_table(outputs / "results.csv", joined(present))
    return read_summary(outputs / "results.csv") if seen else pd.DataFrame(columns=[*HEAD, "stream", *TAIL])


def summaries(outputs: Path) -> dict[Path, str]:
    """The text of every summary of a run, sorted by path."""
    texts = {}
    for path in sorted(outputs.glob("runs/*/*/summary.csv")):
        with suppress(FileNotFoundError):  # removed since it was listed: that run is being done again
            texts[path] = path.read_text(encoding="utf-8", errors="replace")
    return texts


def joined(texts: Mapping[Path, str]) -> pd.DataFrame:
    """The rows of many summaries, cells as they stand: HEAD, the union of the keys between, TAIL."""
    rows = [row for path, text in texts.items() for row in rows_of(path, text)]
    between = dict.fromkeys(key for row in rows for key in row if key not in (*HEAD, *TAIL))
    return objects(rows, [*HEAD, *between, *TAIL]).fillna("")
