"""The training of a sweep on this machine: in stacks (clrun/sweep/plan.py), in this process or in workers
(clrun/sweep/workers.py)."""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from clrun.results import run_files
from clrun.results.outcome import RunStatus
from clrun.results.reading import UnreadableFile
from clrun.runs.failures import write_reason_for
from clrun.sweep import plan, workers
from clrun.sweep.messages import (
    Advanced,
    Event,
    RunResult,
    StackBegan,
    StackEnded,
    StackTooLarge,
    TaskBegan,
    WorkerDied,
)
from clrun.system import locks
from clrun.terminal.console import make_console
from clrun.terminal.progress import Line, View

if TYPE_CHECKING:
    from clrun.runs.prepared import Prepared
    from clrun.runs.train import StackTrainer

POLL_SECONDS = 1.0  # between two checks of the runs that other processes are training


def train_sweep(
    todo: Sequence["Prepared"], view: View | None = None, sleep: Callable[[float], None] = time.sleep
) -> dict[str, str]:
    """Train runs in stacks and workers. Return the reason of each crash by the run's id; a crash does not affect the
    other runs.

    Runs that other processes are training are left to them until all else is done; those that they have not finished
    then are trained here. view: by default on the terminal. sleep: how to wait for other processes.
    """
    errors: dict[str, str] = {}
    with view or View(make_console(), len(todo)) as shown:
        held = train_free(todo, shown, errors)
        while held:
            sleep(POLL_SECONDS)
            free = [run for run in held if locks.holder(run.directory) is None]
            held = [run for run in held if run not in free] + train_free(free, shown, errors)
    over = {run.id for run in todo if ended_all_the_same(run)}  # also one that crashed here and was trained elsewhere
    return {run: reason for run, reason in errors.items() if run not in over}


def train_free(todo: Sequence["Prepared"], view: View, errors: dict[str, str]) -> list["Prepared"]:
    """Train the runs that no other process is training, and return the others. Add reasons of crashes to `errors`."""
    stacks: list[Sequence[Prepared]] = [*plan.stacks(todo)]
    sweep = Sweep(stacks, view, errors, cards=plan.worker_cards(stacks))
    count = plan.processes(sweep.stacks)
    with closing(sweep.train_here() if count < 2 else sweep.train_in_workers(count)) as events:
        for event in events:
            sweep.handle(event)
    return sweep.held


@dataclass
class Sweep:
    """Stacks of runs and how they have ended so far."""

    stacks: list[Sequence["Prepared"]]
    view: View
    errors: dict[str, str]  # id -> why the run crashed
    held: list["Prepared"] = field(default_factory=list)  # runs that another process is training
    cards: Sequence[int] = ()  # that workers take in turn: as of `workers.WorkerPool`
    trainer: "StackTrainer | None" = None  # in this process: as of `clrun.runs.train.train_runs`
    in_workers: Callable[..., Generator[Event, None, None]] = workers.train_in_workers

    def train_here(self) -> Generator[Event, None, None]:
        """Train the stacks in this process, one after another; from one on that is too large, in a worker."""
        for number, stack in enumerate(list(self.stacks)):
            yield Event("1", number, StackBegan())
            last = workers.train_unfinished(stack, self.relay(number), self.trainer)
            yield Event("1", number, last)
            if isinstance(last, StackTooLarge):
                first = len(self.stacks) - 2
                yield from self.train_in_workers(1, [first, first + 1, *range(number + 1, first)])
                return

    def relay(self, number: int) -> workers.Relay:
        """Return the progress of a stack that is trained in this process."""
        return workers.Relay(lambda message: self.handle(Event("1", number, message)))

    def train_in_workers(self, count: int, waiting: Sequence[int] | None = None) -> Generator[Event, None, None]:
        """Train the stacks in this many worker processes. waiting: the indices of some stacks; None: all."""
        return self.in_workers([[run.settings for run in stack] for stack in self.stacks], count, waiting, self.cards)

    def handle(self, event: Event) -> None:
        """Show what a worker reports, and record how its runs have ended."""
        stack = self.stacks[event.stack]
        match event.message:
            case StackBegan():
                self.view.begin(event.worker, line_of(stack))
            case TaskBegan(stage, steps):
                self.view.begin_task(event.worker, stage, steps)
            case Advanced(steps):
                self.view.advance(event.worker, steps)
            case StackEnded(results):
                self.end_stack(event.worker, stack, results)
            case StackTooLarge():
                self.stacks += workers.halves(stack)
                told = f"{len(stack)} runs at once, which go on as two stacks in another process"
                self.view.say(f"clrun: the device's memory does not suffice for {told}.")
            case WorkerDied(cause):
                reason = f"Killed: {cause}"
                for run in stack:  # which also removes what the worker has left of one that has ended
                    write_reason_for(run, reason)
                self.end_stack(event.worker, stack, [RunResult(RunStatus.CRASHED, reason)] * len(stack))

    def end_stack(self, worker: str, stack: Sequence["Prepared"], results: Sequence[RunResult]) -> None:
        """Record and show how the runs of a stack have ended."""
        lines = []
        for run, result in zip(stack, results, strict=True):
            status, reason = after_crash(run, result) if result.status == RunStatus.CRASHED else result
            if status in (RunStatus.HELD, RunStatus.TAKEN_OVER):
                self.held.append(run)
                continue
            if reason is not None:
                self.errors[run.id] = reason
                if not (run.directory / "failed.txt").is_file():  # it crashed before its training began
                    write_reason_for(run, reason)
            why = "" if reason is None else f": {reason}"
            lines.append(f"{run.settings['strategy']}/{run.directory.name}: {status}{why}")
        self.view.ended(worker, lines)


def after_crash(run: "Prepared", crash: RunResult) -> RunResult:
    """Return how a run has ended whose stack has crashed. It may have ended before, as where a worker is killed after
    it has written summary.csv; or another process may hold it. Of such a run there is no failed.txt."""
    if ended_all_the_same(run):
        with suppress(UnreadableFile):  # of which nothing better is known than the crash
            return RunResult(RunStatus(run_files.summary_of(run.directory)["status"]))
    elsewhere = not (run.directory / "failed.txt").is_file() and locks.holder(run.directory) is not None
    return RunResult(RunStatus.HELD) if elsewhere else crash


def ended_all_the_same(run: "Prepared") -> bool:
    """Return whether a run of which a crash was told has ended, in whichever process."""
    return not run.needs_training and not (run.directory / "failed.txt").is_file()


def line_of(stack: Sequence["Prepared"]) -> Line:
    """Return the line of the live view for a stack, such as 'ewc lambda=100 seed=0'."""
    from clrun.runs.build import largest_batch
    from clrun.runs.train import name_of  # torch

    samples_per_step = len(stack) * largest_batch(stack[0].settings)
    return Line(name_of(stack), len(stack[0].stream.train), samples_per_step)
