"""Runs on a folder of pictures that has changed say what has changed."""

import shutil

import pandas as pd
import pytest
from PIL import Image

from clrun.results import picture_counts, run_files
from clrun.runs import changed_pictures, prepare, train


def test_changes_are_counted():
    before = {
        ("train", "cat"): (2, "a"),
        ("train", "dog"): (3, "b"),
        ("test", "cat"): (1, "c"),
        ("test", "eel"): (1, "d"),
    }
    now = {("train", "cat"): (5, "x"), ("train", "dog"): (2, "y"), ("test", "cat"): (1, "z"), ("test", "eel"): (1, "d")}
    assert picture_counts.changes(before, now) == [
        "3 pictures were added to cat in train",
        "1 picture was removed from dog in train",
        "pictures of cat in test were changed",
    ]
    assert picture_counts.changes(now, now) == []


@pytest.mark.parametrize(
    "text", [b"", b"part,class\n", b"\xff\xfe\x00", b"part,class,pictures,digest,settings\na,b,c,d,e\n"]
)
def test_a_damaged_file_is_as_none(text, tmp_path):
    (tmp_path / "pictures.csv").write_bytes(text)
    assert picture_counts.read_counts(tmp_path) is None


def test_a_run_says_which_pictures_have_changed(settings_of, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("null", "dog"):
        (tmp_path / "in" / name).mkdir(parents=True)
        for k in range(4):
            Image.new("RGB", (8, 8), (50 * k, 0, len(name))).save(tmp_path / "in" / name / f"{k}.png")

    def prepared_now(*more):
        """Prepare a run on a copy of the folder as it is now: what a process has read, it does not read again."""
        copy = shutil.copytree(tmp_path / "in", tmp_path / f"copy {len(list(tmp_path.iterdir()))}")
        given = (
            "dataset=image_folder",
            f'dataset.root="{copy}"',
            "dataset.test_fraction=0.5",
            "dataset.size=8",
        )
        small = ("tasks=1", "scenario=class", "iterations=2", "model.widths=[4]", "device=cpu", "plots=false")
        return prepare.prepare(settings_of(*given, *small, f"outputs={tmp_path / 'out'}", *more))

    first = prepared_now()
    assert changed_pictures.since_an_earlier_run(first) is None
    train.train_run(first, quiet=True)
    summary = pd.read_csv(first.directory / "summary.csv")
    assert summary.at[0, "sample_count"] == 8 and str(summary.at[0, "pillow_version"]) == Image.__version__
    assert run_files.finished(prepared_now().directory)
    Image.new("RGB", (8, 8), (250, 0, 0)).save(tmp_path / "in" / "null" / "9.png")
    Image.new("RGB", (8, 8), (251, 0, 0)).save(tmp_path / "in" / "null" / "8.png")
    said = changed_pictures.since_an_earlier_run(prepared_now())
    assert said is not None and said.startswith(f"The pictures are not those of {first.directory.name}: ")
    assert "1 picture was added to null in train, " in said and "1 picture was added to null in test" in said
    assert changed_pictures.since_an_earlier_run(prepared_now("iterations=3")) is None, "other settings"
    assert changed_pictures.since_an_earlier_run(prepared_now("seed=1")) is None, "another seed"
