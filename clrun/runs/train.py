"""One run, or a stack of runs, from its settings to its files: lock, continue or start, train, write."""

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from clrun.config.catalog import format_value
from clrun.config.settings import Settings
from clrun.engine.stack import Stack
from clrun.engine.state import PartialStage, Run, StageReport
from clrun.results import run_files
from clrun.results.outcome import Outcome
from clrun.runs import autosave, checkpoint
from clrun.runs.build import build
from clrun.runs.failures import disk_trouble, leave_reason
from clrun.runs.prepared import Prepared
from clrun.runs.recording import Spent, blank, conclude, enter, kept
from clrun.system import energy, locks
from clrun.system.errors import UsageError
from clrun.system.peak_memory import forget_peak
from clrun.terminal.console import make_console
from clrun.terminal.progress import Progress, TerminalProgress


def prepare_torch(settings: Settings) -> None:
    """What PyTorch keeps for the whole process."""
    torch.set_num_threads(settings["threads"])
    if settings["deterministic"]:  # cuBLAS repeats its bits in a workspace of its own; it reads this when it starts
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if torch.are_deterministic_algorithms_enabled() != settings["deterministic"]:  # the call imports the compiler
        torch.use_deterministic_algorithms(settings["deterministic"], warn_only=True)  # a warning where there is none
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = settings["precision"] == "tf32"


def train(prepared: Prepared, quiet: bool = False) -> str:
    """Train one run, or what is left of it, and write its files; "done" or "diverged".

    A crash leaves failed.txt and is raised again. UsageError if another process is training it.
    """
    (status,) = train_stack([prepared], quiet)
    if status == "held":
        raise UsageError(f"{prepared.directory} is being trained by another process; wait for it, or end that one.")
    return status


def train_stack(runs: Sequence[Prepared], quiet: bool = False, progress: Progress | None = None) -> list[str]:
    """Train runs that differ in values only as one stack; the status of each: "done", "diverged", or "held" where
    another process is training it (which is said).

    A run that was interrupted goes on from its checkpoint. Runs of one stack may have got to different places; they are
    then trained as several stacks, one after another, as `regrouped` says. A crash leaves failed.txt in all runs of
    its stack and is raised again: as RunsFailed where the disk is to blame. Ctrl-C and SystemExit (a signal) write
    checkpoints first.

    progress: who is told how it goes; by default the terminal, unless quiet.
    """
    console = make_console(stderr=True, quiet=quiet)
    progress = progress or TerminalProgress(console, len(runs[0].stream.train), name_of(runs))
    statuses = dict.fromkeys((one.directory for one in runs), "held")
    with disk_trouble(runs[0]), locks.claimed(list(statuses)) as claim:
        for directory, owner in claim.others.items():
            announce(f"{directory.name}: {owner} is training it; left to that one.")
        mine = [one for one in runs if one.directory in claim.mine and not ended_elsewhere(one, statuses)]
        for one in mine:  # what is damaged is set aside before the runs are told apart by it
            checkpoint.find(one.directory, one.id, announce)
        for group in regrouped(mine):
            statuses |= zip([one.directory for one in group], attempt(group, progress), strict=True)
    return [statuses[one.directory] for one in runs]


def name_of(runs: Sequence[Prepared]) -> str:
    """'ewc lambda=100 seed=0'; '8 runs of ewc'."""
    settings = runs[0].settings
    if len(runs) > 1:
        return f"{len(runs)} runs of {settings['strategy']}"
    told = [f"{key}={format_value(value)}" for key, value in settings.unusual.items() if key in settings.knobs]
    return " ".join([settings["strategy"], *told, f"seed={settings['seed']}"])


def ended_elsewhere(prepared: Prepared, statuses: dict[Path, str]) -> bool:
    """Whether another process has finished a run before it could be claimed; its status is then entered."""
    if prepared.settings["rerun"] or not prepared.finished:
        return False
    statuses[prepared.directory] = run_files.read_summary(prepared.directory / "summary.csv").iloc[0]["status"]
    return True


def announce(line: str) -> None:
    """To standard error, whatever else is quiet."""
    sys.stderr.write(f"clrun: {line}\n")  # in one piece, as workers share it
    sys.stderr.flush()


def regrouped(runs: Sequence[Prepared]) -> list[list[Prepared]]:
    """The runs by how far their checkpoints are: each list can be trained as one stack. Changes nothing."""
    places = [reached(one) for one in runs]
    return [[runs[r] for r in group] for group in checkpoint.grouped(places)]


def reached(prepared: Prepared) -> checkpoint.Position:
    """How far the checkpoint of a run is; the beginning where there is none to continue from."""
    try:
        place = checkpoint.place(prepared.directory, prepared.id)
    except checkpoint.InvalidCheckpoint:
        return checkpoint.Position()
    return checkpoint.Position() if place is None or over(prepared, place) else place


def over(prepared: Prepared, place: checkpoint.Position) -> bool:
    """Whether a checkpoint is one that a finished run has kept, from which `rerun=true` does not continue."""
    return prepared.finished and place.stage == len(prepared.stream.train)


def attempt(runs: Sequence[Prepared], progress: Progress) -> list[str]:
    """Train a stack of runs that are at one place."""
    for prepared in runs:
        run_files.clear_failed(prepared.directory)
        run_files.clear_halves(prepared.directory)
    try:
        return trained(runs, progress)
    except Exception as error:
        told = traceback.format_exc()
        for prepared in runs:
            leave_reason(prepared.directory, error, told)
        raise


def trained(runs: Sequence[Prepared], progress: Progress) -> list[str]:
    """Train a stack of runs that are at one place, from there to their end."""
    began = perf_counter()
    prepare_torch(runs[0].settings)
    forget_peak()
    stack = build(runs)
    outcomes = [blank(prepared, stack) for prepared in runs]
    for prepared in runs:
        run_files.write_config(prepared.directory, prepared.settings.nested())
    with energy.meter(stack.device) as meter:
        spent = Spent(len(runs), began, meter)
        keeper = autosave.Checkpointer(stack, outcomes, runs[0].settings["checkpoint_every"], announce, spent)
        run, last = lived(stack, runs, outcomes, progress, keeper)
        confusion = confusions(stack, run, last, outcomes).numpy()
        bill = spent()
    for r, (prepared, outcome) in enumerate(zip(runs, outcomes, strict=True)):
        outcome.confusion = confusion[r]
        conclude(outcome, prepared, len(runs), kept(stack, run, prepared), bill)
        run_files.write_final(outcome, prepared.settings["pictures"])
        if not prepared.settings["keep_checkpoint"]:
            checkpoint.remove(prepared.directory)
    return [outcome.status for outcome in outcomes]


def lived(
    stack: Stack,
    runs: Sequence[Prepared],
    outcomes: Sequence[Outcome],
    progress: Progress,
    keeper: autosave.Checkpointer,
) -> tuple[Run, StageReport | None]:
    """Train a stack from where it is to its end, see `follow`; a checkpoint is also written when it is interrupted."""
    with progress:
        stack.advance = progress.advance
        stack.begin = lambda stage, steps: progress.begin_task(stage + 1, steps)
        stack.rest = keeper.block
        try:
            return follow(stack, outcomes, progress, keeper, *started(stack, runs, outcomes, keeper.spent))
        except (KeyboardInterrupt, SystemExit):
            keeper.rescue()
            raise


def started(
    stack: Stack, runs: Sequence[Prepared], outcomes: Sequence[Outcome], spent: Spent
) -> tuple[Run, int, PartialStage | None]:
    """Where a stack is -> run, the next stage, what has been gathered of that one: from checkpoints, or the start."""
    if reached(runs[0]) != checkpoint.Position():
        try:
            return continued(stack, runs, outcomes)
        except checkpoint.InvalidCheckpoint as error:
            for prepared in runs:
                checkpoint.set_aside(prepared.directory, str(error), announce)
    run = stack.initialize()
    enter(stack.untrained(run), outcomes, spent)
    return run, 0, None


def continued(
    stack: Stack, runs: Sequence[Prepared], outcomes: Sequence[Outcome]
) -> tuple[Run, int, PartialStage | None]:
    """As `started`, from checkpoints of one place; the outcomes know again what they knew. Raises InvalidCheckpoint."""
    saved = [checkpoint.read(one.directory, one.id) for one in runs]
    run, half, place = autosave.revived(stack, saved), autosave.partial_stage_of(stack, saved), saved[0].place
    stack.step = place.step
    for prepared, outcome, one in zip(runs, outcomes, saved, strict=True):
        autosave.recall(outcome, one.notes)
        announce(f"{prepared.directory.name} continues after {place}.")
    return run, place.stage, half


def follow(
    stack: Stack,
    outcomes: Sequence[Outcome],
    progress: Progress,
    keeper: autosave.Checkpointer,
    run: Run,
    first: int,
    half: PartialStage | None,
) -> tuple[Run, StageReport | None]:
    """Train stage after stage, writing what is known after each; stop when every run has diverged. -> the run, the
    report of the last stage, None where there was none left to train."""
    report = None
    keeper.start(run, first, half)
    for stage in range(first, stack.strategy.data.tasks):
        if all(outcome.status == "diverged" for outcome in outcomes):
            break
        run, report = stack.learn(run, stage, half)
        half = None
        enter(report, outcomes, keeper.spent)
        keeper.task(run, stage + 1)
        seen = stack.horizon(stage) + 1
        rows = [outcome.accuracy[stage + 1, :seen] for outcome in outcomes if outcome.status != "diverged"]
        if rows and stack.strategy.visible(stage):
            progress.end_task(stage + 1, np.mean(rows, 0))
    return run, report


def confusions(stack: Stack, run: Run, last: StageReport | None, outcomes: Sequence[Outcome]) -> Tensor:
    """(R, C, C), as the last examination found them; examined again where that is not known or not of this run."""
    if last is None or any(outcome.status == "diverged" for outcome in outcomes):
        return stack.confusion(run, stack.horizon(stack.strategy.data.tasks - 1))
    return last.confusion
