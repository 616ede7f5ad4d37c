"""clrun-predict: the final network answers as it did when the run was measured."""

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from clrun.commands import console, predict
from clrun.runs.train import train_run

SMALL = ("model.widths=[16]", "device=cpu", "iterations=30", "tasks=2", "keep_checkpoint=true", "pictures=false")


@pytest.fixture
def answer(capsys):
    """answer(directory, "a.png") -> exit code, rows, standard error."""

    def predicted(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            console.end_with(lambda _: predict.command(list(map(str, arguments))))
        out, err = capsys.readouterr()
        return caught.value.code, list(csv.DictReader(out.splitlines())), err

    return predicted


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
    (prepared.directory / "checkpoint.safetensors").unlink()
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
