"""The end of a stack of runs: the confusion of their last answers, their networks, tables and plots, and summary.csv.

summary.csv is written last: its presence says that a run has ended.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from clrun.engine.stack import Stack
from clrun.engine.state import StageReport, TrainState
from clrun.loggers.logs import Logs
from clrun.results import misjudged, run_files, tables
from clrun.results.outcome import Outcome, RunStatus
from clrun.runs import checkpoint
from clrun.runs.answering import keep_network
from clrun.runs.prepared import Prepared
from clrun.runs.recording import finish, state_bytes
from clrun.system import machine
from clrun.system.errors import UsageError
from clrun.system.locks import LockLost
from clrun.system.messages import announce

RUNS_OF_A_DRAWER = 4  # at least, whose plots one process draws
MOST_DRAWERS = 16  # processes that draw plots at the same time


def confusion_matrices(
    stack: Stack, current: TrainState, last: StageReport | None, outcomes: Sequence[Outcome]
) -> np.ndarray:
    """Return (R, C, C) counts [true, predicted]: of the last stage's evaluation, or evaluated anew where there was none
    or where it is not of this state, as after a divergence."""
    diverged = any(outcome.status == RunStatus.DIVERGED for outcome in outcomes)
    evaluation = None if last is None or diverged else last.evaluation
    if evaluation is None:
        horizon = stack.schedule.horizon(stack.strategy.data.tasks - 1)
        evaluation = stack.evaluator.evaluate(current, horizon, "test")
    return evaluation.confusion(stack.strategy.data.outputs)


def write_networks_and_tables(
    stack: Stack, current: TrainState, runs: Sequence[Prepared], outcomes: Sequence[Outcome], spent: Mapping[str, float]
) -> None:
    """Finish the outcomes of runs, and write their networks, their misjudged pictures and all their tables but
    summary.csv. spent: what each run has cost."""
    for r, (prepared, outcome) in enumerate(zip(runs, outcomes, strict=True)):
        finish(outcome, prepared, len(runs), state_bytes(stack, current, r, prepared), spent)
        with others_go_on(outcome):
            keep_network(stack, current, r, prepared, outcome.status != RunStatus.DIVERGED)
            if prepared.settings["plots"]:
                write_misjudged(outcome, prepared.images.x)
            write_tables(outcome)


def write_misjudged(outcome: Outcome, samples: torch.Tensor) -> None:
    """Write misjudged.png of a run where its samples (N, ...) are pictures and some of them were misjudged."""
    wrong = misjudged.chosen(outcome.confusions[tables.answered(outcome)])
    pictures, path = samples[wrong].numpy(), outcome.directory / misjudged.NAME
    if wrong and misjudged.are_pictures(pictures):
        misjudged.write(path, wrong, pictures, outcome.guard)
    else:
        path.unlink(missing_ok=True)  # that of an earlier training of the run


def write_tables(outcome: Outcome) -> None:
    """Write all tables of a run but for summary.csv."""
    run_files.write_progress(outcome)
    run_files.write_confusion(outcome)


def write_plots_and_summary(outcome: Outcome, plots: bool, ahead: Mapping[Path, Path]) -> None:
    """Draw the plots of a run where they are wanted, from its tables, and write summary.csv last. ahead: as of
    `clrun.results.drawing.drawn_ahead`."""
    if plots:
        from clrun.results import drawing  # matplotlib takes half a second to import

        drawing.take_or_draw(outcome.directory, ahead, outcome.guard)
    run_files.write_summary(outcome)


@contextmanager
def plots_ahead(runs: Sequence[Prepared], processes: int) -> Iterator[Mapping[Path, Path]]:
    """Draw the plots of those runs that want them by so many processes. Yield them as
    `clrun.results.drawing.drawn_ahead` does."""
    wanted = [prepared.directory for prepared in runs if prepared.settings["plots"]]
    if not processes or not wanted:
        yield {}
        return
    from clrun.results import drawing  # matplotlib takes half a second to import

    with drawing.drawn_ahead(wanted, processes) as ahead:
        yield ahead


@contextmanager
def others_go_on(outcome: Outcome) -> Iterator[None]:
    """Do something for a run of a stack; if another process has taken it over, the others have ended all the same."""
    try:
        yield
    except LockLost as error:
        announce(str(error))
        outcome.status = RunStatus.TAKEN_OVER


def end_runs(runs: Sequence[Prepared], outcomes: Sequence[Outcome], logs: Logs, processes: int) -> None:
    """Draw the plots of the runs whose tables are written, write summary.csv, and remove their checkpoints.

    A run that is killed before its summary.csv is there continues from its last checkpoint, to the same files.
    """
    left = [
        (run, outcome) for run, outcome in zip(runs, outcomes, strict=True) if outcome.status != RunStatus.TAKEN_OVER
    ]
    with plots_ahead([run for run, _ in left], processes) as ahead:
        for prepared, outcome in left:
            with others_go_on(outcome):
                write_plots_and_summary(outcome, prepared.settings["plots"], ahead)
                logs.end(outcome)
                if prepared.settings["keep_checkpoint"] is not True:
                    remove_checkpoint(prepared)


def remove_checkpoint(prepared: Prepared) -> None:
    """Remove the checkpoint of a run that has ended; what keeps it there is no failure of the run, and is reported."""
    try:
        checkpoint.remove(prepared.directory, prepared.guard)
    except (OSError, UsageError) as error:
        announce(f"{prepared.directory.name}: its checkpoint could not be removed ({error}).")


def drawing_processes(device: torch.device, runs: int, cores: int | None = None) -> int:
    """Return how many processes draw the plots of runs that end at the same time: 0, which is this process alone, on a
    CPU, whose cores have runs of their own to train, and for few runs, as a process takes half a second to start.
    cores: by default those of the machine."""
    cores = machine.cores() if cores is None else cores
    several = min(cores - 1, runs // RUNS_OF_A_DRAWER, MOST_DRAWERS)
    return several if device.type == "cuda" and several > 1 else 0
