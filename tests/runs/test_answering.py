"""A finished run's network answers without its data, as the engine does with them; and what of a run is kept."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import SCENARIOS, STRATEGIES, live
from helpers import CPU

from clrun.config.catalog import read
from clrun.engine.evaluation import deployed_logits
from clrun.results.outcome import RunStatus
from clrun.runs import network_file
from clrun.runs.answering import answering, deployed, keep_network
from clrun.runs.build import build
from clrun.runs.checkpoint import InvalidCheckpoint
from clrun.runs.network_file import NAME
from clrun.runs.train import train_run
from clrun.system.errors import UsageError

SMALL = ("device=cpu", "plots=false", "tasks=2", "iterations=6")
MLP = ("model.widths=[12,8]",)


def by_engine(stack, state, task, rows):
    """The logits (n, K) of the outputs that may answer, by the engine, on the pictures at `rows` of the data set."""
    data = stack.strategy.data
    logits, _ = deployed_logits(
        stack.strategy, state, stack.hp, stack.tables, data.rows(rows, task), torch.tensor(data.tasks - 1)
    )
    return logits[:, stack.tables.active[-1, task]]


def assert_answers_as_the_engine(prepared, folder):
    stack = build([prepared], device=CPU)
    state, _ = live(stack)
    network_file.write(folder, deployed(stack, state, 0, prepared))
    network = network_file.read(folder / NAME)
    for task in range(2):
        rows = prepared.stream.test[task][:40]
        pad = prepared.settings.get("dataset.pad", 0)
        x = prepared.images.x[rows]
        x = x[..., pad:-pad, pad:-pad] if pad else x
        with torch.no_grad():
            mine = answering(network, task)(x)
            expected = by_engine(stack, state, task, rows)
        assert torch.equal(mine, expected)
        assert [network.names[o] for o in answering(network, task).answers] == [
            name for name, active in zip(prepared.stream.names, stack.tables.active[-1, task], strict=True) if active
        ]
    return network


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy(prepared_of, tmp_path, strategy, scenario):
    if scenario in read().options["strategy"][strategy].refuses:
        pytest.skip("refused")
    try:
        prepared = prepared_of(*SMALL, *MLP, f"strategy={strategy}", f"scenario={scenario}")
    except UsageError:
        prepared = prepared_of(*SMALL, *MLP, f"strategy={strategy}", f"scenario={scenario}", "task_id_at_test=true")
    network = assert_answers_as_the_engine(prepared, tmp_path)
    kept = {"packnet": {".owner"}, "separate": {".thetas", ".stage"}, "icarl": {".means"}}
    kept |= {"generative_classifier": {".samples", ".noise"}}
    linear = {".sums.number", ".head.weight", ".head.bias"}
    kept |= {"bic": {".task", ".alpha", ".beta"}, "xdg": {".gates[0]", ".gates[1]"}}
    kept |= {"ncm": linear, "slda": linear, "ranpac": linear | {".projection"}}
    kept |= {"fecam": {".sums.number", ".head.mean", ".head.precision", ".head.bias"}}
    assert {*network.state} == kept.get(strategy, set()), "of the state, no more than answers read"


def test_pictures_of_floats_are_padded_as_in_training(prepared_of, tmp_path):
    random = np.random.default_rng(0)
    x, y = random.normal(size=(40, 1, 6, 6)).astype(np.float32), np.arange(40) % 4
    np.savez(tmp_path / "floats.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    data = ("dataset=arrays", f"dataset.file={tmp_path / 'floats.npz'}", "dataset.pad=1")
    network = assert_answers_as_the_engine(prepared_of(*SMALL, *MLP, *data, "strategy=finetune"), tmp_path)
    assert network.shape_of_new == (1, 6, 6)


@pytest.mark.parametrize(
    "overrides",
    [
        ("split=permuted", "scenario=domain"),
        ("split=rotated", "scenario=task"),
        ("dataset.pad=2", "model=cnn", "model.width=2"),
        ("dataset.pad=4", "model=resnet18", "model.width=2", "model.norm=batch", "strategy=separate"),
        ("dataset.normalize=false", "scenario=class"),
        ("precision=bfloat16",),
        ("first_tasks=2", "tasks=5"),
        ("model=module", "model.target=user_networks.ConvNormDrop"),
        ("model=module", "model.target=user_networks.ConvNormDrop", "model.train=head"),
    ],
)
def test_what_is_done_to_a_sample_and_every_network(prepared_of, tmp_path, overrides):
    mlp = () if any(o.startswith("model") for o in overrides) else MLP
    assert_answers_as_the_engine(prepared_of(*SMALL, *mlp, "strategy=finetune", *overrides), tmp_path)


def test_floats(prepared_of, tmp_path):
    random = np.random.default_rng(0)
    x, y = random.normal(3, 2, (80, 6)).astype("float32"), np.arange(80) % 4
    np.savez(tmp_path / "a.npz", x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:])
    settings = ("dataset=arrays", f"dataset.file={tmp_path / 'a.npz'}", "scenario=class", "batch_size=8")
    for split in ("split=classes", "split=permuted"):
        assert_answers_as_the_engine(prepared_of(*SMALL, *MLP, *settings, split), tmp_path)


def test_a_run_of_a_stack(prepared_of, tmp_path):
    """The network of one run of three equals that of the run itself, whose tables and hyperparameters are its own."""
    runs = [prepared_of(*SMALL, *MLP, "strategy=hat", f"seed={s}", f"smax={s + 10}") for s in range(3)]
    stack = build(runs, device=CPU)
    state, _ = live(stack)
    together = deployed(stack, state, 1, runs[1])
    alone = build([runs[1]], device=CPU)
    theirs = deployed(alone, live(alone)[0], 0, runs[1])
    x = runs[1].images.x[:9]
    with torch.no_grad():
        assert torch.allclose(answering(together, 1)(x), answering(theirs, 1)(x), atol=1e-4)


# ---------------------------------------------------------------- what is kept


@pytest.mark.parametrize(
    ("kept", "names"), [("auto", {NAME}), ("true", {NAME, "checkpoint.safetensors"}), ("false", set())]
)
def test_what_stays_of_a_finished_run(prepared_of, kept, names):
    prepared = prepared_of(*SMALL, *MLP, f"keep_checkpoint={kept}", "strategy=er")
    train_run(prepared, quiet=True)
    assert {path.name for path in prepared.directory.glob("*.safetensors")} == names
    assert prepared.id == prepared_of(*SMALL, *MLP, "strategy=er").id


def test_a_large_network_is_kept_only_where_that_is_typed(prepared_of):
    wide = "model.widths=[12,8,420000]"
    for kept, there in (("auto", False), ("true", True)):
        prepared = prepared_of(*SMALL[:-1], "iterations=1", wide, f"keep_checkpoint={kept}", "strategy=finetune")
        stack = build([prepared], device=CPU)
        keep_network(stack, stack.initialize(), 0, prepared, works=True)
        assert (prepared.directory / NAME).is_file() == there
    keep_network(stack, stack.initialize(), 0, prepared, works=False)
    assert not (prepared.directory / NAME).exists(), "what an earlier training has left is not this run's"


def test_a_diverged_run_keeps_none(prepared_of):
    prepared = prepared_of(*SMALL, *MLP, "strategy=finetune", "optimizer=sgd", "lr=1e30")
    assert train_run(prepared, quiet=True) == RunStatus.DIVERGED
    assert not (prepared.directory / NAME).exists()


# ---------------------------------------------------------------- files that cannot be used


@pytest.fixture
def network(prepared_of):
    prepared = prepared_of(*SMALL, *MLP, "strategy=packnet")
    stack = build([prepared], device=CPU)
    return deployed(stack, stack.initialize(), 0, prepared)


def test_other_code(network):
    """The class of the network or of the strategy was changed since the run."""
    first, *_ = network.weights
    other = {**network.weights, first: torch.zeros(3, 3)}
    with pytest.raises(InvalidCheckpoint, match="has the network been changed"):
        answering(replace(network, weights=other), 0)
    with pytest.raises(InvalidCheckpoint, match="has the strategy been changed"):
        answering(replace(network, state={".elsewhere": torch.zeros(3)}), 0)
    with pytest.raises(InvalidCheckpoint, match="besides its weights"):
        answering(replace(network, fixed={"a": torch.zeros(3)}), 0)


@pytest.mark.parametrize("damage", ["cut", "flipped", "text", "other"])
def test_damaged_files(network, tmp_path, damage):
    network_file.write(tmp_path, network)
    path = tmp_path / NAME
    data = path.read_bytes()
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        path.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    elif damage == "text":
        path.write_text("no tensors")
    else:
        from safetensors.torch import save_file

        save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(InvalidCheckpoint):
        network_file.read(path)
