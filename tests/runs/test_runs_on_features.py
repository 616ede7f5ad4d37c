"""Runs on the features of a frozen network: once extracted, known by the network's weights, refused in a sentence."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from user_networks import Eyes, Features

from clrun.data import datasets
from clrun.runs.prepare import SharedImages, prepare
from clrun.sweep import workers
from clrun.system.errors import UsageError

pytestmark = pytest.mark.usefixtures("cache_home")

DIGITS = ("features=module", "features.target=user_networks.Features", "features.normalize=none")
SMALL = ("device=cpu", "iterations=20", "plots=false")


@pytest.fixture
def fresh(settings_of, tmp_path):
    """fresh("seed=1") -> a run whose samples no other run shares, as of a process of its own."""

    def prepared(*overrides):
        settings = settings_of(*overrides, f"outputs={tmp_path}")
        return prepare(settings, SharedImages())

    return prepared


def test_a_run_learns_from_what_the_network_returns(fresh, settings_of):
    prepared = fresh(*DIGITS, "features.seed=4", "model=linear")
    torch.manual_seed(4)
    module, rows = Features().eval(), []
    for picture in datasets.load(settings_of().values).x:
        with torch.no_grad():
            rows.append(module(picture[None] / 255))
    torch.testing.assert_close(prepared.images.x, torch.cat(rows), rtol=1e-4, atol=1e-5)
    assert prepared.images.shape == (5,) and prepared.images.train == 1347
    assert prepared.settings["features"] == "module" and len(prepared.settings["features.source"]) == 8


def test_a_run_without_features_has_no_such_key(settings_of):
    settings = settings_of("features=none")
    assert not [key for key in settings.values if key.startswith("features")]
    assert settings.values == settings_of().values and "features" not in settings.nested()


def test_what_makes_another_network_makes_another_run(fresh, tmp_path):
    torch.manual_seed(9)
    torch.save(Features().state_dict(), tmp_path / "a.pt")
    torch.save(Features().state_dict(), tmp_path / "b.pt")
    variants = {
        "seed": ("features.seed=1",), "size": ("features.size=8",), "normalize": ("features.normalize=half",),
        "args": ("features.args={width:4}",), "a": (f"features.weights={tmp_path}/a.pt",),
        "b": (f"features.weights={tmp_path}/b.pt",), "none": ("features=none",), "same": (), "run's seed": ("seed=1",),
    }  # fmt: skip
    runs = {}
    for name, typed in variants.items():
        keys = [*DIGITS] if name != "none" else []
        named = {text.partition("=")[0] for text in typed}
        runs[name] = fresh(*[key for key in keys if key.partition("=")[0] not in named], *typed)
    prints = {name: run.images.fingerprint for name, run in runs.items()}
    assert prints["same"] == prints["run's seed"], "the run's seed draws no weights of the frozen network"
    assert len(set(prints.values())) == len(variants) - 1
    assert len({run.id for run in runs.values()}) == len(variants)
    (tmp_path / "moved").mkdir()
    (tmp_path / "a.pt").rename(tmp_path / "moved" / "weights.pt")
    moved = fresh(*DIGITS, f"features.weights={tmp_path}/moved/weights.pt")
    assert moved.id == runs["a"].id, "the path is no part of the identity"
    torch.save(Features().state_dict(), tmp_path / "moved" / "weights.pt")
    assert fresh(*DIGITS, f"features.weights={tmp_path}/moved/weights.pt").id != runs["a"].id


MODULE = """
from pathlib import Path
import os, time
from torch import nn
class Counted(nn.Module):
    def __init__(self, version=0):
        super().__init__()
        self.layer = nn.Linear(64, 6)
    def forward(self, x):
        with open("shown.txt", "a") as file:
            file.write(f"{os.getpid()} {len(x)}\\n")
        while Path("slow").exists() and len(list(Path(os.environ["XDG_CACHE_HOME"]).rglob("*-0.npz"))):
            time.sleep(0.1)
        return self.layer(x.flatten(1)[:, :64])
"""
COUNTED = ("features=module", "features.target=counted_of_the_user.Counted", "features.normalize=none", *SMALL)


@pytest.fixture
def empty(empty_folder, cache_home, monkeypatch):
    """An empty folder, with a cache that is empty too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_home))


@pytest.fixture
def counted(empty):
    """A module in the current folder that writes down how many pictures it is shown."""
    Path("counted_of_the_user.py").write_text(MODULE)
    yield
    sys.modules.pop("counted_of_the_user", None)


def shown():
    """The number of pictures that the module was shown by each process, but for the first look at two and one."""
    lines = [line.split() for line in Path("shown.txt").read_text().splitlines()] if Path("shown.txt").exists() else []
    by_process: dict[str, int] = {}
    for pid, count in lines:
        by_process[pid] = by_process.get(pid, 0) + (int(count) if int(count) > 2 else 0)
    return [count for count in by_process.values() if count]


def test_a_sweep_extracts_once(clrun, counted, cache_home, monkeypatch):
    workers.warm_up()  # workers have the environment of their sweep, not of the server that is there already
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_home / "later"))
    code, _, err = clrun("-m", *COUNTED, "strategy=finetune,er", "model=linear", "seed=range(3)", "workers=2")
    assert code == 0, err
    assert shown() == [1797], "by one process"
    results = pd.read_csv("outputs/results.csv")
    assert len(results) == 6 and set(results["features"]) == {"module"} and results["group"].nunique() == 2
    assert err.count("features of 1797 pictures by features.target=counted_of_the_user.Counted took") == 1
    Path("shown.txt").unlink()
    code, _, err = clrun(*COUNTED, "strategy=joint", "model=mlp", "model.widths=[8]")
    assert code == 0 and shown() == [] and "took" not in err
    assert "features.target=counted_of_the_user.Counted" in next(Path("outputs/runs/joint").glob("[!.]*")).name


def test_an_edited_module_is_another_run(clrun, counted):
    typed = (*COUNTED, "features.args={version:1}")  # another test's samples may still be in memory
    assert clrun(*typed)[0] == 0
    sys.modules.pop("counted_of_the_user")
    Path("counted_of_the_user.py").write_text(MODULE.replace("self.layer(x", "2 * self.layer(x"))
    assert clrun(*typed)[0] == 0
    assert len(list(Path("outputs/runs/ewc").glob("digits-*"))) == 2 and shown() == [2 * 1797]


@pytest.mark.slow
def test_killed_while_extracting_then_continued(counted, cache_home):
    """Of 2,200 pictures, 2,048 are a part that is kept."""
    data = np.random.default_rng(0).integers(0, 256, (2200, 1, 8, 8), np.uint8)
    labels = np.arange(2200) % 4
    np.savez("my.npz", x_train=data[:2100], y_train=labels[:2100], x_test=data[2100:], y_test=labels[2100:])
    typed = [*COUNTED, "dataset=arrays", "dataset.file=my.npz", "tasks=2", "strategy=finetune"]
    Path("slow").touch()
    with subprocess.Popen([sys.executable, "-m", "clrun", *typed], stderr=subprocess.PIPE) as process:
        folder = cache_home / "clrun" / "features"
        deadline = time.monotonic() + 120
        while not (folder.is_dir() and list(folder.glob("*-0.npz"))):
            assert time.monotonic() < deadline and process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert not Path("outputs").exists(), "nothing of the run is written before the features are there"
    Path("slow").unlink()
    Path("shown.txt").unlink()
    done = subprocess.run([sys.executable, "-m", "clrun", *typed], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert shown() == [152] and len(list(folder.iterdir())) == 1
    expected = subprocess.run(
        [sys.executable, "-m", "clrun", *typed, "outputs=afresh"], capture_output=True, check=False,
        env=os.environ | {"XDG_CACHE_HOME": str(Path("other").resolve())},
    )  # fmt: skip
    assert expected.returncode == 0
    matrices = [next(Path(name).glob("runs/*/*/accuracy_matrix.csv")).read_text() for name in ("outputs", "afresh")]
    assert matrices[0] == matrices[1]


@pytest.mark.parametrize("strategy", ["ewc", "packnet", "lwf", "si", "derpp"])
def test_strategies_train_on_features(strategy, fresh):
    from clrun.runs.train import train_run

    prepared = fresh(*DIGITS, *SMALL, f"strategy={strategy}", "tasks=2", "model.widths=[6]")
    assert train_run(prepared, quiet=True) == "done"


@pytest.mark.parametrize("split", ["classes", "permuted"])
def test_splits_work_on_features(split, fresh):
    prepared = fresh(*DIGITS, f"split={split}", "tasks=2")
    assert prepared.stream.tables.permutation.shape == ((2, 5) if split == "permuted" else (2, 0))


@pytest.fixture
def folder(tmp_path):
    for part in ("train", "test"):
        for k, name in enumerate(("cat", "dog")):
            (tmp_path / "own" / part / name).mkdir(parents=True)
            for i in range(2):
                pixels = np.full((30, 40, 3), 40 * k + i, np.uint8)
                Image.fromarray(pixels).save(tmp_path / "own" / part / name / f"{i}.png")
    return tmp_path / "own"


def test_pictures_of_a_folder_are_read_as_the_network_sees_them(settings_of, folder):
    typed = (*EYES, "dataset=image_folder", f"dataset.root={folder}", "scenario=class", "tasks=2")
    settings = settings_of(*typed, "features.size=12")
    assert settings["dataset.size"] == 12
    assert "features.size" in settings.not_default and "dataset.size" not in settings.not_default, "it is named once"
    assert settings_of(*typed, "features.size=12", "dataset.size=6")["dataset.size"] == 6
    assert settings_of(*typed)["dataset.size"] == 32


def bad_weights(kind):
    state = Eyes().state_dict()
    if kind == "other shapes":
        state = Eyes(width=9).state_dict()
    if kind == "not numbers":
        state["last.bias"] = torch.full((7,), torch.nan)
    torch.save(state, "weights.pt")
    if kind == "torn":
        Path("weights.pt").write_bytes(Path("weights.pt").read_bytes()[:200])
    return "features.weights=weights.pt"


def floats():
    x = np.random.default_rng(0).random((20, 5), np.float32)
    np.savez("floats.npz", x_train=x, y_train=np.arange(20) % 2, x_test=x, y_test=np.arange(20) % 2)
    return ("dataset=arrays", "dataset.file=floats.npz")


def of(name):
    return ("features=module", f"features.target=user_networks.{name}")


EYES = of("Eyes")
OWN = ("dataset=image_folder", "dataset.root=own", "tasks=2", "scenario=class")
WRONG = {
    "no target": (["features=module"], "type features.target=package.Class"),
    "no class": (["features=module", "features.target=user_networks.Ears"], "there is no such class"),
    "no module": (["features=module", "features.target=nowhere.Eyes"], "there is no module nowhere"),
    "no arch": (["features=torchvision"], "features=torchvision needs a network: type features.arch=..., such as"),
    "arch misspelt": (["features=torchvision", "features.arch=resnet81"], "features.arch=resnet81: torchvision has no"),
    "name": (["features=torchvision", "features.names=resnet18"], "features.names: no such key"),
    "option misspelt": (["features=torchvison"], "there is no such features; did you mean torchvision?"),
    "key without features": (["features.size=32"], "features=none takes no features.size"),
    "size too small": ([*EYES, *OWN, "features.size=4"], "does not take these pictures, 3 x 4 x 4"),
    "size of no type": ([*EYES, *OWN, "features.size=big"], "features.size=big: must be a whole number"),
    "normalize": ([*EYES, "features.normalize=imagnet"], "did you mean imagenet?"),
    "table": ([*EYES, "dataset=table", "dataset.file=a.csv", "dataset.label=y"], "dataset=table has none"),
    "floats": ([*EYES, floats], "a sample of this data set is 5 numbers of the type float32"),
    "augment": ([*DIGITS, "augment=crop_flip"], "leave augment out"),
    "rotated": ([*DIGITS, "split=rotated", "tasks=2", "scenario=domain"], "type split=classes or split=permuted"),
    "cnn": ([*DIGITS, "model=cnn"], "type model=linear or model=mlp"),
    "resnet18": ([*DIGITS, "model=resnet18"], "type model=linear or model=mlp"),
    "torchvision": ([*DIGITS, "model=torchvision", "model.arch=resnet18"], "type model=linear or model=mlp"),
    "pad": ([*DIGITS, "dataset.pad=2"], "leave dataset.pad out"),
    "weights missing": ([*EYES, *OWN, "features.weights=no.pt"], "features.weights=no.pt cannot be read"),
    "weights of other shapes": ([*EYES, *OWN, "other shapes"], "features.weights=weights.pt does not fit"),
    "weights torn": ([*EYES, *OWN, "torn"], "features.weights=weights.pt is no file of weights"),
    "weights not numbers": ([*EYES, *OWN, "not numbers"], "is nan, which is no finite number"),
    "wrong shape": ([*of("Pictures"), *OWN], "it must return (B, outputs or features)"),
    "two outputs": ([*of("Pair"), "features.normalize=none"], "returns a tuple"),
    "chance": ([*of("Chance"), "features.normalize=none"], "draws random numbers"),
    "cannot be made": ([*of("Fails"), *OWN], "cannot be made: RuntimeError: no such thing at all."),
    "default weights": ([*EYES, *OWN, "features.weights=DEFAULT"], "only features=torchvision and features=timm"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_is_refused_before_anything_is_written(case, clrun, empty, folder, cache_home):
    typed, message = WRONG[case]
    folder.rename("own")
    arguments: list[str] = []
    for one in typed:
        if callable(one):
            arguments += one()
        else:
            arguments.append(bad_weights(one) if one in ("other shapes", "torn", "not numbers") else one)
    before = sorted(map(str, Path().rglob("*")))
    code, out, err = clrun(*arguments)
    assert (code, out) == (2, "") and message in err
    assert err.startswith("clrun: ") and err.count("\n") == 1, "one paragraph"
    assert sorted(map(str, Path().rglob("*"))) == before
    assert not (cache_home / "clrun" / "features").exists()


@pytest.mark.parametrize("word, says", [
    ("features", ["module", "timm", "torchvision", "clrun --help module"]),
    ("features=timm", ["features.arch=null", "features.seed=0"]),
    ("ewc", ["lambda=400"]),
])  # fmt: skip
def test_help_of_a_word(word, says, clrun):
    code, out, _ = clrun("--help", word)
    assert code == 0 and all(text in out for text in says)
    assert ("memory_size" in out, "model.widths" in out) == (False, False)


def test_help_of_a_wrong_word_is_refused(clrun):
    code, out, err = clrun("--help", "feature")
    assert (code, out) == (2, "") and "did you mean features" in err


def test_equal_networks_of_two_runs_share_their_samples(prepared_of):
    one, other = (prepared_of(*DIGITS, f"seed={seed}") for seed in range(2))
    third = prepared_of(*DIGITS, "features.seed=1")
    assert one.images is other.images and third.images is not one.images
    with pytest.raises(UsageError, match=r"no\.pt cannot be read"):
        prepared_of(*DIGITS, "features.weights=no.pt")
