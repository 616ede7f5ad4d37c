"""From what the engine reports to what a run's files say: accuracies, health, trouble, costs."""

import resource
import sys
from collections.abc import Sequence

import numpy as np
import torch

from clrun import results
from clrun.config import Settings
from clrun.engine import Report, Stack, Trouble
from clrun.prepare import Prepared


def blank(prepared: Prepared, stack: Stack) -> results.Outcome:
    """An outcome in which nothing is measured yet."""
    settings, T, fingerprint = prepared.settings, len(prepared.hand.train), prepared.images.fingerprint
    unmeasured = np.full((T + 1, T), -1)
    validate = settings["validation"] > 0
    return results.Outcome(
        directory=prepared.directory,
        run=prepared.id,
        group=settings.group(fingerprint),
        stream=settings.stream(fingerprint),
        values=settings.values,
        class_names=prepared.hand.names,
        correct=unmeasured,
        counts=np.array([len(pool) for pool in prepared.hand.test]),
        validation_correct=unmeasured.copy() if validate else None,
        validation_counts=np.array([len(pool) for pool in prepared.hand.validation]) if validate else None,
        over_training=[] if settings["evaluate_every"] else None,
        health=[],
        costs=dict.fromkeys(("train_seconds", "consolidate_seconds", "eval_seconds", "wall_seconds", "samples"), 0.0),
        warnings=standing_warnings(settings),
        forward_transfer_defined=not (settings["scenario"] == "class" and settings["active"] == "seen"),
        forgetting_defined=any(stack.strategy.visible(stage) for stage in range(1, T)),
        task_classes=task_classes(prepared),
        device=str(stack.device),
    )


def task_classes(prepared: Prepared) -> list[list[str]] | None:
    """The classes of each task, where tasks differ by their classes."""
    if prepared.settings["split"] != "classes":
        return None
    labels, names = prepared.images.y, prepared.images.classes
    by_place = prepared.hand.deal.label
    return [
        [names[k] for k in sorted(labels[pool].unique().tolist(), key=by_place[task].tolist().__getitem__)]
        for task, pool in enumerate(prepared.hand.train)
    ]


def standing_warnings(settings: Settings) -> list[str]:
    """What is known before any training."""
    known = [settings.warns[settings["scenario"]]] if settings["scenario"] in settings.warns else []
    told = settings["task_id_at_test"] and settings["scenario"] != "task"
    return known + ["the task's number was given at test time (task_id_at_test=true)"] * told


def enter(report: Report, outcomes: Sequence[results.Outcome]) -> None:
    """What a stage was like for each run that is still alive, into its outcome and its files."""
    for r, outcome in enumerate(outcomes):
        if outcome.status == "diverged":
            continue
        if report.stage >= 0:
            outcome.health.append({"task": report.stage + 1} | report.health[r])
            name_trouble(outcome, report.trouble[r], report.stage + 1)
        charge(outcome, report)
        if outcome.status != "diverged":
            note(outcome, report, r)
        elif outcome.over_training is not None:
            began = report.step - max(health["steps"] for health in report.health)
            note_over_training(outcome, report, r, before=began + report.trouble[r].step)
        results.write_progress(outcome)


def name_trouble(outcome: results.Outcome, trouble: Trouble | None, task: int) -> None:
    """Mark a run in which something was no longer finite."""
    if trouble is None:
        return
    where = f"task {task} step {trouble.step}"
    if trouble.diverged:
        outcome.status, outcome.diverged_at = "diverged", where
        outcome.warnings.append(f"diverged at {where}: loss or parameters were no longer finite")
    else:
        outcome.warnings.append(f"this run stopped learning at {where}: the optimiser's state overflowed")


def note(outcome: results.Outcome, report: Report, r: int) -> None:
    """Enter what run r of a stage's report measured."""
    row = report.stage + 1
    outcome.correct[row] = report.correct[r].numpy()
    if outcome.validation_correct is not None:
        outcome.validation_correct[row] = report.validation[r].numpy()
    if outcome.over_training is not None:
        note_over_training(outcome, report, r)


def note_over_training(outcome: results.Outcome, report: Report, r: int, before: int | None = None) -> None:
    """Enter what was measured within a stage and at its end; of one that diverged, before that step of the run."""
    ends = dict(report.over_training) | {report.step: report.correct}
    outcome.over_training.extend(
        {"step": step, "stage": report.stage + 1, "eval_task": task + 1, "accuracy": right / outcome.counts[task]}
        for step, correct in ends.items()
        if before is None or step < before
        for task, right in enumerate(correct[r].tolist())
    )


def charge(outcome: results.Outcome, report: Report) -> None:
    """Add a stage's costs; in a stack a run's share."""
    runs = len(report.health)
    for what, seconds in report.seconds.items():
        outcome.costs[f"{what}_seconds"] += seconds / runs
    outcome.costs["samples"] += report.samples / runs


def conclude(outcome: results.Outcome, prepared: Prepared, runs: int, state_bytes: int, seconds: float) -> None:
    """Status, costs and complaints of a run that is over; of what its stack cost, its share.

    seconds: its share of this process's time; what an interrupted one has cost before is there already.
    """
    if outcome.status != "diverged":
        outcome.status = "done"
        outcome.warnings += prepared.strategy.complaints(outcome.health, prepared.settings.knobs)
    samples = outcome.costs.pop("samples")
    outcome.costs |= {
        "wall_seconds": outcome.costs["wall_seconds"] + seconds,
        "samples_per_second": samples / outcome.costs["train_seconds"] if outcome.costs["train_seconds"] > 0 else None,
        "peak_memory_mb": peak_memory() / 1e6 / runs,
        "state_mb": state_bytes / 1e6,
        "stack_size": runs,
        "threads": torch.get_num_threads(),
    }


def peak_memory() -> int:
    """Bytes: of the GPU where there is one in use, else the most that this process has held."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
