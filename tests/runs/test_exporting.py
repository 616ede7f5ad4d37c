"""clrun-export: what is written answers as clrun-predict does, on 100 samples, without a line of clrun."""

import json
import sys

import numpy as np
import pytest
import torch
from conftest import live
from helpers import CPU
from user_networks import ConvNormDrop, Mlp

from clrun.commands import export
from clrun.runs import network_file
from clrun.runs.answering import answering, deployed
from clrun.runs.build import build
from clrun.runs.network_file import NAME
from clrun.system.errors import UsageError

SMALL = ("device=cpu", "pictures=false", "tasks=2", "iterations=6")
MLP = ("model.widths=[12,8]",)
MODULE = ("model=module", "model.target=user_networks.ConvNormDrop")

# What is exported, and in which task.
NETWORKS = {
    "mlp": (*MLP, "strategy=finetune"),
    "cnn": ("model=cnn", "model.width=2", "dataset.pad=2", "strategy=ewc", "scenario=class"),
    "resnet18": ("model=resnet18", "model.width=2", "model.norm=batch", "dataset.pad=4", "strategy=finetune"),
    "module": (*MODULE, "strategy=er", "scenario=class"),
    "frozen": (*MODULE, "strategy=finetune", "model.train=head"),
    "hat": (*MLP, "strategy=hat"),
    "packnet": (*MLP, "strategy=packnet"),
    "amn": (*MLP, "strategy=amn"),
    "imm": (*MLP, "strategy=imm"),
    "separate": (*MLP, "strategy=separate"),
    "ncm": ("model=cnn", "model.width=2", "strategy=ncm", "scenario=class"),
    "ranpac": (*MLP, "strategy=ranpac", "scenario=class"),
    "permuted": (*MLP, "strategy=finetune", "split=permuted", "scenario=domain"),
    "rotated": ("model=cnn", "model.width=2", "strategy=finetune", "split=rotated", "scenario=domain"),
    "bfloat16": (*MLP, "strategy=finetune", "precision=bfloat16"),
}


@pytest.fixture
def exported(prepared_of, tmp_path):
    """exported("onnx", *overrides, flags=[]) -> the file, 100 samples, the answers (100, K) of clrun-predict, names."""

    def write(kind, *overrides, flags=("--task", "2"), task=1):
        prepared = prepared_of(*SMALL, *overrides)
        stack = build([prepared], device=CPU)
        network_file.write(tmp_path, deployed(stack, live(stack)[0], 0, prepared))
        path = tmp_path / "there" / export.FILES[kind]
        export.command([str(tmp_path / NAME), "--to", kind, "--out", str(path), *flags])
        network = network_file.read(tmp_path / NAME)
        pad = prepared.settings.get("dataset.pad", 0)
        x = prepared.images.x[prepared.stream.test[task][:100]]
        x = (x[..., pad:-pad, pad:-pad] if pad else x).contiguous()
        with torch.no_grad():
            answer = answering(network, task)
            return path, x, answer(x).softmax(-1), [network.names[output] for output in answer.answers]

    return write


@pytest.mark.parametrize("network", NETWORKS)
def test_torchscript(exported, network):
    path, x, expected, names = exported("torchscript", *NETWORKS[network])
    extra = {"clrun": ""}
    script = torch.jit.load(str(path), _extra_files=extra)
    tolerance = 2e-2 if network == "bfloat16" else 1e-5
    assert len(x) == 100
    assert torch.allclose(script(x), expected, atol=tolerance)
    assert torch.allclose(script(x[:1]), expected[:1], atol=tolerance)
    about = json.loads(extra["clrun"])
    assert about["classes"] == names
    assert about == json.loads(path.with_name(f"{path.name}.json").read_text())


@pytest.mark.parametrize(
    "network", [name if name in ("mlp", "hat") else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS]
)
def test_onnx(exported, network):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path, x, expected, names = exported("onnx", *NETWORKS[network])
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    tolerance = 2e-2 if network == "bfloat16" else 1e-5
    for part in (slice(None), slice(1)):
        (answers,) = session.run(["probabilities"], {"input": x[part].numpy()})
        np.testing.assert_allclose(answers, expected[part].numpy(), atol=tolerance)
    about = json.loads(session.get_modelmeta().custom_metadata_map["clrun"])
    assert about["classes"] == names
    assert about["input"] == {
        "shape": ["N", *x.shape[1:]], "type": "uint8", "is": "a picture of whole numbers from 0 to 255"
    }  # fmt: skip


def test_pictures_of_floats(exported):
    path, x, expected, _ = exported("torchscript", *NETWORKS["cnn"], flags=("--input", "float"))
    assert torch.allclose(torch.jit.load(str(path))(x / 255), expected, atol=1e-5)


def test_features(exported, tmp_path):
    random = np.random.default_rng(0)
    x, y = random.normal(3, 2, (300, 6)).astype("float32"), np.arange(300) % 4
    np.savez(tmp_path / "a.npz", x_train=x[:80], y_train=y[:80], x_test=x[80:], y_test=y[80:])
    data = ("dataset=arrays", f"dataset.file={tmp_path / 'a.npz'}", "scenario=class", "batch_size=8")
    path, x, expected, _ = exported("torchscript", *MLP, "strategy=finetune", *data, flags=())
    before = x.clone()
    assert torch.allclose(torch.jit.load(str(path))(x), expected, atol=1e-5)
    assert torch.equal(x, before)


@pytest.mark.parametrize("head", ["auto", "append"])
def test_weights_by_name_load_into_the_users_module(exported, head):
    from safetensors.torch import load_file

    overrides = (*MODULE, "strategy=finetune", "scenario=class", f"model.head={head}")
    path, x, expected, names = exported("state_dict", *overrides, flags=())
    about, weights = json.loads(path.with_name(f"{path.name}.json").read_text()), load_file(path)
    module = ConvNormDrop(len(names))
    if head == "append":
        module = torch.nn.Sequential()
        module.add_module("body", ConvNormDrop(10))
        module.add_module("head", torch.nn.Linear(10, len(names)))
    module.load_state_dict(weights)
    scale, shift = (torch.tensor(about[name]).view(1, -1, 1, 1) for name in ("scale", "shift"))
    answers = module.eval()(x * scale + shift).softmax(-1)
    assert torch.allclose(answers, expected, atol=1e-5)
    assert about["classes"] == names


def test_weights_of_clruns_own_networks(exported):
    from safetensors.torch import load_file

    path, x, expected, names = exported("state_dict", *MLP, "strategy=ewc", "scenario=class", flags=())
    module = Mlp((1, 8, 8), len(names), [12, 8])
    weights, about = load_file(path), json.loads(path.with_name(f"{path.name}.json").read_text())
    layers = [layer for layer in module if isinstance(layer, torch.nn.Linear)]
    for name, layer in zip(("hidden.0", "hidden.1", "head"), layers, strict=True):
        layer.load_state_dict({part: weights[f"{name}.{part}"] for part in ("weight", "bias")})
    answers = module(x * about["scale"][0] + about["shift"][0]).softmax(-1)
    assert torch.allclose(answers, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "arguments", "says"),
    [
        (NETWORKS["hat"], ("--to", "state_dict"), "answers by more than weights"),
        (NETWORKS["packnet"], ("--to", "state_dict"), "--to onnx or --to torchscript"),
        (NETWORKS["mlp"], ("--to", "torchscript"), "say which one of 1 to 2"),
        (NETWORKS["mlp"], ("--to", "torchscript", "--task", "3"), "the run has tasks 1 to 2"),
        (NETWORKS["mlp"], ("--to", "state_dict", "--task", "1"), "leave --task"),
        (
            NETWORKS["mlp"],
            ("--to", "state_dict", "--out", "{folder}/network.safetensors"),
            "files of a run are in this",
        ),
        (NETWORKS["mlp"], ("--to", "torchscript", "--task", "1", "--out", "{folder}"), "is a folder"),
    ],
)
def test_what_cannot_be_exported_is_refused(exported, tmp_path, overrides, arguments, says):
    exported("torchscript", *overrides)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UsageError, match=says):
        export.command([str(tmp_path), *(text.format(folder=tmp_path) for text in arguments)])
    assert sorted(tmp_path.iterdir()) == before


def test_a_network_that_cannot_be_traced(exported, tmp_path):
    overrides = ("model=module", "model.target=user_networks.Deciding", "strategy=finetune", "scenario=class")
    with pytest.raises(UsageError, match="cannot be written as a graph"):
        exported("torchscript", *overrides, flags=())
    assert not (tmp_path / "there").exists()


def test_what_a_trace_holds_for_one_number_of_samples_alone_is_refused(exported, tmp_path):
    with pytest.raises(UsageError, match="nothing was written; type --to onnx"):
        exported("torchscript", "model=module", "model.target=user_networks.Turned", "strategy=finetune")
    assert not (tmp_path / "there" / "network.pt").exists()


def test_without_the_library(exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UsageError, match=r"pip install 'clrun\[export\]'"):
        exported("onnx", *NETWORKS["mlp"])
