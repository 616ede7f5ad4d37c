"""Runs trained in processes of their own, each worker taking one batch after another, so that start-up is paid once.

A batch is a list of runs that are trained as one stack; on a CPU mostly one run. A worker that is killed loses what it
has in its hands and nothing else: there is no queue that it could break, only a pipe between it and us.
"""

import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing import forkserver, get_all_start_methods, get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

from clrun.config.settings import Settings
from clrun.system import machine
from clrun.system.process import graceful_termination, relax_gc
from clrun.terminal.progress import Progress

if TYPE_CHECKING:
    from clrun.runs.prepared import Prepared


def warm_up_if_several(settings: Sequence[Settings]) -> None:
    """Let workers begin to import, while this process does, where it looks as if there will be some."""
    several = len({repr(one.values) for one in settings}) > 1 and machine.cores() > 1
    if several and settings[0]["workers"] != 1 and settings[0]["device"] != "cuda":
        warm_up()


PATIENCE = 20.0  # seconds that a worker is given to write a checkpoint and end


SECONDS_BETWEEN_WORDS = 0.2  # of a worker to us, while it trains


# (worker, batch, word); a word is ("began",), ("task", stage, steps), ("advance", steps), and last ("ended", [Ended])
# or ("killed", cause)
Said = tuple[str, int, tuple[Any, ...]]


class Ended(NamedTuple):
    """How a run ended: "done", "diverged", or "crashed" and why."""

    status: str
    reason: str | None = None


class Relay(Progress):
    """Tells how training goes, not to the terminal but to a function: ("task", stage, steps), ("advance", steps)."""

    def __init__(self, tell: Callable[[tuple[Any, ...]], None]) -> None:
        self.tell, self.steps, self.spoke = tell, 0, perf_counter()

    def __enter__(self) -> "Relay":
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def begin_task(self, stage: int, steps: int) -> None:
        self.steps = 0
        self.tell(("task", stage, steps))

    def advance(self, steps: int) -> None:
        self.steps += steps
        if perf_counter() - self.spoke >= SECONDS_BETWEEN_WORDS:
            self.tell(("advance", self.steps))
            self.steps, self.spoke = 0, perf_counter()

    def end_task(self, stage: int, accuracies: Sequence[float]) -> None:
        self.tell(("advance", self.steps))
        self.steps = 0


# ---------------------------------------------------------------- one batch


def attempt(runs: Sequence["Prepared"], progress: Progress) -> list[Ended]:
    """Train a batch; how each run ended. Where memory does not suffice for the stack, its halves one after the other.

    What another process has finished since the sweep began is not trained again.
    """
    todo = [one for one in runs if one.settings["rerun"] or not one.finished]
    ended = iter(train_or_halve(todo, progress)) if todo else iter(())
    return [next(ended) if one in todo else Ended("done by another process") for one in runs]


def train_or_halve(runs: Sequence["Prepared"], progress: Progress) -> list[Ended]:
    """Train a stack; how each run ended."""
    import torch

    from clrun.runs import train

    try:
        return [Ended(status) for status in train.train_stack(runs, progress=progress)]
    except Exception as error:  # any: it is reported at the end, and written to failed.txt by train_stack
        reason = f"{type(error).__name__}: {error}"
        halve = len(runs) > 1 and isinstance(error, torch.cuda.OutOfMemoryError)
    if not halve:
        return [Ended("crashed", reason)] * len(runs)
    torch.cuda.empty_cache()  # out here the error is gone, and with it the frames that held the tensors
    middle = len(runs) // 2
    return train_or_halve(runs[:middle], progress) + train_or_halve(runs[middle:], progress)


# ---------------------------------------------------------------- in a worker


def serve(pipe: Connection) -> None:
    """What a worker does: batch after batch, until it is ended or nobody is left to listen."""
    relax_gc()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; ours ends its workers
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as does a terminal's end
    with graceful_termination(), suppress(EOFError, BrokenPipeError):  # the process that started us is gone
        while True:
            pipe.send(("ended", prepare_and_attempt(pipe.recv(), Relay(pipe.send))))


def prepare_and_attempt(batch: Sequence[Settings], progress: Progress) -> list[Ended]:
    """As `attempt`; what could be prepared when the sweep began may be gone by now, such as the data."""
    from clrun.runs import prepare

    try:
        runs = [prepare.prepare(settings) for settings in batch]
    except Exception as error:  # any: it is reported at the end, like a crash
        return [Ended("crashed", f"{type(error).__name__}: {error}")] * len(batch)
    return attempt(runs, progress)


# ---------------------------------------------------------------- in the process that starts them


def context() -> BaseContext:
    """How workers are started: forked from a process that has imported everything and done nothing, where there is such
    a thing; that process is started once, so that torch is imported once for all workers."""
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    found = get_context("forkserver")
    found.set_forkserver_preload(["clrun.sweep.worker_imports"])
    return found


def warm_up() -> None:
    """Begin to import what workers need, in the background."""
    if context().get_start_method() == "forkserver":
        forkserver.ensure_running()


class Worker:
    """A process, and the batch that it has in its hands."""

    def __init__(self, name: str) -> None:
        method = context()
        self.name, self.batch = name, None
        self.pipe, theirs = method.Pipe()
        self.process = method.Process(target=serve, args=(theirs,), name=name, daemon=True)
        self.process.start()
        theirs.close()

    def take(self, number: int, batch: Sequence[Settings]) -> None:
        self.batch = number
        with suppress(BrokenPipeError):  # it was killed while it idled; the end of the pipe says so next
            self.pipe.send(list(batch))

    def hear(self) -> tuple[Any, ...]:
        """Its next word; ("killed", by what) if there will be none."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            return "killed", exit_reason(self.process.exitcode)

    def stop(self) -> None:
        """End it; what it has begun unwinds, an idle one has nothing to unwind."""
        self.process.kill() if self.batch is None else self.process.terminate()

    def gone(self) -> None:
        """Wait for its end, not for ever."""
        self.process.join(PATIENCE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.pipe.close()


def exit_reason(exitcode: int | None) -> str:
    """What to say of a worker that ended without a word."""
    if exitcode == -signal.SIGKILL:
        return "its process was killed by SIGKILL, as a system out of memory does; try fewer workers"
    if exitcode is not None and exitcode < 0:
        return f"its process was killed by {signal.Signals(-exitcode).name}"
    return f"its process ended with exit code {exitcode}"


class Pool:
    """Workers, and the batches that none of them has taken yet."""

    def __init__(self, batches: Sequence[Sequence[Settings]], count: int) -> None:
        self.batches, self.waiting = batches, deque(range(len(batches)))
        self.workers = [Worker(str(i)) for i in range(1, min(count, len(batches)) + 1)]

    def words(self) -> Iterator[Said]:
        """What the workers say, until all batches have ended."""
        for worker in self.workers:
            yield from self.begin(worker)
        while busy := {worker.pipe: worker for worker in self.workers if worker.batch is not None}:
            for pipe in wait(list(busy)):
                yield from self.heard(busy[pipe], busy[pipe].hear())

    def begin(self, worker: Worker) -> Iterator[Said]:
        """Give an idle worker the next batch, if there is one."""
        if self.waiting:
            number = self.waiting.popleft()
            worker.take(number, self.batches[number])
            yield worker.name, number, ("began",)

    def heard(self, worker: Worker, word: tuple[Any, ...]) -> Iterator[Said]:
        """Pass a word on; after a last word, go on to the next batch."""
        yield worker.name, worker.batch, word
        if word[0] in ("ended", "killed"):
            worker.batch = None
            yield from self.begin(self.successor(worker) if word[0] == "killed" else worker)

    def successor(self, dead: Worker) -> Worker:
        """A process in place of one that is dead, if there is work for it."""
        dead.gone()
        if not self.waiting:
            return dead
        self.workers[self.workers.index(dead)] = living = Worker(dead.name)
        return living

    def end(self) -> None:
        """No process is left behind. What is interrupted while it waits for them (a second Ctrl-C) kills them."""
        living = [worker for worker in self.workers if worker.process.is_alive()]
        try:
            for worker in living:
                worker.stop()
            for worker in living:
                worker.gone()
        except BaseException:
            for worker in living:
                worker.process.kill()
            raise


def work(batches: Sequence[Sequence[Settings]], count: int) -> Iterator[Said]:
    """Have batches trained by so many workers; to be closed, which ends them."""
    pool = Pool(batches, count)
    try:
        yield from pool.words()
    finally:
        pool.end()
