"""clrun-predict, of a run that learnt from features: new pictures go through the same frozen network."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from loading import red_and_blue
from PIL import Image
from user_networks import Eyes

from clrun.commands import console, export, predict
from clrun.runs.train import train_run

pytestmark = pytest.mark.usefixtures("cache_home")

SMALL = ("device=cpu", "iterations=60", "lr=0.02", "tasks=2", "scenario=class", "strategy=er", "plots=false")


@pytest.fixture
def folder(tmp_path):
    """Pictures of two classes, red and blue, of other sizes than the network sees."""
    return red_and_blue(tmp_path / "own", tests=6)


@pytest.fixture
def trained(prepared_of, folder):
    """trained("features.seed=1") -> a run on features of the folder's pictures."""

    def train(*typed, target="user_networks.Eyes"):
        keys = ("features=module", f"features.target={target}", "features.size=12", "model=linear", *SMALL, *typed)
        prepared = prepared_of("dataset=image_folder", f"dataset.root={folder}", *keys)
        train_run(prepared, quiet=True)
        return prepared

    return train


def right(rows):
    return np.mean([row["class"] == Path(row["file"]).parent.name for row in rows])


def test_without_the_data_and_without_the_cache(trained, answer, folder, cache_home, tmp_path):
    prepared = trained()
    test = shutil.copytree(folder / "test", tmp_path / "new")
    matrix = pd.read_csv(prepared.directory / "accuracy_matrix.csv")
    code, rows, err = answer(prepared.directory, test)
    assert (code, err, len(rows)) == (0, "", 12)
    by_task = [[row for row in rows if Path(row["file"]).parent.name == name] for name in prepared.stream.names]
    assert [right(some) for some in by_task] == pytest.approx(matrix.loc[2, ["task_1", "task_2"]].tolist())
    assert right(rows) > 0.7, "or nothing was learnt, and the test says little"
    shutil.rmtree(folder)
    shutil.rmtree(cache_home)
    assert answer(prepared.directory, test) == (0, rows, "")
    moved = shutil.copy(prepared.directory / "network.safetensors", tmp_path / "anything.safetensors")
    shutil.rmtree(prepared.directory)
    assert answer(moved, test) == (0, rows, "") and not cache_home.exists()
    one = answer(moved, test / "red" / "0.png")[1]
    assert float(one[0]["probability"]) == pytest.approx(float(next(
        row["probability"] for row in rows if row["file"].endswith("red/0.png"))), abs=2e-4)  # fmt: skip


def test_pictures_in_a_file_of_rows(trained, answer, folder, prepared_of, tmp_path):
    """Grey pictures of an array, 8 x 8, which the network sees as 12 x 12 and coloured."""
    random = np.random.default_rng(1)
    x = random.integers(0, 99, (40, 8, 8), np.uint8)
    x[::2, :4] += 150
    np.savez(tmp_path / "my.npz", x_train=x[:30], y_train=np.arange(30) % 2, x_test=x[30:], y_test=np.arange(10) % 2)
    keys = ("features=module", "features.target=user_networks.Eyes", "features.size=12", "model=linear", *SMALL)
    prepared = prepared_of("dataset=arrays", f"dataset.file={tmp_path}/my.npz", *keys)
    train_run(prepared, quiet=True)
    np.savez(tmp_path / "new.npz", x=x[30:])
    code, rows, err = answer(prepared.directory, tmp_path / "new.npz")
    assert (code, err, len(rows)) == (0, "", 10)
    matrix = pd.read_csv(prepared.directory / "accuracy_matrix.csv")
    counted = np.mean([int(row["class"]) == i % 2 for i, row in enumerate(rows)])
    assert counted == pytest.approx(matrix.loc[2, "average"])
    for i in range(10):
        Image.fromarray(x[30 + i]).save(tmp_path / f"{i}.png")
    from_files = answer(prepared.directory, *(tmp_path / f"{i}.png" for i in range(10)))[1]
    assert [row["class"] for row in from_files] == [row["class"] for row in rows]


def test_weights_of_a_file_are_looked_for_where_they_lay(trained, answer, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(Eyes().state_dict(), "weights.pt")
    directory = trained("features.weights=weights.pt").directory
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, rows, _ = answer(directory, folder / "test")
    assert code == 0 and right(rows) > 0.5
    torch.save(Eyes().state_dict(), tmp_path / "weights.pt")
    code, rows, err = answer(directory, folder / "test")
    assert (code, rows) == (2, []) and "its weights are not those whose features run" in err
    (tmp_path / "weights.pt").unlink()
    code, rows, err = answer(directory, folder / "test")
    assert (code, rows) == (2, []) and f"features.weights={tmp_path}/weights.pt cannot be read" in err
    assert err.count("\n") == 1


def test_a_kept_checkpoint_holds_the_frozen_network(trained, answer, folder, tmp_path):
    weights = tmp_path / "weights.pt"
    torch.save(Eyes().state_dict(), weights)
    directory = trained(f"features.weights={weights}", "keep_checkpoint=true").directory
    expected = answer(directory, folder / "test")
    assert expected[0] == 0 and right(expected[1]) > 0.5
    weights.unlink()
    assert answer(directory, folder / "test") == expected
    code, _, err = answer(directory, "--to", "torchscript", "--out", tmp_path / "a.pt", command=export.command)
    assert code == 0, err


def test_a_module_that_draws_other_weights_is_refused_and_an_edited_one_is_said(
    trained, answer, folder, tmp_path, monkeypatch
):
    text = "from user_networks import Eyes\nclass Mine(Eyes):\n    pass\n"
    (tmp_path / "mine_of_the_user.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    directory = trained(target="mine_of_the_user.Mine").directory
    expected = answer(directory, folder / "test")[1]
    for edited, code in (
        (text + "# a remark\n", 0),
        (text.replace("pass", "__init__ = lambda s: Eyes.__init__(s, 3, 8)"), 2),
    ):
        sys.modules.pop("mine_of_the_user")
        (tmp_path / "mine_of_the_user.py").write_text(edited)
        found, rows, err = answer(directory, folder / "test")
        assert found == code and rows == (expected if code == 0 else [])
        assert err.count("features.source: the code is not that of the run's training") == 1
        assert ("its weights are not those" in err) == (code == 2)
    sys.modules.pop("mine_of_the_user")


def test_a_checkpoint_without_a_network(trained, answer, folder):
    """The data are read again, and their features found in the cache."""
    directory = trained("keep_checkpoint=true").directory
    expected = answer(directory, folder / "test")
    (directory / "network.safetensors").unlink()
    assert expected[0] == 0 and answer(directory, folder / "test")[:2] == expected[:2]


def test_weights_say_that_their_inputs_are_features(trained, answer, tmp_path):
    directory = trained().directory
    code, _, err = answer(directory, "--to", "state_dict", "--out", tmp_path / "a.safetensors", command=export.command)
    assert code == 0, err
    about = json.loads((tmp_path / "a.safetensors.json").read_text())
    made = "features=module features.target=user_networks.Eyes"
    assert about["input"] == f"feature * scale + shift, of the 7 features that {made} makes of a picture"


def test_what_is_exported_takes_pictures(trained, answer, folder, tmp_path):
    directory = trained("dataset.size=12").directory
    rows = answer(directory, folder / "test")[1]
    code, _, err = answer(directory, "--to", "torchscript", "--out", tmp_path / "a.pt", command=export.command)
    assert code == 0, err
    exported = torch.jit.load(tmp_path / "a.pt")
    from clrun.data.decoding import decode

    x = torch.from_numpy(np.stack([decode(row["file"], 12) for row in rows]))
    likeliest = exported(x).max(1)
    names = [row["class"] for row in rows]
    assert [float(row["probability"]) for row in rows] == pytest.approx(likeliest.values.tolist(), abs=2e-4)
    assert len(set(zip(names, likeliest.indices.tolist(), strict=True))) == len(set(names))


def test_nothing_is_printed_where_no_picture_can_be_read(trained, tmp_path, capsys):
    directory = trained().directory
    capsys.readouterr()
    with pytest.raises(SystemExit):
        console.end_with(lambda _: predict.command([str(directory), str(tmp_path / "none.png")]))
    assert capsys.readouterr().out == ""
