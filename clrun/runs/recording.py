"""From what the engine reports to what a run's files say: accuracies, health, divergence, warnings, costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter, process_time

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from clrun.config.settings import Settings
from clrun.engine import host_hooks
from clrun.engine.stack import Stack
from clrun.engine.state import Divergence, StageReport, TrainState
from clrun.results import metrics, run_files
from clrun.results.costs import carbon, money
from clrun.results.outcome import Outcome, RunStatus
from clrun.runs.prepared import Prepared
from clrun.runs.unequal import unequal_tasks
from clrun.strategy import HealthRows, Strategy
from clrun.system.energy import Meter
from clrun.system.peak_memory import peak_memory

# Tasks up to which it is kept what was taken for what after each of them; of more, the table would have millions of
# rows.
CONFUSED_TASKS = 100

UNDEFINED = "had a score that is no number (NaN), and the answers to them mean nothing"

# Costs that are added up while a run is trained, over all its interruptions.
ACCUMULATED = (
    "train_seconds", "consolidate_seconds", "eval_seconds", "wall_seconds", "cpu_seconds", "samples", "energy_wh",
)  # fmt: skip

# Costs of a process.
MEASURED = ("wall_seconds", "cpu_seconds", "energy_wh")


@dataclass(frozen=True)
class ProcessCosts:
    """The costs of this process for a stack that are not in the outcomes yet.

    What an interrupted run has cost before is in its outcome already.
    """

    runs: int
    began: float  # seconds, of perf_counter()
    meter: Meter
    cpu_before: float = field(default_factory=process_time)  # seconds of all threads, before this stack

    def per_run(self) -> dict[str, float]:
        """Return the share of one run."""
        wall, cpu = perf_counter() - self.began, process_time() - self.cpu_before
        return {name: v / self.runs for name, v in zip(MEASURED, (wall, cpu, self.meter()), strict=True)}


# ---------------------------------------------------------------- before training


def new_outcome(prepared: Prepared, stack: Stack) -> Outcome:
    """Return an outcome in which nothing is measured yet."""
    settings, T, fingerprint = prepared.settings, len(prepared.stream.train), prepared.images.fingerprint
    unmeasured = np.full((T + 1, T), -1)
    validate = settings["validation"] > 0
    return Outcome(
        directory=prepared.directory,
        run=prepared.id,
        group=settings.group(fingerprint),
        setup=settings.setup(fingerprint),
        stream=prepared.stream_digest,
        values=settings.values,
        class_names=prepared.stream.names,
        correct=unmeasured,
        counts=np.array([len(pool) for pool in prepared.stream.test]),
        validation_correct=unmeasured.copy() if validate else None,
        validation_counts=np.array([len(pool) for pool in prepared.stream.validation]) if validate else None,
        probe_correct=unmeasured.copy() if stack.measures.probe else None,
        over_training=[] if settings["evaluate_every"] else None,
        online=[] if stack.prequential else None,
        calibration=[] if stack.measures.calibration else None,
        task_aware=[] if stack.measures.task_aware else None,
        predictions=np.zeros((0, 5), np.int64) if stack.measures.every_answer else None,
        health=[],
        costs=dict.fromkeys(ACCUMULATED, 0.0),
        task_costs=[],
        warnings=[*initial_warnings(settings), *unequal_tasks(prepared), *lost_state(prepared)],
        forward_transfer_defined=not (settings["scenario"] == "class" and settings["active"] == "seen"),
        forgetting_defined=any(stack.strategy.visible(stage) for stage in range(1, T)),
        seen_from=[stage + 1 for stage in prepared.stream.seen_from],
        class_counts=class_counts(prepared),
        learnt=stack.learnt,
        task_classes=task_classes(prepared),
        task_domains=task_domains(prepared),
        task_angles=task_angles(prepared),
        sample_count=len(prepared.images.x) - prepared.images.carried,
        pillow_version=prepared.images.pillow_version,
        device=str(stack.device),
        guard=prepared.guard,
    )


def task_classes(prepared: Prepared) -> list[list[str]] | None:
    """Return the classes of each task, in the order of its outputs; None where tasks differ by other things."""
    if prepared.settings["split"] not in ("classes", "domains"):
        return None
    return [[prepared.images.classes[k] for k in group] for group in prepared.stream.groups]


def class_counts(prepared: Prepared) -> list[dict[str, object]] | None:
    """Return the rows of class_counts.csv: how many samples of which classes, and of which tasks, come while each task
    is learnt; None where these are all samples of the task itself."""
    if prepared.stream.arrivals is None:
        return None
    rows: list[dict[str, object]] = []
    names, labels = prepared.images.classes, prepared.images.y
    turned = prepared.stream.tables.turned
    for stage, part in enumerate(prepared.stream.arrivals):
        cells, counts = torch.unique(part // len(labels) * len(names) + labels[part % len(labels)], return_counts=True)
        for cell, count in zip(cells.tolist(), counts.tolist(), strict=True):
            own, k = divmod(cell, len(names))
            row = {"task": stage + 1, "class": names[k], "of_task": own + 1, "samples": count}
            rows.append(row | angles_of_class(turned, part[labels[part % len(labels)] == k] % len(labels)))
    return rows


def angles_of_class(turned: Tensor, images: Tensor) -> dict[str, object]:
    """Return the angles in degrees of the first and the last of a class's images (n,) that come in a stage; nothing
    where pictures do not turn one by one. turned (N,): as in `TaskTables`."""
    if not len(turned):
        return {}
    first, last = turned[images[[0, -1]]].rad2deg().tolist()
    return {"first_angle": round(first, 1), "last_angle": round(last, 1)}


def task_domains(prepared: Prepared) -> list[str] | None:
    """Return the domain of each task; None where tasks are not domains."""
    domain = prepared.images.domain
    if prepared.settings["split"] != "domains" or domain is None:
        return None
    return [prepared.images.domains[int(domain[pool[0]])] for pool in prepared.stream.train]


def task_angles(prepared: Prepared) -> list[float] | None:
    """Return by how many degrees the images of each task are rotated; None where they are not."""
    radians = prepared.stream.tables.angle
    return [round(v, 1) for v in radians.rad2deg().tolist()] if radians.numel() else None


def initial_warnings(settings: Settings) -> list[str]:
    """Return the warnings that are due before any training."""
    warnings = [settings.warns[settings["scenario"]]] if settings["scenario"] in settings.warns else []
    if settings["task_id_at_test"] and settings.needs_task_id and settings["scenario"] != "task":
        warnings.append("the task's number was given at test time (task_id_at_test=true)")
    return warnings


def lost_state(prepared: Prepared) -> list[str]:
    """Return the warning that a run goes on without the state that its strategy keeps of earlier tasks."""
    origin, strategy = prepared.origin, prepared.strategy
    if origin is None or origin.tensors is not None or strategy.init is Strategy.init:
        return []
    if strategy.adopt is not Strategy.adopt:  # it makes its state of the weights
        return []
    return [f"went on from the weights alone ({origin.reason}): the strategy knows nothing of the tasks before"]


# ---------------------------------------------------------------- after a stage


def record_stage(report: StageReport, outcomes: Sequence[Outcome], costs: ProcessCosts) -> None:
    """Record what was measured in a stage in the outcome and the files of each run that has not diverged before."""
    energy = costs.per_run()["energy_wh"]
    going = [outcome for outcome in outcomes if outcome.status != RunStatus.DIVERGED]
    for r, outcome in enumerate(outcomes):
        if outcome.status == RunStatus.DIVERGED:
            continue
        divergence = report.divergence[r]
        if report.stage >= 0:
            outcome.health.append({"task": report.stage + 1} | report.health[r])
            record_divergence(outcome, divergence, report.stage + 1)
        record_costs(outcome, report, energy)
        if divergence is None or not divergence.diverged:
            record_accuracy(outcome, report, r, outcome.learnt if report.stage < 0 else report.stage + 1)
        else:
            start = report.step - round(max(health["steps"] for health in report.health))
            record_over_training(outcome, report, r, before=start + divergence.step)
    run_files.write_progress_if_due(going)


def record_divergence(outcome: Outcome, divergence: Divergence | None, task: int) -> None:
    """Mark a run in which something was no longer finite."""
    if divergence is None:
        return
    where = f"task {task} step {divergence.step}"
    if divergence.diverged:
        outcome.status, outcome.diverged_at = RunStatus.DIVERGED, where
        outcome.warnings.append(f"diverged at {where}: loss or parameters were no longer finite")
    else:
        outcome.warnings.append(f"this run stopped learning at {where}: the optimiser's state overflowed")


def record_accuracy(outcome: Outcome, report: StageReport, r: int, row: int) -> None:
    """Record the accuracies of run r after a stage, or before any training, in a row of the accuracy matrix."""
    outcome.correct[row] = report.correct[r].numpy()
    record_undefined(outcome, report, r, row)
    if report.evaluation is not None and row > 0 and len(outcome.counts) <= CONFUSED_TASKS:
        pairs = report.evaluation.pairs
        outcome.confusions = np.concatenate([outcome.confusions, with_row(pairs[pairs[:, 0] == r], row)])
    record_predictions(outcome, report, r, row)
    if outcome.validation_correct is not None:
        outcome.validation_correct[row] = report.validation[r].numpy()
    if outcome.probe_correct is not None and report.probe is not None:
        outcome.probe_correct[row] = report.probe[r].numpy()
    record_over_training(outcome, report, r)
    if outcome.calibration is not None and report.calibration is not None and row > 0:
        seen = len(outcome.counts) if not outcome.forgetting_defined else row
        outcome.calibration += metrics.calibration_rows(row, report.calibration[r, :seen].numpy())
    if outcome.task_aware is not None and report.task_aware is not None and row > 0:
        seen = len(outcome.counts) if not outcome.forgetting_defined else row
        outcome.task_aware += metrics.task_aware_rows(row, report.task_aware[r, :seen].tolist(), outcome.counts)
    if outcome.online is not None and report.online is not None:
        correct, samples = report.online[r].tolist()
        outcome.online.append({"task": report.stage + 1, "samples": samples, "correct": correct})


def record_undefined(outcome: Outcome, report: StageReport, r: int, row: int) -> None:
    """Warn the first time that scores of run r were no numbers; the accuracies then look like those of chance."""
    undefined = 0 if report.evaluation is None else int(report.evaluation.undefined[r])
    if undefined > 0 and not any(UNDEFINED in warning for warning in outcome.warnings):
        when = f"after task {row}" if row > 0 else "before training"
        outcome.warnings.append(f"{when}, {undefined} of {outcome.counts.sum()} test samples {UNDEFINED}")


def record_predictions(outcome: Outcome, report: StageReport, r: int, row: int) -> None:
    """Record the answers of run r to all test samples after a stage, where they are wanted."""
    answers = None if report.evaluation is None else report.evaluation.answers
    if outcome.predictions is not None and answers is not None and row > 0:
        mine = with_row(answers[answers[:, 0] == r], row)
        outcome.predictions = np.concatenate([outcome.predictions, mine])


def with_row(pairs: np.ndarray, row: int) -> np.ndarray:
    """Return the pairs or answers of one run with `row`, the number of tasks learnt, in place of the run."""
    return np.concatenate([np.full((len(pairs), 1), row), pairs[:, 1:]], axis=1)


def record_over_training(outcome: Outcome, report: StageReport, r: int, before: int | None = None) -> None:
    """Record the accuracies of run r within a stage and at its end, where they are wanted.

    before: the step of the run at which it has diverged; later accuracies are left out.
    """
    if outcome.over_training is None:
        return
    most = outcome.values.get("evaluate_samples")
    asked = outcome.counts if most is None else np.minimum(outcome.counts, most)
    evaluations = {step: (correct, asked) for step, correct in report.over_training}
    evaluations[report.step] = report.correct, outcome.counts
    outcome.over_training.extend(
        {"step": step, "stage": report.stage + 1, "eval_task": task + 1, "accuracy": right / counts[task]}
        for step, (correct, counts) in evaluations.items()
        if before is None or step < before
        for task, right in enumerate(correct[r].tolist())
        if outcome.counts[task] > 0
    )


def record_costs(outcome: Outcome, report: StageReport, energy: float) -> None:
    """Add the costs of a stage, of which each run of a stack has its share. energy: Wh, of this process so far."""
    runs = len(report.health)
    row = {f"{activity}_seconds": seconds / runs for activity, seconds in report.seconds.items()}
    row["samples"] = report.samples / runs
    for name, value in row.items():
        outcome.costs[name] += value
    before = sum(stage["energy_wh"] for stage in outcome.task_costs)
    row["energy_wh"] = outcome.costs["energy_wh"] + energy - before
    outcome.task_costs.append({"task": report.stage + 1} | row)


# ---------------------------------------------------------------- at the end of a run


def finish(outcome: Outcome, prepared: Prepared, runs: int, state_bytes: int, spent: Mapping[str, float]) -> None:
    """Record the status, costs and warnings of a run that has ended. `spent` is its share of its stack's costs."""
    settings = prepared.settings
    if outcome.status != RunStatus.DIVERGED:
        outcome.status = RunStatus.DONE
        of_method = host_hooks.warnings(prepared.strategy, outcome.health, settings.knobs)
        outcome.warnings += not_said(of_method, outcome.warnings) + classes_not_held(outcome.health, prepared)
        outcome.warnings += average_without_effect(outcome.health)
    costs = {**outcome.costs, **{name: outcome.costs[name] + value for name, value in spent.items()}}
    samples = costs.pop("samples")
    outcome.costs = costs | {
        "samples_per_second": samples / costs["train_seconds"] if costs["train_seconds"] > 0 else None,
        "peak_memory_mb": peak_memory(torch.device(outcome.device)) / 1e6 / runs,
        "state_mb": state_bytes / 1e6,
        "stack_size": runs,
        "threads": torch.get_num_threads(),
    }
    if settings["grams_per_kwh"] is not None:
        outcome.costs["carbon_g"] = carbon(costs["energy_wh"], settings["grams_per_kwh"])
    if settings["price_per_hour"] is not None:
        outcome.costs["money"] = money(costs["wall_seconds"], settings["price_per_hour"])


def not_said(sentences: Sequence[str], before: Sequence[str]) -> list[str]:
    """Return the sentences that no warning from before has in it, such as that of a scenario in which a method has
    nothing to do."""
    return [sentence for sentence in sentences if not any(sentence in warning for warning in before)]


def classes_not_held(health: HealthRows, prepared: Prepared) -> list[str]:
    """Return the warning that the memory of past samples has none of some classes at the end of a run, a class counting
    once in every task that has it. Of an empty memory the method itself says so."""
    of_tasks, knobs = classes_offered(prepared), prepared.settings.knobs
    if len(of_tasks) < 2 or health[-1].get("memory_classes", 0) == 0:
        return []
    came = sum(map(len, of_tasks))
    missing = came - round(health[-1]["memory_classes"])
    if missing <= 0:
        return []
    size = f"memory_size={knobs['memory_size']}: " if "memory_size" in knobs else ""
    again = ", a class counting once per task" if came > len(set().union(*of_tasks)) else ""
    return [f"{size}after all tasks the memory held no sample of {missing} of the {came} classes{again}"]


def classes_offered(prepared: Prepared) -> list[list[int]]:
    """Return the classes of each task of which a memory could hold samples: of a run that goes on also those of the
    tasks before, of which its own data may have none, unless it goes on from the weights alone."""
    stream, origin = prepared.stream, prepared.origin
    earlier = [] if origin is None or origin.tensors is None else stream.groups[: stream.learnt]
    return [*earlier, *(prepared.images.y[pool].unique().tolist() for pool in stream.train[stream.learnt :])]


def average_without_effect(health: HealthRows) -> list[str]:
    """Return the warning that what was evaluated, an average of the weights, was the weights themselves throughout.

    Tasks without steps say nothing: a run that goes on may have none, and answer by the average of the run before it.
    """
    trained = [row for row in health if row["steps"] > 0]
    if not trained or any(row.get("average_distance") != 0 for row in trained):
        return []
    return ["the average of the weights was the weights themselves after every task, so average=ema did nothing"]


def state_bytes(stack: Stack, current: TrainState, r: int, prepared: Prepared) -> int:
    """Return the bytes that run r of a stack must keep beside its network: the strategy's tensors without empty slots,
    and the images that it trains on again: those in its memory, and those of tasks other than the stage's own."""
    state = current.state if stack.alone else tree_map(lambda v: v[r], current.state)
    stored, unused = host_hooks.stored_samples(stack.strategy, state), host_hooks.unused_bytes(stack.strategy, state)
    return stack.state_bytes(current) - unused + (stored + revisited(prepared, stack)) * prepared.images.x[0].nbytes


def revisited(prepared: Prepared, stack: Stack) -> int:
    """Return the largest number of images, of tasks other than its own, that a stage trains on."""
    sizes = prepared.stream.sizes
    seen = [stack.strategy.visible(stage) for stage in range(len(sizes))]
    return max(sum(sizes[task] for task in tasks if task != stage) for stage, tasks in enumerate(seen))
