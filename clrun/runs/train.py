"""The training of runs, from their settings to their files.

`train_runs` claims the locks of runs and divides them into stacks by their checkpoint positions; `train_stack` trains a
stack, stage by stage: `Stack.learn` (clrun/engine/stack.py) trains a stage, and a stepper takes its steps. What happens
to the runs after the last stage is in clrun/runs/ending.py.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic, perf_counter

import numpy as np
import torch

from clrun.config.settings import Settings
from clrun.engine.blocks import BLOCK_STEPS
from clrun.engine.listener import TrainingListener
from clrun.engine.stack import Stack
from clrun.engine.state import PartialStage, StageReport, TrainState
from clrun.loggers.logs import Logs
from clrun.results import run_files
from clrun.results.outcome import Outcome, RunStatus
from clrun.runs import checkpoint
from clrun.runs.build import build, ready_device, resolve_device
from clrun.runs.changed_pictures import write_counts
from clrun.runs.checkpoint import InvalidCheckpoint, Position
from clrun.runs.checkpointer import Checkpointer, restore_outcome, restore_partial_stage, restore_run
from clrun.runs.ending import confusion_matrices, drawing_processes, end_runs, write_networks_and_tables
from clrun.runs.failures import disk_trouble, memory_trouble, reason_written, tidy
from clrun.runs.going_on import begun
from clrun.runs.prepared import Prepared
from clrun.runs.recording import ProcessCosts, new_outcome, record_stage, state_bytes
from clrun.system import energy, locks
from clrun.system.cards import CARDS, Cards
from clrun.system.energy import Meter
from clrun.system.errors import RunsFailed, UnfitRun, UsageError
from clrun.system.locks import LockLost
from clrun.system.messages import announce
from clrun.system.peak_memory import forget_peak
from clrun.system.text import format_value
from clrun.terminal.console import make_console
from clrun.terminal.progress import Progress, TerminalProgress

StackTrainer = Callable[[Sequence[Prepared], Progress], list[RunStatus]]


def train_run(prepared: Prepared, quiet: bool = False, trainer: StackTrainer | None = None) -> RunStatus:
    """Train one run as `train_runs` does. Raise UsageError if another process is training it, and RunsFailed if another
    has taken it over."""
    (status,) = train_runs([prepared], quiet, trainer=trainer)
    if status == RunStatus.HELD:
        raise UsageError(f"{prepared.directory} is being trained by another process; wait for it, or end that one.")
    if status == RunStatus.TAKEN_OVER:
        raise RunsFailed(f"{prepared.directory}: {taken_over(prepared)}")
    return status


def train_runs(
    runs: Sequence[Prepared],
    quiet: bool = False,
    progress: Progress | None = None,
    trainer: StackTrainer | None = None,
    cards: Cards = CARDS,
) -> list[RunStatus]:
    """Train runs that differ in values only, and write their files. Return the status of each: DONE, DIVERGED,
    DONE_ELSEWHERE where another process has finished it before this one could claim it, HELD where another process is
    training it, and TAKEN_OVER where this process stood still for so long that another one has taken the run over; the
    last two are reported.

    An interrupted run continues from its checkpoint. Runs whose checkpoints are at different positions are trained as
    several stacks, one after another. A crash writes failed.txt of all runs of its stack and is raised again: as
    RunsFailed where the disk is to blame, or the memory of the device that one run alone has not. Ctrl-C and SystemExit
    (a signal) write checkpoints first.

    progress: receives reports of progress; by default the terminal, unless quiet. trainer: by default `train_stack`.
    """
    console = make_console(stderr=True, quiet=quiet)
    progress = progress or TerminalProgress(console, len(runs[0].stream.train), name_of(runs))
    directories = list(dict.fromkeys(prepared.directory for prepared in runs))
    troubles = disk_trouble(runs[0].settings["outputs"], runs[0].directory), memory_trouble(runs)
    with troubles[0], troubles[1], locks.claimed(directories) as claim:
        for directory, owner in claim.others.items():
            announce(f"{directory.name}: {owner} is training it; left to that one.")
        mine = claim.mine
        claimed = [replace(run, guard=mine[run.directory]) for run in runs if run.directory in mine]
        ended = {run.directory: RunStatus.DONE_ELSEWHERE for run in claimed if not run.needs_training}
        for directory in ended:  # another process has finished it before this one could claim it, and may be killed
            tidy(directory)
        remaining = [prepared for prepared in claimed if prepared.directory not in ended]
        statuses = ended | train_stacks(remaining, progress, trainer or train_stack, cards)
    return [statuses.get(prepared.directory, RunStatus.HELD) for prepared in runs]


def taken_over(prepared: Prepared) -> str:
    """Return what has become of a run that another process has taken over, and what to do."""
    if not prepared.directory.is_dir():
        return "it was removed while it was trained; the same command trains it anew."
    if prepared.settings["rerun"]:
        return "another process has taken it over; wait for that one, and type the command without rerun=true."
    how = "has finished it" if prepared.finished else "has not finished it yet"
    return f"the process that took it over {how}; the same command shows it then."


def train_stacks(
    runs: Sequence[Prepared], progress: Progress, trainer: StackTrainer, cards: Cards
) -> dict[Path, RunStatus]:
    """Train the runs of each checkpoint position as one stack, and return the status of each run by its folder.

    If another process takes a run over, or a run cannot go on with its settings, the others of its stack go on from
    their checkpoints without it; what is wrong with its settings is raised when they have ended. On a card, the memory
    of a stack is given back before the next one begins.
    """
    statuses: dict[Path, RunStatus] = {}
    mistakes: list[UnfitRun] = []
    on_card = resolve_device(runs[0].settings["device"], cards).type == "cuda" if runs else False
    remaining = list(runs)
    while remaining:
        try:
            for prepared in remaining:  # a damaged one is set aside before runs are divided by their positions
                checkpoint.set_aside_if_invalid(prepared.directory, prepared.id, announce, prepared.guard)
            stack = by_position(remaining)[0]
            with reason_written(stack):
                trained = trainer(stack, progress)
            ended = dict(zip([prepared.directory for prepared in stack], trained, strict=True))
        except LockLost as error:
            announce(str(error))
            ended = {error.directory: RunStatus.TAKEN_OVER}
        except UnfitRun as error:
            mistakes.append(error)
            ended = {stack[error.run].directory: RunStatus.CRASHED}
        if on_card:
            cards.release()
        statuses |= ended
        remaining = [prepared for prepared in remaining if prepared.directory not in ended]
    if mistakes:
        raise mistakes[0]
    return statuses


def train_stack(
    runs: Sequence[Prepared],
    progress: Progress,
    block_steps: int = BLOCK_STEPS,
    meter_of: Callable[[torch.device], AbstractContextManager[Meter]] = energy.meter,
    build: Callable[..., Stack] = build,
    drawers: Callable[[torch.device, int], int] = drawing_processes,
) -> list[RunStatus]:
    """Train runs whose checkpoints are at one position as one stack, from there to their end; write their files.

    block_steps: the most steps between two points from which an interrupted run can continue. meter_of: returns
    the meter of the energy that a device draws. build: makes the engine's stack of the runs. drawers: returns how many
    processes draw the plots of so many runs on a device.
    """
    began, settings = perf_counter(), runs[0].settings
    forget_peak(prepare_torch(settings))
    stack = build(runs, block_steps=block_steps)
    outcomes = [new_outcome(prepared, stack) for prepared in runs]
    if len(outcomes) > 1:  # before the first task, the tables of many runs are not worth the time that they take
        for outcome in outcomes:
            outcome.written_at = monotonic()
    for prepared in runs:
        run_files.write_config(prepared.directory, prepared.settings.nested(), prepared.guard)
        write_counts(prepared)
    with meter_of(stack.device) as meter:
        costs = ProcessCosts(len(runs), began, meter)
        every, beside = settings["checkpoint_every"], stack.device.type == "cuda"
        checkpointer = Checkpointer(stack, outcomes, every, announce, costs.per_run, beside)
        logs = Logs(outcomes, announce)
        recorder = Recorder(stack, outcomes, progress, checkpointer, costs, logs)
        with recorder.recording():
            run, first, partial = resume_or_initialize(stack, runs, recorder)
            report = None
            for stage in recorder.stages_to_train(first):
                run, report = stack.learn(run, stage, partial, recorder)
                partial = None
                recorder.end_stage(run, stage, report)
        for outcome, counts in zip(outcomes, confusion_matrices(stack, run, report, outcomes), strict=True):
            outcome.confusion = counts
        spent = costs.per_run()
    write_networks_and_tables(stack, run, runs, outcomes, spent)
    end_runs(runs, outcomes, logs, drawers(stack.device, len(runs)))
    return [outcome.status for outcome in outcomes]


# ---------------------------------------------------------------- before training


def prepare_torch(settings: Settings, cards: Cards = CARDS) -> torch.device:
    """Set what PyTorch keeps for the whole process: threads, determinism, and the precision of matrix products. Return
    the device to train on."""
    device = ready_device(settings["device"], cards)
    torch.set_num_threads(settings["threads"])
    if torch.are_deterministic_algorithms_enabled() != settings["deterministic"]:  # the call imports the compiler
        torch.use_deterministic_algorithms(settings["deterministic"], warn_only=True)  # a warning where there is none
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = settings["precision"] == "tf32"
    return device


def name_of(runs: Sequence[Prepared]) -> str:
    """Return how messages name runs: 'ewc lambda=100 seed=0'; '8 runs of ewc'."""
    settings = runs[0].settings
    if len(runs) > 1:
        return f"{len(runs)} runs of {settings['strategy']}"
    knobs = [f"{key}={format_value(value)}" for key, value in settings.not_default.items() if key in settings.knobs]
    return " ".join([settings["strategy"], *knobs, f"seed={settings['seed']}"])


def by_position(runs: Sequence[Prepared]) -> list[list[Prepared]]:
    """Return the runs by the position of their checkpoints: each list can be trained as one stack. Change nothing."""
    positions = [position_of(prepared) for prepared in runs]
    return [[runs[r] for r in same] for same in checkpoint.indices_by_position(positions)]


def position_of(prepared: Prepared) -> Position:
    """Return the position from which a run will continue; the beginning where it has no usable checkpoint."""
    try:
        position = checkpoint.read_position(prepared.directory, prepared.id)
    except InvalidCheckpoint:
        return Position()
    return Position() if position is None or kept_after_the_end(prepared, position) else position


def kept_after_the_end(prepared: Prepared, position: Position) -> bool:
    """Return whether a checkpoint is that of a finished run, from which `rerun=true` does not continue."""
    return prepared.finished and position.stage == len(prepared.stream.train)


def resume_or_initialize(
    stack: Stack, runs: Sequence[Prepared], recorder: "Recorder"
) -> tuple[TrainState, int, PartialStage | None]:
    """Return the state of a stack, the stage to train next, and what that stage has gathered already: from the
    checkpoints of the runs, or newly initialised."""
    current, first, partial = resumed(stack, runs, recorder.outcomes) or initialized(stack, runs, recorder)
    recorder.checkpointer.start(current, first, partial)
    recorder.logs.begin(resumed=first > stack.learnt or partial is not None)
    return current, first, partial


def initialized(stack: Stack, runs: Sequence[Prepared], recorder: "Recorder") -> tuple[TrainState, int, None]:
    """Return the state of a stack before any training by it, whose accuracies are recorded, and its first stage."""
    current = begun(stack, runs)
    state_bytes(stack, current, 0, runs[0])  # refuses now what could not be counted at the end
    record_stage(stack.evaluate_untrained(current), recorder.outcomes, recorder.costs)
    return current, stack.learnt, None


def resumed(
    stack: Stack, runs: Sequence[Prepared], outcomes: Sequence[Outcome]
) -> tuple[TrainState, int, PartialStage | None] | None:
    """Return the state of a stack from checkpoints of one position, and restore what the outcomes have measured.

    Return None if there are no checkpoints, or if one cannot be used; then all are set aside.
    """
    position = position_of(runs[0])
    if position == Position():
        return None
    try:
        found = [checkpoint.read(prepared.directory, prepared.id) for prepared in runs]
        saved = [one_run for one_run in found if one_run is not None]  # all of them, as all are at this position
        current, partial = restore_run(stack, saved), restore_partial_stage(stack, saved)
    except InvalidCheckpoint as error:
        for prepared in runs:
            checkpoint.set_aside(prepared.directory, str(error), announce, prepared.guard)
        return None
    stack.resume_at(position.step)
    for prepared, outcome, one_run in zip(runs, outcomes, saved, strict=True):
        restore_outcome(outcome, one_run)
        announce(f"{prepared.directory.name} continues after {position}.")
    return current, position.stage, partial


# ---------------------------------------------------------------- while a stack is trained


@dataclass
class Recorder(TrainingListener):
    """A listener of a stack's training: it reports progress, records what was measured, and writes checkpoints."""

    stack: Stack
    outcomes: Sequence[Outcome]
    progress: Progress
    checkpointer: Checkpointer
    costs: ProcessCosts
    logs: Logs

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Show progress while the block runs; if it is interrupted, write checkpoints."""
        with self.logs.closing(), self.progress, self.checkpointer.writing_on_interrupt():
            yield

    def pass_started(self, stage: int, steps: int) -> None:
        """Report a pass of this many steps over a task."""
        self.progress.begin_task(stage + 1, steps)

    def steps_taken(self, steps: int) -> None:
        """Report that this many more steps are done."""
        self.progress.advance(steps)

    def block_ended(self, current: TrainState, partial: PartialStage) -> None:
        """Let the checkpointer know a point within a task from which training can continue."""
        self.checkpointer.end_block(current, partial)

    def stages_to_train(self, first: int) -> Iterator[int]:
        """Yield the stages from `first` to the last, but none after every run has diverged."""
        for stage in range(first, self.stack.strategy.data.tasks):
            if all(outcome.status == RunStatus.DIVERGED for outcome in self.outcomes):
                return
            yield stage

    def end_stage(self, current: TrainState, stage: int, report: StageReport) -> None:
        """Record and write what was measured in a stage, write a checkpoint, and report the accuracies."""
        record_stage(report, self.outcomes, self.costs)
        self.checkpointer.end_task(current, stage + 1)
        self.logs.update()
        seen = self.stack.schedule.horizon(stage) + 1
        rows = [o.accuracy[stage + 1, :seen] for o in self.outcomes if o.status != RunStatus.DIVERGED]
        if rows and self.stack.strategy.visible(stage):
            self.progress.end_task(stage + 1, np.mean(rows, 0).tolist())
