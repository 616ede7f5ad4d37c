"""From what the engine reports to what a run's files say: accuracies, health, trouble, costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch

from clrun.config.settings import Settings
from clrun.engine.stack import Stack
from clrun.engine.state import Divergence, Run, StageReport
from clrun.results import run_files
from clrun.results.costs import carbon, money
from clrun.results.outcome import Outcome
from clrun.runs.prepared import Prepared
from clrun.system.energy import Meter
from clrun.system.peak_memory import peak_memory

# of a run's costs, those that are added up as it goes on, also over its interruptions
ADDED = ("train_seconds", "consolidate_seconds", "eval_seconds", "wall_seconds", "samples", "energy_wh")


@dataclass(frozen=True)
class Spent:
    """What this process has spent on a stack that is not in the outcomes yet, a run's share. What a run that was
    interrupted has cost before is in its outcome already."""

    runs: int
    began: float  # perf_counter()
    meter: Meter

    def __call__(self) -> dict[str, float]:
        return {"wall_seconds": (perf_counter() - self.began) / self.runs, "energy_wh": self.meter() / self.runs}


def blank(prepared: Prepared, stack: Stack) -> Outcome:
    """An outcome in which nothing is measured yet."""
    settings, T, fingerprint = prepared.settings, len(prepared.stream.train), prepared.images.fingerprint
    unmeasured = np.full((T + 1, T), -1)
    validate = settings["validation"] > 0
    return Outcome(
        directory=prepared.directory,
        run=prepared.id,
        group=settings.group(fingerprint),
        stream=settings.stream(fingerprint),
        values=settings.values,
        class_names=prepared.stream.names,
        correct=unmeasured,
        counts=np.array([len(pool) for pool in prepared.stream.test]),
        validation_correct=unmeasured.copy() if validate else None,
        validation_counts=np.array([len(pool) for pool in prepared.stream.validation]) if validate else None,
        over_training=[] if settings["evaluate_every"] else None,
        health=[],
        costs=dict.fromkeys(ADDED, 0.0),
        task_costs=[],
        warnings=standing_warnings(settings),
        forward_transfer_defined=not (settings["scenario"] == "class" and settings["active"] == "seen"),
        forgetting_defined=any(stack.strategy.visible(stage) for stage in range(1, T)),
        task_classes=task_classes(prepared),
        task_angles=task_angles(prepared),
        device=str(stack.device),
    )


def task_classes(prepared: Prepared) -> list[list[str]] | None:
    """The classes of each task, where tasks differ by their classes."""
    if prepared.settings["split"] != "classes":
        return None
    labels, names = prepared.images.y, prepared.images.classes
    by_place = prepared.stream.tables.label
    return [
        [names[k] for k in sorted(labels[pool].unique().tolist(), key=by_place[task].tolist().__getitem__)]
        for task, pool in enumerate(prepared.stream.train)
    ]


def task_angles(prepared: Prepared) -> list[float] | None:
    """By how many degrees the pictures of each task are turned, where they are."""
    radians = prepared.stream.tables.angle
    return [round(v, 1) for v in radians.rad2deg().tolist()] if radians.numel() else None


def standing_warnings(settings: Settings) -> list[str]:
    """What is known before any training."""
    known = [settings.warns[settings["scenario"]]] if settings["scenario"] in settings.warns else []
    told = settings["task_id_at_test"] and settings.needs_task_id and settings["scenario"] != "task"
    return known + ["the task's number was given at test time (task_id_at_test=true)"] * told


def enter(report: StageReport, outcomes: Sequence[Outcome], spent: Spent) -> None:
    """What a stage was like for each run that is still alive, into its outcome and its files."""
    energy = spent()["energy_wh"]
    for r, outcome in enumerate(outcomes):
        if outcome.status == "diverged":
            continue
        if report.stage >= 0:
            outcome.health.append({"task": report.stage + 1} | report.health[r])
            name_divergence(outcome, report.divergence[r], report.stage + 1)
        charge(outcome, report, energy)
        if outcome.status != "diverged":
            note(outcome, report, r)
        elif outcome.over_training is not None:
            began = report.step - max(health["steps"] for health in report.health)
            note_over_training(outcome, report, r, before=began + report.divergence[r].step)
        run_files.show_progress(outcome)


def name_divergence(outcome: Outcome, trouble: Divergence | None, task: int) -> None:
    """Mark a run in which something was no longer finite."""
    if trouble is None:
        return
    where = f"task {task} step {trouble.step}"
    if trouble.diverged:
        outcome.status, outcome.diverged_at = "diverged", where
        outcome.warnings.append(f"diverged at {where}: loss or parameters were no longer finite")
    else:
        outcome.warnings.append(f"this run stopped learning at {where}: the optimiser's state overflowed")


def note(outcome: Outcome, report: StageReport, r: int) -> None:
    """Enter what run r of a stage's report measured."""
    row = report.stage + 1
    outcome.correct[row] = report.correct[r].numpy()
    if outcome.validation_correct is not None:
        outcome.validation_correct[row] = report.validation[r].numpy()
    if outcome.over_training is not None:
        note_over_training(outcome, report, r)


def note_over_training(outcome: Outcome, report: StageReport, r: int, before: int | None = None) -> None:
    """Enter what was measured within a stage and at its end; of one that diverged, before that step of the run."""
    ends = dict(report.over_training) | {report.step: report.correct}
    outcome.over_training.extend(
        {"step": step, "stage": report.stage + 1, "eval_task": task + 1, "accuracy": right / outcome.counts[task]}
        for step, correct in ends.items()
        if before is None or step < before
        for task, right in enumerate(correct[r].tolist())
    )


def charge(outcome: Outcome, report: StageReport, energy: float) -> None:
    """Add a stage's costs; in a stack a run's share. energy: Wh, of this process so far."""
    runs = len(report.health)
    row = {f"{what}_seconds": seconds / runs for what, seconds in report.seconds.items()}
    row["samples"] = report.samples / runs
    for name, value in row.items():
        outcome.costs[name] += value
    before = sum(one["energy_wh"] for one in outcome.task_costs)
    row["energy_wh"] = outcome.costs["energy_wh"] + energy - before
    outcome.task_costs.append({"task": report.stage + 1} | row)


def conclude(outcome: Outcome, prepared: Prepared, runs: int, state_bytes: int, spent: Mapping[str, float]) -> None:
    """Status, costs and complaints of a run that is over; of what its stack cost, its share."""
    settings = prepared.settings
    if outcome.status != "diverged":
        outcome.status = "done"
        outcome.warnings += prepared.strategy.warnings(outcome.health, settings.knobs)
    costs = outcome.costs | {name: outcome.costs[name] + more for name, more in spent.items()}
    samples = costs.pop("samples")
    outcome.costs = costs | {
        "samples_per_second": samples / costs["train_seconds"] if costs["train_seconds"] > 0 else None,
        "peak_memory_mb": peak_memory() / 1e6 / runs,
        "state_mb": state_bytes / 1e6,
        "stack_size": runs,
        "threads": torch.get_num_threads(),
    }
    if settings["grams_per_kwh"] is not None:
        outcome.costs["carbon_g"] = carbon(costs["energy_wh"], settings["grams_per_kwh"])
    if settings["price_per_hour"] is not None:
        outcome.costs["money"] = money(costs["wall_seconds"], settings["price_per_hour"])


def kept(stack: Stack, run: Run, prepared: Prepared) -> int:
    """Bytes that a run of a stack must keep beside its network: the strategy's tensors, and the pictures that it comes
    back to, those in its memory and those of other tasks than the one that arrives."""
    remembered = stack.strategy.stored_samples(run.state)
    return stack.state_bytes(run) + (remembered + revisited(prepared, stack)) * prepared.images.x[0].numel()


def revisited(prepared: Prepared, stack: Stack) -> int:
    """The most pictures of tasks other than its own that a stage trains on."""
    sizes = [len(pool) for pool in prepared.stream.train]
    seen = [stack.strategy.visible(stage) for stage in range(len(sizes))]
    return max(sum(sizes[task] for task in tasks if task != stage) for stage, tasks in enumerate(seen))
