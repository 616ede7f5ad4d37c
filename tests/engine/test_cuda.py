"""What only a card can show: every strategy on CUDA as on the CPU, by graphs as without, alone as in a stack; equal
bytes; a run that is killed; memory that runs out. `pytest -m cuda --device cpu` rehearses what a CPU can."""

import inspect
from dataclasses import replace

import pandas as pd
import pytest
import torch
from conftest import SMALL, STRATEGIES
from interrupting import SHORT_BLOCKS, InterruptingProgress
from torch.utils._pytree import tree_leaves, tree_map

from clrun.engine.capture import CudaCapture
from clrun.runs.build import build
from clrun.runs.failures import out_of_memory
from clrun.runs.train import train_runs

pytestmark = pytest.mark.cuda
SEEDS = tuple(range(8))
CPU = torch.device("cpu")


@pytest.fixture
def stack_on(prepared_of):
    """stack_on(device, "strategy=er", seeds=[0, 1]) -> a stack there, whose steps are recorded where they can be."""

    def made(device, *typed, seeds=(0,), dtype=torch.float64):
        small = [size for text in typed for size in SMALL.get(text, ())]
        keys = {text.partition("=")[0] for text in typed}
        short = [text for text in ("tasks=2", "iterations=20", "model.widths=[24]") if text.split("=")[0] not in keys]
        runs = [prepared_of(*typed, *small, *short, f"seed={seed}") for seed in seeds]
        return replace(build(runs, dtype, device=device), use_graph=device.type == "cuda")

    return made


def learnt(stack, tasks=2):
    """The runs after two tasks, on the host, and the correct answers (R, T) after each."""
    state, correct = stack.initialize(), []
    for stage in range(tasks):
        state, report = stack.learn(state, stage)
        correct.append(report.correct)
    return tree_map(lambda v: v.cpu(), state), torch.stack(correct)


def distance(one, other):
    return max(
        (a.double() - b.double()).abs().max().item()
        for a, b in zip(tree_leaves(one), tree_leaves(other), strict=True)
        if a.numel()
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_as_on_the_cpu(stack_on, card, strategy):
    """The counts of right answers are of about 180 test samples a task."""
    (_, there), (_, here) = (learnt(stack_on(device, f"strategy={strategy}")) for device in (card, CPU))
    assert (there - here).abs().max() <= 2


@pytest.mark.parametrize("strategy", ["finetune", "joint"])
def test_weights_after_100_steps(stack_on, card, strategy):
    """In float32, as a run is trained."""
    typed = f"strategy={strategy}", "tasks=1", "iterations=100", "model.widths=[100,100]"
    (there, _), (here, _) = (learnt(stack_on(device, *typed, dtype=torch.float32), 1) for device in (card, CPU))
    torch.testing.assert_close(there.theta, here.theta, rtol=0, atol=1e-4)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_graphs_take_the_plain_steps(stack_on, card, strategy):
    graphed = stack_on(card, f"strategy={strategy}")
    (one, right), (other, same) = learnt(graphed), learnt(replace(graphed, use_graph=False))
    assert distance(one.theta, other.theta) < 1e-6
    assert torch.equal(right, same)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_eight_at_once_are_each_alone(stack_on, card, strategy):
    together, _ = learnt(stack_on(card, f"strategy={strategy}", seeds=SEEDS))
    for r in (0, 7):
        alone, _ = learnt(stack_on(card, f"strategy={strategy}", seeds=[SEEDS[r]]))
        torch.testing.assert_close(together.theta[r], alone.theta, rtol=0, atol=1e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_a_graph_reads_lives_as_long(stack_on, card, strategy):
    if card.type != "cuda":
        pytest.skip("only a card records graphs; tests/engine/test_emulated_graphs.py emulates them")
    if "check_input_liveness" not in inspect.signature(torch.cuda.graph).parameters:
        pytest.skip(f"PyTorch {torch.__version__} cannot check it; 2.13 can")
    learnt(replace(stack_on(card, f"strategy={strategy}"), capture=CudaCapture(card, check_inputs=True)))


TABLES = ("accuracy_matrix.csv", "health.csv")


def tables(run):
    """The tables of a run without what it took."""
    return [(run.directory / name).read_bytes() for name in TABLES]


@pytest.mark.parametrize("strategy", ["ewc", "er", "hat", "amn"])
def test_equal_bytes_where_they_are_asked_for(prepared_of, card, strategy):
    typed = f"strategy={strategy}", "tasks=2", "iterations=20", "deterministic=true", "plots=false", "rerun=true"
    found = []
    for _ in range(2):
        run = prepared_of(*typed, f"device={card.type}")
        train_runs([run], quiet=True)
        found.append(tables(run))
    assert found[0] == found[1]


def test_killed_and_resumed(prepared_of, settings_of, card, tmp_path):
    typed = "strategy=er", "tasks=2", "iterations=20", "deterministic=true", "plots=false", f"device={card.type}"
    whole = prepared_of(*typed, "rerun=true")
    train_runs([whole], quiet=True, trainer=SHORT_BLOCKS)
    expected = tables(whole)
    again = prepared_of(*typed, "rerun=true")
    with pytest.raises(KeyboardInterrupt):
        train_runs([again], quiet=True, progress=InterruptingProgress(4), trainer=SHORT_BLOCKS)
    assert (again.directory / "checkpoint.safetensors").exists()
    train_runs([again], quiet=True, trainer=SHORT_BLOCKS)
    assert tables(again) == expected


def test_memory_that_runs_out_is_recognised(card):
    if card.type != "cuda":
        pytest.skip("a CPU has no memory of its own to run out of")
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50, dtype=torch.uint8, device=card)
    assert out_of_memory(caught.value)


def test_a_stack_that_is_too_large_is_halved(clrun, card, tmp_path, monkeypatch):
    """The card is filled but for what a few of the runs need, and the processes in which they are trained."""
    if card.type != "cuda":
        pytest.skip("a CPU has no memory of its own to run out of")
    free, _ = torch.cuda.mem_get_info(card)
    held = torch.empty(free - 8 * 2**30, dtype=torch.uint8, device=card)
    typed = "strategy=ewc", "tasks=2", "iterations=5", "model.widths=[4000,4000]", "seed=range(16)", "stack=16"
    code, out, err = clrun("-m", *typed, "device=cuda", "workers=1", f"outputs={tmp_path}", "plots=false")
    del held
    torch.cuda.empty_cache()
    assert code == 0, out + err
    assert "memory" in out + err
    assert len(list(tmp_path.rglob("summary.csv"))) >= 16
    sizes = {
        int(pd.read_csv(path)["stack_size"].iloc[0]) for path in tmp_path.rglob("*/summary.csv") if path.parent.name
    }
    assert max(sizes) < 16
