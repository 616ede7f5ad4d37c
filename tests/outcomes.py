"""Outcomes of runs that were made up, and their files, for tests of files, tables and plots."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from clrun.results.outcome import Outcome, RunStatus
from clrun.runs.ending import write_plots_and_summary, write_tables

# As the contract writes them
SUMMARY = (
    "run,group,status,strategy,dataset,split,scenario,tasks,model,seed,stream,setup,"
    "dataset.normalize,split.classes,model.widths,optimizer.name,lr,iterations,lambda,outputs,"
    "average_accuracy,average_incremental_accuracy,learning_accuracy,forgetting,backward_transfer,forward_transfer,"
    "overall_accuracy,overall_incremental_accuracy,"
    "validation_accuracy,task_aware_accuracy,min_accuracy,worst_case_accuracy,stability_gap,online_accuracy,accuracy_auc,"
    "train_seconds,consolidate_seconds,eval_seconds,wall_seconds,cpu_seconds,samples_per_second,"
    "peak_memory_mb,state_mb,energy_wh,"
    "stack_size,threads,carbon_g,money,sample_count,diverged_at,warnings,"
    "device,torch_version,clrun_version,pillow_version,commit"
)
VALUES = {
    "dataset": "digits",
    "dataset.normalize": True,
    "split": "classes",
    "split.classes": [["cat", "dog"], ["deer"]],
    "tasks": 3,
    "scenario": "task",
    "model": "mlp",
    "model.widths": [100, 100],
    "optimizer.name": "adam",
    "lr": 1e-05,
    "iterations": None,
    "strategy": "ewc",
    "lambda": 0.0,
    "seed": 0,
    "threads": 1,
    "device": "auto",
    "outputs": "a b=c",
}
STRATEGIES = ("ewc", "finetune", "joint", "si")  # the first digit of a run's identity
CORRECT = {
    1: [[5], [8]],
    2: [[5, 6], [9, 6], [4, 10]],
    3: [[1, 2, 3], [9, 2, 2], [8, 8, 4], [6, 9, 7]],
}


def outcome(directory: Path, tasks: int = 3, strategy: str = "ewc", seed: int = 0, **changes) -> Outcome:
    made = Outcome(
        directory=directory,
        run=f"{STRATEGIES.index(strategy)}{seed:09d}",
        group="12e4567890",
        stream="1110000007",
        setup="0000000007",
        values=VALUES | {"tasks": tasks, "strategy": strategy, "seed": seed},
        class_names=["cat", "dog", "deer"],
        correct=np.array(CORRECT[tasks]),
        counts=np.full(tasks, 10),
        confusion=np.arange(9).reshape(3, 3),
        confusions=np.array([[1, 0, 0, 1, 4, 7], [tasks, 0, 0, 0, 6, 5], [tasks, 0, 1, 2, 4, 9]]),
        health=[{"fisher_max": 0.1 + 0.2, "steps_not_finite": 0, "penalty_over_loss": None} for _ in range(tasks)],
        costs={"train_seconds": 1.25, "consolidate_seconds": 0.5, "state_mb": 0.125, "stack_size": 8},
        status=RunStatus.DONE,
    )
    return replace(made, **changes)


def placed(outputs: Path, strategy: str = "ewc", seed: int = 0, **changes) -> Outcome:
    """An outcome where clrun would put it, written."""
    made = outcome(outputs / "runs" / strategy / f"digits-{seed}", strategy=strategy, seed=seed, **changes)
    write_final(made, plots=False)
    return made


def write_final(made: Outcome, plots: bool = True) -> None:
    """Write all files of a run that has ended."""
    write_tables(made)
    write_plots_and_summary(made, plots, {})


def lines(path: Path) -> list[str]:
    return path.read_bytes().decode().split("\n")
