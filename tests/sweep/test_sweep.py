"""Sweeps: what is composed, what is trained together, in how many processes, and what a death costs."""

import io
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import active_children, get_all_start_methods
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import MadeUpCards, hold
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from rich.console import Console

from clrun.config import catalog, composition
from clrun.results import run_files
from clrun.results.columns import COSTS
from clrun.runs import prepare, train
from clrun.runs.memory import memory_need
from clrun.sweep import execution, plan, summary, workers
from clrun.sweep.messages import Advanced, Event, StackBegan, StackEnded, StackTooLarge, TaskBegan
from clrun.system.paths import CONF
from clrun.terminal.console import make_console
from clrun.terminal.progress import Line, TerminalProgress, View, clock

SHORT = ("iterations=4", "model.widths=[8]", "device=cpu")
pytestmark = pytest.mark.usefixtures("empty_folder")
NAMES = (
    "accuracy_matrix.csv", "forgetting.csv", "accuracy.csv", "confusion.csv", "confusion_over_tasks.csv", "health.csv",
)  # fmt: skip


def tables(outputs: str) -> dict[str, bytes]:
    """name of the run's directory / name of the table -> its bytes."""
    paths = [path for path in Path(outputs).glob("runs/*/*/*.csv") if path.name in NAMES]
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in paths}


# ---------------------------------------------------------------- composition

JOBS = [
    ("strategy=ewc", "lambda=1", "seed=3"),
    ("strategy=ewc", "lambda=1e3", "seed=3"),
    ("strategy=lwf", "model=cnn", "model.widths=[3,4]", "optimizer.momentum=0.5", "optimizer=sgd"),
    ("split.classes=[[0,1],[2,3]]", "data_dir='a b'", "lambda=null"),
    ("+experiment=cats_dogs_deer", "seed=1"),
    ("lr=${lambda}", "lambda=3"),
    (r"lr=$\{lambda\}", "lambda=3"),  # as Hydra's sweeper hands it on
    ("model=module", "model.args={a:1}", "seed=2"),
    ("+experiment=cats_dogs_deer", "seed=1", "dataset.pad=2"),
    (),
]


def test_composing_many_jobs_is_hydras():
    ConfigStore.instance().store(name="knobs", node=catalog.read().nulls())
    composed_by_hydra = []

    def by_hydra(overrides):
        composed_by_hydra.append(tuple(overrides))
        return compose("config", overrides=list(overrides), return_hydra_config=True)

    composer = composition.Composer(by_hydra)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for job in JOBS:
            expected = OmegaConf.to_container(compose("config", overrides=list(job)))
            composed = composer(job)
            assert isinstance(composed, DictConfig) or "$" not in str(job), "a value that refers to another needs one"
            found = OmegaConf.to_container(OmegaConf.create(composed))
            assert {key: value for key, value in found.items() if key != "hydra"} == expected
        assert composed_by_hydra.count(("strategy=ewc",)) == 1
        assert not any("seed=3" in job for job in composed_by_hydra)
        assert composer.options(JOBS[0]) is composer.options(JOBS[1])
        composer(JOBS[3])["split"]["classes"].append(7)  # what was typed is the caller's own
        assert composer(JOBS[3])["split"]["classes"] == [[0, 1], [2, 3]]
        with pytest.raises(ConfigCompositionException, match="no_such_key"):
            composer(("no_such_key=1",))


@pytest.mark.slow
def test_jobs_are_not_kept(clrun):
    """A job of a sweep needs some kilobytes: its settings, not its configuration."""
    tracemalloc.start()
    try:
        assert clrun("-m", "--check", "seed=range(10)")[0] == 0
        before = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        assert clrun("-m", "--check", "seed=range(310)")[0] == 0
        assert tracemalloc.get_traced_memory()[1] - before < 300 * 40_000
    finally:
        tracemalloc.stop()


# ---------------------------------------------------------------- what is trained together

APART = {
    "another strategy": ("strategy=finetune",),
    "a static choice": ("strategy=ewc", "fisher=empirical"),
    "another network": ("strategy=ewc", "model.widths=[9]"),
    "another budget": ("strategy=ewc", "iterations=5"),
    "other tasks": ("strategy=ewc", "tasks=2"),
    "another scenario": ("strategy=ewc", "scenario=domain"),
    "other data": ("strategy=ewc", "dataset.normalize=false"),
    "another optimizer": ("strategy=ewc", "optimizer=sgd"),
}


def test_runs_that_differ_in_values_are_a_group(prepared_of):
    same = [("seed=1",), ("lambda=3",), ("lr=0.01", "seed=2"), ("split.order=seed",), ("workers=3", "stack=2")]
    runs = [prepared_of(*SHORT, "strategy=ewc", *own) for own in same]
    assert plan.stackable(runs) == [runs]


@pytest.mark.parametrize("what", APART)
def test_runs_that_differ_otherwise_are_not(prepared_of, what):
    one, other = prepared_of(*SHORT, "strategy=ewc"), prepared_of(*SHORT, *APART[what])
    assert plan.stackable([one, other, one]) == [[one, one], [other]]


def test_runs_that_are_evaluated_by_one_clock_have_tasks_of_one_length(prepared_of):
    drawn = [prepared_of(*SHORT, "split.order=seed", f"seed={seed}", "evaluate_every=2") for seed in (0, 1)]
    fixed = [prepared_of(*SHORT, "split.order=fixed", f"seed={seed}", "evaluate_every=2") for seed in (0, 1)]
    assert plan.stackable(drawn) == [drawn[:1], drawn[1:]] and plan.stackable(fixed) == [fixed]


@pytest.mark.parametrize(
    "typed", [("model.norm=batch",), ("model.norm=batch", "drop_last=true"), ("model.norm=group",)]
)
def test_a_network_with_batch_norm_is_stacked_like_any_other(prepared_of, typed):
    run = prepared_of("model=resnet18", "model.width=3", "batch_size=8", "stack=3", "tasks=2", *typed)
    assert plan.stack_size([run] * 5, 5) == 3


@pytest.mark.parametrize("n, largest, sizes", [(7, 3, [2, 2, 3]), (4, 4, [4]), (3, 1, [1, 1, 1]), (5, 8, [5])])
def test_stacks_are_as_equal_as_can_be(n, largest, sizes):
    pieces = plan.cut(list(range(n)), largest)
    assert [len(piece) for piece in pieces] == sizes and [one for piece in pieces for one in piece] == list(range(n))


def test_how_many_are_trained_at_once(prepared_of):
    def planned(*typed, device="cpu"):
        runs = [prepared_of(*SHORT, f"seed={seed}", *typed) for seed in range(6)]
        stacks = plan.stacks(runs, lambda _: device, cards)
        return [len(stack) for stack in stacks], plan.processes(stacks, lambda _: device, 4, cards)

    cards = MadeUpCards(10**12)

    assert planned() == ([1] * 6, 4)
    assert planned("threads=2") == ([1] * 6, 2)
    assert planned("workers=9") == ([1] * 6, 6)
    assert planned("stack=4") == ([3, 3], 2)
    assert planned(device="cuda") == ([6], 1)
    assert planned("stack=off", device="cuda") == ([1] * 6, 1)
    assert plan.processes([]) == 0


def test_a_stack_fills_the_card_and_no_more(prepared_of):
    runs = [prepared_of(*SHORT, "strategy=ewc", f"seed={seed}") for seed in range(6)]
    need, on_cuda = memory_need(runs[0]), lambda _: "cuda"

    def sizes(*free: int) -> list[int]:
        return [len(stack) for stack in plan.stacks(runs, on_cuda, MadeUpCards(*free))]

    room = int(need.of(3) / plan.FILLED) + 100
    assert sizes(room) == [3, 3] and sizes(1000) == [1] * 6 and sizes(10**12) == [6]
    assert sizes(10**12, 10**12) == [3, 3] and sizes(10**12, 1000) == [1] * 6 and sizes(*[10**12] * 4) == [2, 2, 2]


def test_every_card_has_a_worker_and_workers_of_one_card_divide_its_memory(prepared_of):
    def planned(cards, *typed):
        runs = [prepared_of(*SHORT[:-1], "device=cpu", f"seed={seed}", *typed) for seed in range(8)]
        runs = [replace(run, settings=replace(run.settings, values=run.settings.values | on)) for run in runs]
        stacks = plan.stacks(runs, lambda _: "cuda", cards)
        count = plan.processes(stacks, lambda _: "cuda", 4, cards)
        return [len(stack) for stack in stacks], count, plan.worker_cards(stacks, lambda _: "cuda", cards)

    on = {"device": "cuda"}
    room = int(memory_need(prepared_of(*SHORT)).of(4) / plan.FILLED) + 100
    assert planned(MadeUpCards(10**12, 10**12)) == ([4, 4], 2, [0, 1])
    assert planned(MadeUpCards(10**12)) == ([8], 1, [])
    assert planned(MadeUpCards(room, room), "workers=2")[0] == [4, 4]
    assert max(planned(MadeUpCards(room, room), "workers=4")[0]) < 2 + 1
    on = {"device": "cuda:1"}
    assert planned(MadeUpCards(1000, 10**12)) == ([8], 1, [])


def silent() -> workers.Relay:
    return workers.Relay(lambda message: None)


def while_recording(error: Exception) -> Exception:
    """The error with which PyTorch ends the recording of a graph in which this one was raised."""
    ended = torch.AcceleratorError("CUDA error: operation failed due to a previous error during capture")
    ended.__context__ = error
    return ended


OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
NO_MEMORY = {
    "of a step": OUT_OF_MEMORY,
    "of a recording": while_recording(OUT_OF_MEMORY),
    "of a launch": torch.AcceleratorError("CUDA error: out of memory"),
    "of a library": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
}


class SmallMemory:
    """Trains stacks of at most two runs, and notes what it was asked for."""

    def __init__(self, error: Exception = OUT_OF_MEMORY) -> None:
        self.error, self.tried = error, []

    def __call__(self, runs, progress):
        self.tried.append(len(runs))
        if len(runs) > 2:
            raise self.error
        return train.train_stack(runs, progress)


@pytest.mark.parametrize("error", NO_MEMORY.values(), ids=NO_MEMORY)
def test_a_stack_that_runs_out_of_memory_is_too_large(prepared_of, error):
    runs = [prepared_of(*SHORT, f"seed={seed}") for seed in range(3)]
    assert workers.train_unfinished(runs, silent(), SmallMemory(error)) == StackTooLarge()


def test_a_stack_that_fails_for_another_reason_is_not(prepared_of):
    runs = [prepared_of(*SHORT, f"seed={seed}") for seed in range(3)]
    trainer = SmallMemory(while_recording(ValueError("unlucky")))
    ended = workers.train_unfinished(runs, silent(), trainer)
    assert [one.status for one in ended.results] == ["crashed"] * 3 and trainer.tried == [3]


def test_a_stack_that_is_too_large_goes_on_as_halves_in_another_process(prepared_of):
    """And so do the stacks after it: a process in which a recording has failed trains nothing more."""
    typed = (*SHORT, "tasks=1", "plots=false")
    stacks = [
        [prepared_of(*typed, f"seed={10 * place + seed}") for seed in range(n)] for place, n in enumerate((1, 3, 1))
    ]
    here, told = SmallMemory(), []

    def in_workers(settings, count, waiting, cards):
        told.append((count, [len(settings[number]) for number in waiting]))
        pool = [([prepare.prepare(one) for one in settings[number]], number) for number in waiting]
        for runs, number in pool:
            yield Event("1", number, StackBegan())
            yield Event("1", number, workers.train_unfinished(runs, silent()))

    with View(Console(file=io.StringIO()), runs=5) as view:
        sweep = execution.Sweep(list(stacks), view, {}, trainer=here, in_workers=in_workers)
        for event in sweep.train_here():
            sweep.handle(event)
        assert "does not suffice for 3 runs at once" in view.console.file.getvalue()
    assert here.tried == [1, 3] and told == [(1, [1, 2, 1])] and view.done == 5 and not sweep.errors
    assert all(run.finished for stack in stacks for run in stack)
    assert not list(Path(stacks[0][0].directory).parent.rglob("failed.txt"))


def test_the_halves_of_a_stack_are_given_to_a_new_worker():
    started = []

    class Fake(SimpleNamespace):
        def __init__(self, name, card):
            super().__init__(name=name, card=card, stack=None, given=[], pipe=object(), await_end=lambda: None)
            started.append(self)

        def assign(self, number, stack):
            self.stack = number
            self.given.append(stack)

    pool = workers.WorkerPool([list("abcde"), list("f")], 1, cards=[1, 0], start=Fake)
    events = [*pool.assign_next(started[0]), *pool.handle(started[0], StackTooLarge())]
    first, second = started
    assert first.given == [list("abcde")] and second.given == [list("ab")]
    assert first.name == second.name == "1" and first.card == second.card == 1
    assert [event.message for event in events] == [StackBegan(), StackTooLarge(), StackBegan()]
    list(pool.handle(second, StackEnded([])))
    list(pool.handle(second, StackEnded([])))
    assert second.given == [list("ab"), list("cde"), list("f")] and pool.workers == [second]


GREEDY = """
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from clrun.strategies.finetune import Finetune


@dataclass(frozen=True)
class Greedy(Finetune):
    def after_phase(self, phase, theta, state, hp, pool):
        runs = len(torch.func.debug_unwrap(theta)) if torch._C._functorch.is_batchedtensor(theta) else 1
        with Path("tried").open("a") as tried:
            tried.write(f"{os.getpid()} {runs}\\n")
        if runs > 2:
            try:
                raise torch.OutOfMemoryError("CUDA out of memory")
            finally:
                raise torch.AcceleratorError("CUDA error: operation failed due to a previous error during capture")
        return theta, state
"""


@pytest.mark.slow  # starts two processes
def test_each_process_tries_one_stack_that_is_too_large(clrun):
    Path("my/strategy").mkdir(parents=True)
    stated = "{name: greedy, about: a greedy one, _target_: greedy_of_the_user.Greedy, knobs: {}}"
    Path("my/strategy/greedy.yaml").write_text(stated)
    Path("greedy_of_the_user.py").write_text(GREEDY)
    typed = ("-m", "strategy=greedy", "seed=range(5)", *SHORT, "tasks=1", "stack=5", "workers=1", "plots=false")
    code, out, err = clrun("--config-dir", "my", *typed)
    assert code == 0 and out.count(": done\n") == 5 and "Traceback" not in err
    tried = [line.split() for line in Path("tried").read_text().splitlines()]
    assert [int(runs) for _, runs in tried] == [5, 2, 3, 1, 2]
    pids = [pid for pid, _ in tried]
    assert pids[0] == str(os.getpid()) and pids[1] == pids[2] and pids[3] == pids[4] and len(set(pids)) == 3


def test_a_run_that_does_not_fit_alone_has_failed(clrun, faulty):
    """It is said what can be done, and nothing that was learnt is lost."""
    typed = faulty("raise __import__('torch').OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.')")
    code, _, err = clrun(*typed, *SHORT, "tasks=2")
    assert code == 1 and "Traceback" not in err and len(list(Path("outputs").rglob("failed.txt"))) == 1
    assert "memory does not suffice for this run (CUDA out of memory. Tried to allocate 2.00 GiB)" in err
    assert "device=cpu" in err and "batch_size below 32" in err
    code, _, err = clrun("-m", *typed, *SHORT, "tasks=2", "seed=1,2", "workers=1")
    assert code == 1 and err.count("memory does not suffice for this run") == 2 and "Traceback" not in err


def test_what_another_process_has_finished_is_not_trained_again(prepared_of):
    runs = [prepared_of(*SHORT, f"seed={seed}") for seed in range(3)]
    train.train_run(runs[1], quiet=True)
    before = (runs[1].directory / "summary.csv").stat().st_mtime_ns
    ended = workers.train_unfinished(runs, silent())
    assert [one.status for one in ended.results] == ["done", "done by another process", "done"]
    assert (runs[1].directory / "summary.csv").stat().st_mtime_ns == before


def test_what_another_process_is_training_is_looked_at_again(prepared_of, neighbour, capsys):
    """Seed 0 is held by a process that finishes it, seed 1 by one that dies, while seed 2 is trained."""
    runs = [prepared_of(*SHORT, f"seed={seed}", "workers=1") for seed in range(3)]
    for run in runs[:2]:
        hold(run.directory, neighbour)
    waits = []

    def another_ends(seconds):
        waits.append(seconds)
        assert runs[2].finished
        if len(waits) == 2:
            shutil.rmtree(runs[0].directory)
            line = [
                sys.executable,
                "-m",
                "clrun.commands.run",
                "seed=0",
                *SHORT,
                f"outputs={runs[0].settings['outputs']}",
            ]
            assert subprocess.call(line) == 0 and runs[0].finished
            neighbour.kill()
            neighbour.wait()

    assert execution.train_sweep(runs, sleep=another_ends) == {} and waits == [execution.POLL_SECONDS] * 2
    ends = re.findall(r"^\[\d/3\] ewc/\S+-seed=(\d)-\S+: (.*)$", capsys.readouterr().out, re.M)
    assert ends[0] == ("2", "done")
    assert sorted(ends[1:]) == [("0", "done by another process"), ("1", "done")]


# ---------------------------------------------------------------- worker processes


def test_workers_write_what_single_runs_write(clrun):
    typed = ("-m", "strategy=finetune,ewc", "seed=0,1", *SHORT)
    code, out, _ = clrun(*typed, "workers=2", "outputs=parallel")
    assert code == 0 and sorted(re.findall(r"^\[(\d)/4\] \S+: done$", out, re.M)) == list("1234")
    assert active_children() == []
    for strategy in ("finetune", "ewc"):
        for seed in (0, 1):
            assert clrun(f"strategy={strategy}", f"seed={seed}", *SHORT, "outputs=alone")[0] == 0
    assert len(tables("alone")) == 4 * len(NAMES) and tables("parallel") == tables("alone")
    assert clrun("-m", "seed=1,0", "strategy=ewc,finetune", *SHORT, "workers=1", "outputs=backwards")[0] == 0
    assert tables("backwards") == tables("alone")


def test_a_forced_stack_writes_the_accuracies_of_single_runs(clrun):
    typed = ("-m", "strategy=ewc", "lambda=1,50", "seed=0,1", *SHORT, "workers=1")
    assert clrun(*typed, "stack=4", "outputs=stacked")[0] == 0
    assert clrun(*typed, "outputs=alone")[0] == 0
    stacked, alone = tables("stacked"), tables("alone")
    matrices = [name for name in alone if name.endswith(("accuracy_matrix.csv", "confusion.csv"))]
    assert len(matrices) == 8 and [stacked[name] for name in matrices] == [alone[name] for name in matrices]


class Deadly(View):
    """A live view that kills the worker which is given seed 1."""

    def begin(self, worker, line):
        super().begin(worker, line)
        if line.name.endswith("seed=1"):
            os.kill(next(child.pid for child in active_children() if child.name == worker), signal.SIGKILL)


def test_a_worker_that_is_killed_loses_its_group_alone(prepared_of, clrun, tmp_path):
    runs = [prepared_of(*SHORT, f"seed={seed}", "workers=2") for seed in range(4)]
    errors = execution.train_sweep(runs, Deadly(Console(), len(runs)))
    (failed,) = tmp_path.rglob("failed.txt")
    told = summary.failures([run for run in runs if run.id in errors], errors, len(runs))
    assert "1 of 4 runs crashed" in told and "killed by SIGKILL" in told and str(failed) in told
    assert "seed=1-" in failed.parent.name and "SIGKILL" in failed.read_text()
    assert len(list(tmp_path.rglob("summary.csv"))) == 3 and active_children() == []
    code, out, _ = clrun("-m", "seed=0,1,2,3", *SHORT, "workers=2", f"outputs={tmp_path}")
    assert code == 0 and "1 to train, 3 done already" in out and not list(tmp_path.rglob("failed.txt"))


def test_data_that_vanish_under_a_sweep(prepared_of, tmp_path):
    """Between the sweep's look at them and the worker's."""
    for part, name in itertools.product(("train", "test"), "ab"):
        Path("pictures", part, name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(f"pictures/{part}/{name}/1.png")
    options = ("dataset=image_folder", "dataset.root=pictures", "dataset.size=8", "tasks=1", *SHORT, "workers=2")
    runs = [prepared_of(*options, f"seed={seed}") for seed in range(2)]
    shutil.rmtree("pictures")
    errors = execution.train_sweep(runs)
    told = summary.failures(runs, errors, len(runs))
    assert errors.keys() == {run.id for run in runs} and "2 of 2 runs crashed" in told and "Traceback" not in told
    assert told.count("dataset.root=pictures does not exist") == 2
    assert len(list(tmp_path.rglob("failed.txt"))) == 2 and active_children() == []


def test_interrupted_while_it_waits_for_workers_it_kills_them():
    """A second Ctrl-C."""
    told = []

    class Saving:
        def __init__(self, name):
            self.process = SimpleNamespace(is_alive=lambda: True, kill=lambda: told.append(f"kill {name}"))
            self.name = name

        def stop(self):
            told.append(f"stop {self.name}")

        def await_end(self):
            raise KeyboardInterrupt

    pool = workers.WorkerPool([], 0)
    pool.workers = [Saving("1"), Saving("2")]
    with pytest.raises(KeyboardInterrupt):
        pool.end()
    assert told == ["stop 1", "stop 2", "kill 1", "kill 2"]


@pytest.mark.slow  # minutes on a busy machine, and asks for a block of steps before the signal
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_to_every_process_and_again_saves_every_run(number, code):
    """As a cluster sends it to all processes of a job, and a terminal when it goes: nothing breaks off the saving."""
    line = [sys.executable, "-m", "clrun.commands.run", "-m", "seed=range(4)", "epochs=3000", "device=cpu", "workers=2"]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    heard = lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL)  # noqa: E731 (also where these tests run under nohup)
    with ended(subprocess.Popen(line, **pipes, start_new_session=True, preexec_fn=heard)) as process:
        began = time.monotonic()
        assert until(lambda: len(list(Path("outputs").rglob("accuracy_matrix.csv"))) == 2)
        time.sleep(2 + (time.monotonic() - began) / 2)  # for a block of steps, however slow the machine is
        for _ in range(3):
            os.killpg(process.pid, number)
            time.sleep(0.01)
        _, told = process.communicate(timeout=240)
    assert process.returncode == code and "Traceback" not in told
    assert told.count("saved after task 0 and ") == 2
    assert len(list(Path("outputs").rglob("checkpoint.safetensors"))) == 2
    assert not list(Path("outputs").rglob("*.tmp")) and not list(Path("outputs").rglob("lock.json"))


def children(pid: int) -> list[int]:
    """Living processes that this one has started, and those that they have."""
    found = subprocess.run(["ps", "-o", "pid=,stat=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    own = [int(line.split()[0]) for line in found.stdout.splitlines() if not line.split()[1].startswith("Z")]
    return own + [other for one in own for other in children(one)]


def living(pids: list[int]) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=,stat=", *map(str, pids)], capture_output=True, text=True, check=False)
    return [int(line.split()[0]) for line in found.stdout.splitlines() if not line.split()[1].startswith("Z")]


@contextmanager
def ended(process: subprocess.Popen) -> Iterator[subprocess.Popen]:
    """A process that does not outlive its test, also where that fails."""
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def until(condition, seconds: float = 240.0) -> bool:
    """Whether the condition came true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


@pytest.mark.parametrize(
    "number, code",
    [
        (signal.SIGINT, 130),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in ((signal.SIGTERM, 143), (signal.SIGKILL, -9))),
    ],
)
def test_no_worker_outlives_its_sweep(number, code):
    line = [sys.executable, "-m", "clrun.commands.run", "-m", "seed=range(4)", "epochs=2000", "device=cpu", "workers=2"]
    with ended(subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)) as process:
        assert until(lambda: len(list(Path("outputs").rglob("config.yaml"))) == 2)
        started = children(process.pid)
        assert len(started) >= 3  # two workers and what started them
        process.send_signal(number)
        _, told = process.communicate(timeout=60)
    assert process.returncode == code and until(lambda: not living(started)) and "Traceback" not in told
    assert not list(Path("outputs").rglob("*.tmp")) or number == signal.SIGKILL


# ---------------------------------------------------------------- killed, widened, doubled


def started(*arguments: str) -> subprocess.Popen:
    line = [sys.executable, "-m", "clrun.commands.run", *arguments, "device=cpu"]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(outputs: str) -> dict[Path, int]:
    """Every file of the finished runs -> when it was changed."""
    ended = [path.parent for path in Path(outputs).glob("runs/*/*/summary.csv")]
    return {path: path.stat().st_mtime_ns for directory in ended for path in directory.iterdir()}


def seeds_in(said: str, words: str) -> list[int]:
    """Of the runs of which something is said."""
    return sorted(int(seed) for seed in re.findall(rf"seed=(\d+)-\w+{words}", said))


def comparable(outputs: str) -> dict[str, bytes]:
    """All tables of all runs but costs.csv; summary.csv without what says how long it took and where."""
    found = {}
    for path in sorted(set(Path(outputs).glob("runs/*/*/*.csv")) - set(Path(outputs).glob("runs/*/*/costs.csv"))):
        table = path.read_bytes()
        if path.name == "summary.csv":
            own = {*COSTS, "outputs", "workers", "stack", "checkpoint_every"}
            table = run_files.read_summary(path).drop(columns=list(own), errors="ignore").to_csv().encode()
        found[f"{path.parent.name}/{path.name}"] = table
    return found


@pytest.mark.slow  # twenty seconds; workers that are killed one by one, and runs that are, are in the quick suite
def test_a_sweep_killed_in_the_middle_is_finished_by_the_same_command(clrun):
    """SIGKILL of the parent and of all workers: what was done is not touched, what was begun goes on."""
    typed = ("-m", "strategy=ewc", "seed=range(6)", "epochs=12", "validation=0.1", "evaluate_every=20", "workers=2")
    with started(*typed, "checkpoint_every=0.01", "outputs=killed") as process:
        assert until(lambda: len(list(Path("killed").glob("runs/*/*/summary.csv"))) == 2)
        assert until(lambda: len(list(Path("killed").glob("runs/*/*/checkpoint.safetensors"))) >= 1)
        everybody = [process.pid, *children(process.pid)]
        for pid in everybody:
            os.kill(pid, signal.SIGSTOP)  # so that none sees another's death
        for pid in everybody:
            os.kill(pid, signal.SIGKILL)
    before = finished("killed")
    done = seeds_in(" ".join(path.parent.name + ":" for path in before if path.name == "summary.csv"), ":")
    begun = seeds_in(" ".join(path.parent.name + ":" for path in Path("killed").glob("runs/*/*/checkpoint.*")), ":")
    begun = [seed for seed in begun if seed not in done]  # killed between its summary and its checkpoint's removal
    assert 2 <= len(done) < 6 and begun
    again = started(*typed, "outputs=killed")
    out, err = again.communicate(timeout=300)
    assert again.returncode == 0
    assert f"6 runs: {6 - len(done)} to train, {len(done)} done already." in out
    assert seeds_in(err, " continues after") == begun
    assert seeds_in(out, ": done") == [seed for seed in range(6) if seed not in done]
    assert finished("killed").items() >= before.items()
    assert not [path for path in Path("killed").rglob("*.tmp") if path not in before]
    assert clrun(*typed, "outputs=whole", "device=cpu")[0] == 0
    assert len(comparable("whole")) == 6 * 11 and comparable("killed") == comparable("whole")


def test_two_sweeps_at_once_train_each_run_once():
    """Both want seeds 2 to 5; no run is trained twice, no file is torn, and neither waits for ever."""
    common = ("-m", "strategy=ewc", "epochs=4", "workers=2", "outputs=shared")
    both = [started(*common, f"seed=range({first},{first + 6})") for first in (0, 2)]
    said = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    trained = [seed for out, _ in said for seed in seeds_in(out, r": done\n")]
    assert sorted(trained) == list(range(8))
    shown = [re.findall(r"^ +ewc +\d .* done *$", out, re.M) for out, _ in said]
    assert list(map(len, shown)) == [6, 6]  # each shows all of its own
    assert len(run_files.read_summary(Path("shared/results.csv"))) == 8
    assert not [path for path in Path("shared").rglob("*") if path.name.endswith(".tmp") or path.name == "lock.json"]


def report_imports(pipe):
    """Send which heavy modules a process has imported before it does anything; runs in a worker."""
    pipe.send([name for name in ("torch", "matplotlib", "clrun.runs.train") if name in sys.modules])


@pytest.mark.skipif("forkserver" not in get_all_start_methods(), reason="workers are forked from a server alone here")
def test_a_fresh_worker_has_imported_everything_already():
    context = workers.process_context()
    ours, theirs = context.Pipe()
    process = context.Process(target=report_imports, args=(theirs,))
    process.start()
    assert ours.poll(60) and ours.recv() == ["torch", "matplotlib", "clrun.runs.train"]
    process.join()


class CutOff(TerminalProgress):
    """A progress that ends training when a task begins."""

    def __init__(self, stage: int) -> None:
        super().__init__(make_console(quiet=True), 5)
        self.last = stage

    def begin_task(self, stage, steps):
        if stage == self.last:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_a_widened_sweep_is_regrouped_by_the_tasks_that_remain(clrun, settings_of):
    """Stacks of four; a run is finished, two are after task 1, one is after task 3, five are new."""
    typed = ("-m", "strategy=ewc", *SHORT, "workers=1", "stack=4")
    runs = [prepare.prepare(settings_of(*typed[1:], f"seed={seed}")) for seed in range(9)]
    assert clrun(*typed, "seed=8")[0] == 0
    for stage, seeds in ((2, (0, 5)), (4, (3,))):
        with pytest.raises(KeyboardInterrupt):
            train.train_runs([runs[seed] for seed in seeds], progress=CutOff(stage))
    stacks = plan.stacks([run for run in runs if not run.finished])
    planned = [([run.settings["seed"] for run in stack], train.position_of(stack[0]).stage) for stack in stacks]
    code, out, err = clrun(*typed, "seed=range(9)")
    assert code == 0 and "8 to train, 1 done already" in out
    assert sorted(seed for seeds, _ in planned for seed in seeds) == list(range(8))
    assert seeds_in(out, ": done") == list(range(8))
    assert {stage: sorted(seeds) for seeds, stage in planned if stage} == {1: [0, 5], 3: [3]}
    assert [sorted(seeds) for seeds, stage in planned if stage == 0] == [[1, 2], [4, 6, 7]]
    trained = {run.settings["seed"]: run_files.summary_of(run.directory)["stack_size"] for run in runs[:8]}
    assert trained == {seed: len(seeds) for seeds, _ in planned for seed in seeds}
    assert seeds_in(err, r" continues after task 1 ") == [0, 5] and seeds_in(err, r" continues after task 3 ") == [3]
    assert clrun(*typed[:-1], "seed=range(9)", "outputs=alone")[0] == 0
    regrouped, alone = tables("outputs"), tables("alone")
    matrices = [name for name in alone if name.endswith(("accuracy_matrix.csv", "confusion.csv"))]
    assert len(matrices) == 18 and [regrouped[name] for name in matrices] == [alone[name] for name in matrices]


# ---------------------------------------------------------------- the live view


def test_a_line_says_what_a_worker_is_at():
    now = [100.0]
    line = Line("ewc", tasks=5, samples=32, now=lambda: now[0])
    assert line.cells() == ["ewc", "starting", "", "", ""]
    line.begin_task(1, 50)
    line.advance(50)
    now[0] += 10
    line.begin_task(2, 50)
    line.advance(20)
    line.advance(5)
    now[0] += 2
    # 12 s for 1.5 of 5 tasks leave 28 s; 25 steps of 32 samples in 2 s
    assert line.cells() == ["ewc", "2/5", "25/50", "400", "0:28"]


def test_on_a_terminal_finished_runs_stand_above_a_line_for_each_worker():
    console = Console(force_terminal=True, width=100, file=io.StringIO(), color_system=None)
    with View(console, runs=3) as view:
        view.begin("1", Line("ewc seed=0", 5, 32))
        view.begin("2", Line("ewc seed=1", 5, 32))
        view.begin_task("1", 4, 77)
        view.ended("2", ["ewc seed=1: done"])
        view.live.refresh()
    text = console.file.getvalue()
    assert text.index("[1/3] ewc seed=1: done") < text.rindex("4/5") < text.rindex("1 of 3 runs done")
    assert "0/77" in text


def test_a_long_name_gives_way_to_the_figures():
    now = [0.0]
    console = Console(force_terminal=True, width=80, file=io.StringIO(), color_system=None)
    with View(console, runs=3) as view:
        name = "ewc lambda=400 gamma=1 fisher=empirical fisher_samples=1000 seed=123456"
        view.begin("1", Line(name, 5, 32, now=lambda: now[0]))
        view.begin_task("1", 4, 77000)
        now[0] = 100.0
        view.advance("1", 60000)
        view.live.refresh()
    shown = [line.split() for line in console.file.getvalue().splitlines() if "60000/77000" in line][-1]
    assert shown[:2] == ["1", "ewc"] and "…" in " ".join(shown)
    assert shown[-4:] == ["4/5", "60000/77000", "19,200", "0:32"]


def test_in_a_pipe_there_are_plain_lines_alone():
    console = Console(width=60, file=io.StringIO())
    with View(console, runs=1) as view:
        view.begin("1", Line("ewc seed=0", 5, 32))
        view.advance("1", 4)
        view.ended("1", ["a name as long as this one is, which is not broken into two lines: done"])
    assert console.file.getvalue() == "[1/1] a name as long as this one is, which is not broken into two lines: done\n"


def test_a_relay_speaks_now_and_then():
    sent = []
    relay = workers.Relay(sent.append)
    with relay:
        relay.begin_task(1, 1000)
        for _ in range(1000):
            relay.advance(1)
        relay.end_task(1, [0.5])
    assert sent[0] == TaskBegan(1, 1000) and len(sent) < 100
    assert sum(message.steps for message in sent if isinstance(message, Advanced)) == 1000


@pytest.mark.parametrize("seconds, said", [(None, ""), (0.4, "0:00"), (75, "1:15"), (3725, "1:02:05")])
def test_clock(seconds, said):
    assert clock(seconds) == said
