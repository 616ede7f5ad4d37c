"""Sweeps: what is composed, and what is trained together."""

import io
import os
import tracemalloc
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import MadeUpCards
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf
from processes import SHORT
from rich.console import Console

from clrun.config import catalog, composition
from clrun.runs import prepare, train
from clrun.runs.memory import memory_need
from clrun.sweep import execution, plan, workers
from clrun.sweep.messages import Event, StackBegan, StackEnded, StackTooLarge
from clrun.system.paths import CONF
from clrun.terminal.progress import View

pytestmark = pytest.mark.usefixtures("empty_folder")

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
