"""Runs trained in processes of their own, each worker training one stack after another, so that start-up is paid once.

A stack is a list of runs that are trained as one program; on a CPU it is mostly one run. A worker that is killed loses
only the stack that it is training: workers share no queue, each has a pipe to the process that started it.
"""

import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from functools import partial
from multiprocessing import forkserver, get_all_start_methods, get_context
from multiprocessing.connection import Connection, wait
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from clrun.config.settings import Settings
from clrun.results.outcome import RunStatus
from clrun.sweep.messages import (
    Advanced,
    Event,
    Message,
    RunResult,
    StackBegan,
    StackEnded,
    StackTooLarge,
    TaskBegan,
    WorkerDied,
)
from clrun.system import machine
from clrun.system.cards import CARDS, Cards
from clrun.system.environment import replace_environment, variable_set
from clrun.system.errors import RunsFailed
from clrun.system.garbage_collection import relax_gc
from clrun.system.output import lasting_output
from clrun.system.signals import graceful_termination, handled
from clrun.system.user_frames import described
from clrun.terminal.progress import Progress

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext

    from clrun.runs.prepared import Prepared
    from clrun.runs.train import StackTrainer

T = TypeVar("T")

SHUTDOWN_SECONDS = 20.0  # that a worker is given to write a checkpoint and end

MESSAGE_SECONDS = 0.2  # at least between two messages on the steps of a task


class Relay:
    """A `Progress` that sends messages: `TaskBegan` and `Advanced`, the latter at intervals of at least `seconds`."""

    def __init__(self, send: Callable[[Message], None], seconds: float = MESSAGE_SECONDS) -> None:
        self.send, self.seconds = send, seconds
        self.unsent, self.sent_at = 0, perf_counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass

    def begin_task(self, stage: int, steps: int) -> None:
        """Send that a task of this many steps begins."""
        self.unsent = 0
        self.send(TaskBegan(stage, steps))

    def advance(self, steps: int) -> None:
        """Count this many more steps, and send their number now and then."""
        self.unsent += steps
        if perf_counter() - self.sent_at >= self.seconds:
            self.send(Advanced(self.unsent))
            self.unsent, self.sent_at = 0, perf_counter()

    def end_task(self, stage: int, accuracies: Sequence[float]) -> None:
        """Send the steps that are not sent yet."""
        self.send(Advanced(self.unsent))
        self.unsent = 0


# ---------------------------------------------------------------- training a stack


def train_unfinished(
    stack: Sequence["Prepared"], progress: Progress, trainer: "StackTrainer | None" = None
) -> StackEnded | StackTooLarge:
    """Train those runs of a stack that no other process has finished meanwhile, and return how each run has ended, or
    that the device's memory does not suffice for several runs at once.

    Training more in this process is then not safe: where memory runs out while a graph is recorded, PyTorch does not
    leave the state in which it records.

    trainer: as of `clrun.runs.train.train_runs`.
    """
    todo = [run for run in stack if run.needs_training]
    trained = train_todo(todo, progress, trainer) if todo else []
    if trained is None:
        return StackTooLarge()
    results = dict(zip([run.id for run in todo], trained, strict=True))
    return StackEnded([results.get(run.id, RunResult(RunStatus.DONE_ELSEWHERE)) for run in stack])


def train_todo(
    runs: Sequence["Prepared"], progress: Progress, trainer: "StackTrainer | None", cards: Cards = CARDS
) -> list[RunResult] | None:
    """Train runs as one stack, and return how each has ended; None where memory does not suffice for several of them,
    after all of it was given back to the card."""
    from clrun.runs import train
    from clrun.runs.failures import out_of_memory

    try:
        return [RunResult(status) for status in train.train_runs(runs, progress=progress, trainer=trainer)]
    except RunsFailed as error:
        return [RunResult(RunStatus.CRASHED, str(error))] * len(runs)
    except Exception as error:  # any: the command reports it at its end, and train_runs has written failed.txt
        reason, too_large = described(error), len(runs) > 1 and out_of_memory(error)
    if not too_large:
        return [RunResult(RunStatus.CRASHED, reason)] * len(runs)
    cards.release()  # the error is gone here, and with it the frames that held the tensors
    return None


def halves(stack: Sequence[T]) -> list[Sequence[T]]:
    """Return a stack as two."""
    middle = len(stack) // 2
    return [stack[:middle], stack[middle:]]


# ---------------------------------------------------------------- in a worker


def serve(pipe: Connection, environment: Mapping[str, str], card: int | None = None, cards: Cards = CARDS) -> None:
    """Train the stacks that arrive through a pipe, until this worker is ended, the other end is closed, or a stack has
    run out of memory.

    environment: the variables of the process of the sweep; those of the server from which this worker is forked are of
    the time when the server was started, which may have been for an earlier sweep. card: the one that "cuda" means to
    this worker; None: as CUDA has it.
    """
    replace_environment(environment)
    if card is not None:
        cards.choose(card)
    relax_gc()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the sweep ends workers
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as does the closing of a terminal
    ended = suppress(EOFError, BrokenPipeError)
    with lasting_output(), graceful_termination(), ended:  # raised when the process of the sweep is gone
        last: Message | None = None
        while not isinstance(last, StackTooLarge):
            last = prepare_and_train(pipe.recv(), Relay(partial(send_or_end, pipe)))
            pipe.send(last)


def send_or_end(pipe: Connection, message: Message) -> None:
    """Send a message on a stack that is being trained. Raise SystemExit, which lets the training write checkpoints, if
    the process of the sweep is gone."""
    try:
        pipe.send(message)
    except BrokenPipeError:
        sys.exit(1)


def prepare_and_train(stack: Sequence[Settings], progress: Progress) -> StackEnded | StackTooLarge:
    """Prepare the runs of a stack and train them. What could be prepared when the sweep began, such as the data, may be
    gone by now: then all have crashed."""
    from clrun.runs import prepare

    try:
        runs = [prepare.prepare(settings) for settings in stack]
    except Exception as error:  # any: the command reports it at its end, like a crash
        return StackEnded([RunResult(RunStatus.CRASHED, described(error))] * len(stack))
    return train_unfinished(runs, progress)


# ---------------------------------------------------------------- starting processes


def process_context() -> "ForkServerContext | SpawnContext":
    """Return how workers are started: forked from a server process that has imported everything and done nothing, where
    the system has such a thing. It is started once, so that torch is imported once for all workers."""
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(["clrun.sweep.worker_imports"])
    return context


def warm_up() -> None:
    """Begin to import what workers need, in the background."""
    if process_context().get_start_method() == "forkserver":
        # Ctrl-C reaches the server, too, and would be a traceback while it imports
        with away_from_current_folder(), handled(signal.SIG_IGN, signal.SIGINT):
            forkserver.ensure_running()


def away_from_current_folder() -> AbstractContextManager[None]:
    """Set PYTHONSAFEPATH meanwhile: a Python that is started would search the current folder first, and import a file
    of the user's, such as random.py, in place of a module. (The server's workers get the path of this process.)"""
    return variable_set("PYTHONSAFEPATH", "1")


def warm_up_if_several(settings: Sequence[Settings]) -> None:
    """Begin to import what workers need where these runs are likely to be trained by several."""
    several = len({repr(run.values) for run in settings}) > 1 and machine.cores() > 1
    if several and settings[0]["workers"] != 1 and not settings[0]["device"].startswith("cuda:"):
        warm_up()


# ---------------------------------------------------------------- in the process of the sweep


class Worker:
    """A process that trains stacks, and the index of the stack that it is training. card: as of `serve`."""

    def __init__(self, name: str, card: int | None = None) -> None:
        context = process_context()
        self.name, self.card = name, card
        self.stack: int | None = None
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, dict(os.environ), card), name=name, daemon=True)
        warm_up()  # if it has not been started, or has ended
        with away_from_current_folder():  # where there is no server, a worker is started as it is
            self.process.start()
        theirs.close()

    def assign(self, number: int, stack: Sequence[Settings]) -> None:
        """Give an idle worker a stack."""
        self.stack = number
        with suppress(BrokenPipeError):  # it was killed while it was idle, which `receive` will report
            self.pipe.send(list(stack))

    def receive(self) -> Message:
        """Return its next message, WorkerDied if there will be none."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            return WorkerDied(exit_reason(self.process.exitcode))

    def stop(self) -> None:
        """Tell it to end: a worker that trains writes checkpoints first, an idle one has nothing to write."""
        if self.stack is None:
            self.process.kill()
        else:
            self.process.terminate()

    def await_end(self, seconds: float = SHUTDOWN_SECONDS) -> None:
        """Wait for its end, and kill it if it takes longer than this."""
        self.process.join(seconds)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.pipe.close()


def exit_reason(exitcode: int | None) -> str:
    """Return what to say of a worker that has ended without a message."""
    if exitcode == -signal.SIGKILL:
        return "its process was killed by SIGKILL, as a system out of memory does; try fewer workers"
    if exitcode is not None and exitcode < 0:
        return f"its process was killed by {signal.Signals(-exitcode).name}"
    return f"its process ended with exit code {exitcode}"


class WorkerPool:
    """Workers, and the indices of the stacks that are not assigned to one yet: all stacks, or those of `waiting`.

    cards: those that the workers take in turn; none: as CUDA has it. start: starts a worker of a name, such as "1",
    and a card.
    """

    def __init__(
        self,
        stacks: Sequence[Sequence[Settings]],
        count: int,
        waiting: Sequence[int] | None = None,
        cards: Sequence[int] = (),
        start: Callable[[str, int | None], Worker] = Worker,
    ) -> None:
        self.start = start
        self.stacks, self.waiting = list(stacks), deque(range(len(stacks)) if waiting is None else waiting)
        of_workers = [cards[i % len(cards)] if cards else None for i in range(min(count, len(self.waiting)))]
        self.workers = [start(str(i), card) for i, card in enumerate(of_workers, 1)]

    def events(self) -> Iterator[Event]:
        """Yield the messages of the workers, until all stacks have ended."""
        for worker in self.workers:
            yield from self.assign_next(worker)
        while busy := self.busy():
            for pipe in wait(list(busy)):
                yield from self.handle(busy[pipe], busy[pipe].receive())

    def busy(self) -> dict[Any, Worker]:
        """Return the workers that are training, by their pipes."""
        return {worker.pipe: worker for worker in self.workers if worker.stack is not None}

    def assign_next(self, worker: Worker) -> Iterator[Event]:
        """Give an idle worker the next stack, if there is one."""
        if self.waiting:
            number = self.waiting.popleft()
            worker.assign(number, self.stacks[number])
            yield Event(worker.name, number, StackBegan())

    def handle(self, worker: Worker, message: Message) -> Iterator[Event]:
        """Yield a message; after the last one on a stack, give the worker the next stack."""
        if worker.stack is not None:
            yield Event(worker.name, worker.stack, message)
        if worker.stack is not None and isinstance(message, StackTooLarge):
            first = len(self.stacks)
            self.stacks += halves(self.stacks[worker.stack])
            self.waiting.extendleft([first + 1, first])
        if isinstance(message, StackEnded | StackTooLarge | WorkerDied):
            worker.stack = None
            yield from self.assign_next(worker if isinstance(message, StackEnded) else self.successor(worker))

    def successor(self, dead: Worker) -> Worker:
        """Start a process in place of one that has ended, if there is work for it."""
        dead.await_end()
        if not self.waiting:
            return dead
        self.workers[self.workers.index(dead)] = worker = self.start(dead.name, dead.card)
        return worker

    def end(self) -> None:
        """End all processes. If this is interrupted while it waits for them (a second Ctrl-C), it kills them."""
        living = [worker for worker in self.workers if worker.process.is_alive()]
        try:
            for worker in living:
                worker.stop()
            for worker in living:
                worker.await_end()
        except BaseException:
            for worker in living:
                worker.process.kill()
            raise


def train_in_workers(
    stacks: Sequence[Sequence[Settings]],
    count: int,
    waiting: Sequence[int] | None = None,
    cards: Sequence[int] = (),
) -> Generator[Event, None, None]:
    """Have stacks trained by this many workers, and yield their messages; closing the generator ends the workers.

    waiting: the indices of the stacks to train, in this order; None: all of them. cards: as of `WorkerPool`.
    """
    pool = WorkerPool(stacks, count, waiting, cards)
    try:
        yield from pool.events()
    finally:
        pool.end()
