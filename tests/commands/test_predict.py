"""clrun-predict: the final network answers as it did when the run was measured."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from loading import red_and_blue
from PIL import Image

from clrun.runs.train import train_run

SMALL = ("model.widths=[16]", "device=cpu", "iterations=30", "tasks=2", "keep_checkpoint=true", "plots=false")


@pytest.fixture
def trained(prepared_of):
    def train(*overrides):
        prepared = prepared_of(*SMALL, *overrides)
        train_run(prepared, quiet=True)
        return prepared

    return train


def saved(prepared, task: int, folder: Path) -> tuple[list[Path], list[str]]:
    """The test pictures of a task as files, and their classes."""
    folder.mkdir()
    images, paths = prepared.images, []
    pool = prepared.stream.test[task].tolist()
    for image in pool:
        paths.append(folder / f"{image}.png")
        Image.fromarray(np.moveaxis(images.x[image].numpy(), 0, -1).squeeze(-1)).save(paths[-1])
    return paths, [prepared.stream.names[prepared.stream.tables.label[task, images.y[image]]] for image in pool]


@pytest.mark.parametrize("scenario, flags", [("class", []), ("domain", []), ("task", ["--task", "2"])])
def test_it_answers_as_the_run_did(trained, answer, tmp_path, scenario, flags):
    """The share of right answers to the test pictures of task 2 is the run's accuracy on it."""
    prepared = trained(f"scenario={scenario}", "strategy=finetune")
    paths, classes = saved(prepared, 1, tmp_path / "pictures")
    code, rows, err = answer(prepared.directory, *paths, *flags)
    assert (code, err) == (0, "")
    assert [row["file"] for row in rows] == list(map(str, paths))
    right = np.mean([row["class"] == name for row, name in zip(rows, classes, strict=True)])
    matrix = pd.read_csv(prepared.directory / "accuracy_matrix.csv")
    assert right == pytest.approx(matrix.loc[2, "task_2"])
    assert all(0 < float(row["probability"]) <= 1 for row in rows)


@pytest.fixture
def own_pictures(tmp_path):
    """A folder of 12 pictures of each of two classes, red and blue."""
    return red_and_blue(tmp_path / "own", tests=4)


def of_own_pictures(root):
    own = ("dataset=image_folder", f"dataset.root={root}", "dataset.size=8", "dataset.pad=1", "batch_size=4")
    return (*own, "scenario=class", "strategy=er", "keep_checkpoint=auto")


def test_the_data_are_not_needed(trained, answer, own_pictures, tmp_path):
    """The answers stay the same when a picture is added, when all are gone, and when the file is moved elsewhere."""
    directory = trained(*of_own_pictures(own_pictures), "iterations=60", "lr=0.01").directory
    new = tmp_path / "new"
    shutil.copytree(own_pictures / "test", new)
    code, rows, err = answer(directory, new)
    assert (code, err, len(rows)) == (0, "", 8), "a folder stands for its pictures"
    assert np.mean([row["class"] == Path(row["file"]).parent.name for row in rows]) >= 0.5
    shutil.copy(new / "red" / "0.png", own_pictures / "train" / "blue" / "another.png")
    assert answer(directory, new) == (0, rows, "")
    shutil.rmtree(own_pictures)
    assert answer(directory, new) == (0, rows, "")
    moved = shutil.copy(directory / "network.safetensors", tmp_path / "anything.safetensors")
    shutil.rmtree(directory)
    assert answer(moved, new) == (0, rows, "")


@pytest.mark.parametrize("columns", [40, 300])
def test_passed_over_files_are_counted_and_no_cell_is_cut(
    trained, answer, own_pictures, tmp_path, monkeypatch, columns
):
    """A folder's other files are counted, folders are not; the output is the same at any width of the terminal."""
    monkeypatch.setenv("COLUMNS", str(columns))
    directory = trained(*of_own_pictures(own_pictures)).directory
    new = tmp_path / ("猫 $x$ " + "n" * 200)
    shutil.copytree(own_pictures / "test", new)
    for name in ("notes.txt", "red/labels.csv", "blue/.DS_Store"):
        (new / name).touch()
    (new / "empty").mkdir()
    shutil.copy(new / "red" / "0.png", new / "UPPER.PNG")
    code, rows, err = answer(directory, new)
    assert (code, len(rows)) == (0, 9)
    assert err == f"clrun: {new}: 9 pictures; 3 other files were passed over.\n"
    assert [row["file"] for row in rows] == sorted(row["file"] for row in rows)
    assert all(Path(row["file"]).is_file() and row["class"] in ("red", "blue") for row in rows)
    (new / "notes.txt").unlink()
    shutil.rmtree(new / "blue")
    assert (
        "1 other files" not in answer(directory, new)[2]
        and "one other file was passed over" in answer(directory, new)[2]
    )


def test_a_checkpoint_of_an_earlier_version(trained, answer, tmp_path):
    """It kept no network, so the data are read again; the answers are those of the network."""
    prepared = trained("scenario=class", "strategy=imm")
    paths, _ = saved(prepared, 1, tmp_path / "pictures")
    expected = answer(prepared.directory, *paths)
    (prepared.directory / "network.safetensors").unlink()
    assert expected[0] == 0 and answer(prepared.directory, *paths) == expected


def test_a_checkpoint_answers_on_the_cpu_where_there_is_a_card(trained, answer, tmp_path, monkeypatch):
    prepared = trained("scenario=class", "strategy=imm")
    paths, _ = saved(prepared, 1, tmp_path / "pictures")
    expected = answer(prepared.directory, *paths)
    (prepared.directory / "network.safetensors").unlink()
    monkeypatch.setattr("clrun.runs.build.resolve_device", lambda *_: torch.device("cuda"))
    assert expected[0] == 0 and answer(prepared.directory, *paths) == expected


def test_the_likeliest_classes(trained, answer, tmp_path):
    prepared = trained("scenario=class")
    paths, _ = saved(prepared, 0, tmp_path / "pictures")
    _, best, _ = answer(prepared.directory, *paths[:2])
    code, rows, _ = answer(prepared.directory, *paths[:2], "--top", "3")
    assert code == 0 and [row["rank"] for row in rows] == ["1", "2", "3"] * 2
    assert [row["class"] for row in rows[::3]] == [row["class"] for row in best]
    probabilities = [float(row["probability"]) for row in rows[:3]]
    assert probabilities == sorted(probabilities, reverse=True) and len({row["class"] for row in rows[:3]}) == 3
    _, every, _ = answer(prepared.directory, paths[0], "--top", "99")
    assert len(every) == 10 and sum(float(row["probability"]) for row in every) == pytest.approx(1, abs=1e-3)
    code, rows, err = answer(prepared.directory, paths[0], "--top", "0")
    assert (code, rows) == (2, []) and "at least 1" in err


OWN = """
from clrun.models import MLP
from clrun.strategies.finetune import Finetune

class Mine(Finetune):
    \"\"\"A strategy of the user's.\"\"\"

class Mlp(MLP):
    \"\"\"A network of the user's.\"\"\"
"""


def test_classes_of_the_users_own_are_found_again(clrun, tmp_path, monkeypatch):
    """From another folder and in a new process, without --config-dir; an edited class is reported."""
    there, elsewhere = tmp_path / "there", tmp_path / "elsewhere"
    for folder in (there / "my" / "strategy", there / "my" / "model", elsewhere):
        folder.mkdir(parents=True)
    (there / "classes_of_mine.py").write_text(OWN)
    (there / "my/strategy/mine.yaml").write_text("name: mine\nabout: mine\n_target_: classes_of_mine.Mine\n")
    (there / "my/model/mymlp.yaml").write_text(
        "name: mymlp\nabout: mine\n_target_: classes_of_mine.Mlp\n"
        "knobs:\n  widths: {default: [8], type: ints, about: units}\n"
    )
    monkeypatch.chdir(there)
    own = ("--config-dir", "my", "strategy=mine", "model=mymlp", "scenario=class")
    assert clrun(*own, "iterations=2", "tasks=2", "device=cpu", "plots=false", "outputs=out")[0] == 0
    (network,) = there.glob("out/runs/mine/*/network.safetensors")
    picture = tmp_path / "a.png"
    Image.new("L", (30, 20)).save(picture)
    command = [sys.executable, "-m", "clrun.commands.predict", network.parent, picture]
    first = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True)
    assert (first.returncode, first.stderr) == (0, "") and first.stdout.startswith("file,class,probability\n")
    (there / "classes_of_mine.py").write_text(OWN + "# edited\n")
    second = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True)
    assert second.stdout == first.stdout and "not that of the run's training" in second.stderr
    (there / "classes_of_mine.py").unlink()
    third = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True)
    assert third.returncode == 2 and "classes_of_mine" in third.stderr


def test_a_damaged_network(trained, answer, tmp_path):
    prepared = trained("scenario=class")
    file = prepared.directory / "network.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    code, rows, err = answer(prepared.directory, tmp_path / "a.png")
    assert (code, rows) == (2, []) and "network.safetensors cannot be used" in err and err.count("\n") == 1


def test_a_folder_without_pictures(answer, tmp_path):
    (tmp_path / "notes.txt").touch()
    code, rows, err = answer(tmp_path / "run", tmp_path)
    assert (code, rows) == (2, []) and "no picture in this folder" in err and err.count("\n") == 1


def test_a_folder_that_is_no_run(answer, tmp_path):
    code, _, err = answer(tmp_path, "a.png")
    assert code == 2 and "there is no config.yaml" in err and err.count("\n") == 1


CONFIGS = {
    "name: [": "is not valid YAML",
    "- a": "must hold fields",
    "strategy: ewc": "is not there",
    "{strategy: ewc, data_dir: null, model: 1, dataset: 5, split: x, optimizer: null}": "is not there",
    "{strategy: nothing, data_dir: null, model: {name: mlp}, dataset: {name: digits}, split: {name: classes}, "
    "optimizer: {name: adam}}": "name your own folder with --config-dir",
}


@pytest.mark.parametrize("text", CONFIGS)
def test_a_run_whose_config_is_damaged(answer, tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    code, rows, err = answer(tmp_path, "a.png")
    assert (code, rows) == (2, []) and CONFIGS[text] in err and err.count("\n") == 1


@pytest.mark.parametrize("content", [b"", b"text", None])
def test_a_broken_picture(trained, answer, tmp_path, content):
    prepared = trained("scenario=class")
    if content is not None:
        (tmp_path / "a.png").write_bytes(content)
    code, rows, err = answer(prepared.directory, tmp_path / "a.png")
    assert (code, rows) == (2, []) and "a.png" in err and err.count("\n") == 1


def test_what_it_cannot_answer(trained, answer, tmp_path):
    prepared = trained()
    picture = tmp_path / "a.png"
    Image.new("L", (30, 20)).save(picture)
    for arguments, said in [
        ([picture], "--task 1"),
        ([picture, "--task", "3"], "tasks 1 to 2"),
        ([tmp_path / "no.png", "--task", "1"], "no.png"),
    ]:
        code, _, err = answer(prepared.directory, *arguments)
        assert code == 2 and said in err and err.count("\n") == 1
    for name in ("checkpoint.safetensors", "network.safetensors"):
        (prepared.directory / name).unlink()
    code, _, err = answer(prepared.directory, picture, "--task", "1")
    assert code == 2 and "keep_checkpoint=true" in err


def test_what_a_run_cannot_answer_with(trained, answer, tmp_path):
    """No network, or a class that is not there."""
    picture = tmp_path / "a.png"
    Image.new("L", (30, 20)).save(picture)
    diverged = trained("strategy=finetune", "optimizer=sgd", "lr=1e30", "scenario=class").directory
    assert "this run diverged" in answer(diverged, picture)[2]
    config = diverged / "config.yaml"
    config.write_text(config.read_text().replace("strategy: finetune", "strategy: mine"))
    assert "name your own folder with --config-dir" in answer(diverged, picture)[2]
    code, _, err = answer(diverged, picture, "--config-dir", tmp_path / "nowhere")
    assert code == 2 and "there is no such folder" in err


@pytest.mark.parametrize("group", ["model", "optimizer", "dataset", "strategy"])
def test_an_option_of_the_users_is_asked_for(trained, answer, tmp_path, group):
    """In one sentence that names the flag and the file, whichever group the option is of."""
    directory = trained("scenario=class").directory
    (directory / "network.safetensors").unlink(missing_ok=True)  # as earlier versions left a run
    config = yaml.safe_load((directory / "config.yaml").read_text())
    if group == "strategy":
        config[group] = "mine"
    else:
        config[group]["name"] = "mine"
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "my").mkdir()
    for flags in ([], ["--config-dir", tmp_path / "my"]):
        code, _, err = answer(directory, "a.png", *flags)
        assert (
            code == 2
            and f"{group}=mine is none of clrun's" in err
            and f"--config-dir DIR, where {group}/mine.yaml" in err
        )
