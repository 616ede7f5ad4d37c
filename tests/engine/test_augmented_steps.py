"""Runs whose pictures are augmented: alone and in a stack, by plain steps and by graphs, whole and interrupted, they
are the same, and no step waits for the host."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import live
from elsewhere import DEVICE, Elsewhere
from interrupting import SHORT_BLOCKS
from test_emulated_graphs import compare
from test_every_strategy import distance
from test_fake_device import lived
from test_memory import peaks
from test_resume import kill, tables, uninterrupted
from torch.utils._pytree import tree_map

from clrun.runs import train
from clrun.runs.build import build
from clrun.runs.memory import memory_need

ALL = "augment=[crop,flip,vertical_flip,rotate,resized_crop,greyscale,colour,hue,erase]"
STRATEGIES = ("finetune", "er", "derpp", "gem", "mir")


def pictures_in(folder, size):
    """What is typed for a data set of 240 coloured pictures of this size in six classes."""
    random, y = np.random.default_rng(0), np.arange(240) % 6
    x = random.integers(0, 100, (240, 3, size, size)) + 25 * y[:, None, None, None]
    parts = {"x_train": x[:180], "y_train": y[:180], "x_test": x[180:], "y_test": y[180:]}
    np.savez(folder / "coloured.npz", **{k: v.astype(np.uint8 if k[0] == "x" else int) for k, v in parts.items()})
    return "dataset=arrays", f"dataset.file={folder}/coloured.npz", "tasks=3", "scenario=class"


@pytest.fixture
def coloured(tmp_path):
    return pictures_in(tmp_path, 8)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_stacked_equals_alone(stack_of, coloured, strategy):
    """Over two epochs, whose last batch is short and is cut where a run is alone on a CPU."""
    memory = () if strategy == "finetune" else ("memory_size=24",)
    typed = (*coloured, f"strategy={strategy}", ALL, *memory, "epochs=2", "batch_size=25")
    together, _ = live(stack_of(*typed, seeds=(0, 1, 2)))
    for r in (0, 2):
        alone, _ = live(stack_of(*typed, seeds=(r,)))
        assert distance(tree_map(lambda v, r=r: v[r], together), alone) < 1e-9


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)], ids=["alone", "stacked"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_replayed_graph_augments_as_plain_steps_do(stack_of, coloured, strategy, seeds):
    _, capture = compare(stack_of, *coloured, f"strategy={strategy}", ALL, "epochs=2", seeds=seeds)
    assert sum(graph.replays for graph in capture.graphs) > 0


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)], ids=["alone", "stacked"])
@pytest.mark.parametrize("strategy", ["finetune", "er"])
def test_an_augmented_step_lives_without_the_host(prepared_of, coloured, strategy, seeds):
    assert not lived(prepared_of, *coloured, ALL, strategy=strategy, seeds=seeds).met("step")


@pytest.mark.parametrize("R", [1, 3])
def test_a_stack_needs_no_more_memory_than_was_reckoned(prepared_of, tmp_path, R):
    """With a network so small that pictures are most of what a step needs."""
    typed = (*pictures_in(tmp_path, 16), "strategy=finetune", "model=linear", ALL, "iterations=3", "batch_size=180")
    runs = [prepared_of(*typed, f"seed={seed}") for seed in range(R)]
    need = memory_need(runs[0])
    with Elsewhere() as there:
        training, _, _ = peaks(replace(build(runs, device=DEVICE), use_graph=True), there)
    assert training <= need.images + R * need.training < 3 * training


@pytest.mark.parametrize(
    "augment", ["crop", "flip", "rotate", "resized_crop", "greyscale", "erase", "colour", "hue", "[colour,crop,flip]"]
)
def test_another_augmentation_is_another_run(stack_of, coloured, augment):
    typed = (*coloured, "strategy=er", "iterations=5")
    augmented, _ = live(stack_of(*typed, f"augment={augment}"))
    assert distance(augmented.theta, live(stack_of(*typed))[0].theta) > 1e-6


@pytest.mark.parametrize("lives", [3, 7])
def test_wherever_it_is_killed(prepared_of, coloured, lives):
    short = (
        "model.widths=[9]",
        "device=cpu",
        "iterations=20",
        "plots=false",
        "checkpoint_every=1e-9",
        "evaluate_every=5",
    )
    prepared = prepared_of(*coloured, "strategy=derpp", ALL, *short)
    whole = uninterrupted(prepared)
    kill([prepared], lives)
    train.train_run(prepared, quiet=True, trainer=SHORT_BLOCKS)
    assert tables(prepared) == whole
