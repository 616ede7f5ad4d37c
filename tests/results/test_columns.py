"""Every column that clrun writes is described in columns.FILES, and every column described there is written."""

import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from helpers import summaries
from outcomes import outcome
from PIL import Image

from clrun.config import catalog
from clrun.report import compare, rows, runs
from clrun.results import collection, columns, run_files, tables
from clrun.results.outcome import RunStatus
from clrun.runs import train

STRATEGY_COLUMNS = "health.csv"  # to it strategies add columns of their own
RUNS = {
    "classes": ("strategy=ewc", "evaluate_every=2", "validation=0.2"),
    "rotated": ("split=rotated", "tasks=2", "scenario=domain", "average=ema", "measure=plasticity"),
    "joint": ("strategy=joint",),
    "online": (
        "measure=calibration",
        "predictions=true",
        "probe=true",
        "stream=online",
        "batch_size=400",
        "evaluate_every=2",
        "split.blurry=0.1",
    ),
    "aware": ("scenario=class", "measure=task_aware"),
    "pictures": ("dataset=image_folder", "dataset.test_fraction=0.5", "dataset.size=8", "tasks=1", "scenario=class"),
}


def described(file: str, column: str, keys: set[str]) -> bool:
    """Return whether FILES describes this column of this file, itself or by a name in angle brackets."""
    names = columns.FILES[file]
    general = {"task_<k>"} if re.fullmatch(r"task_\d+", column) else {"<key>"} if column in keys else set()
    return bool(({column} | general) & set(names))


@pytest.fixture(scope="module")
def finished(settings_of, tmp_path_factory):
    """Return the folder of finished runs, and all keys of their settings."""
    from clrun.runs import prepare

    folder = tmp_path_factory.mktemp("outputs")
    keys: set[str] = set()
    for name in ("cat", "dog"):
        (folder / "pictures" / name).mkdir(parents=True)
        for k in range(4):
            Image.new("RGB", (8, 8), (50 * k, 0, len(name))).save(folder / "pictures" / name / f"{k}.png")
    for name, overrides in RUNS.items():
        small = (f"dataset.root={folder / 'pictures'}",) if name == "pictures" else ()
        small += () if name == "online" else ("iterations=4",)
        small += ("model.widths=[8]", "device=cpu", "plots=false", f"outputs={folder}")
        prepared = prepare.prepare(settings_of(*overrides, *small))
        train.train_run(prepared, quiet=True)
        keys |= set(prepared.settings.values)
    return folder, keys


def test_every_column_that_is_written_is_described(finished):
    folder, keys = finished
    collection.collect(folder)
    run_files.write_table(folder / "report.csv", rows.table(rows.rows_of(runs.read(folder))))
    for path in [*folder.glob("*.csv"), *folder.glob("runs/*/*/*.csv")]:
        written = [c for c in pd.read_csv(path).columns if described(path.name, c, keys)]
        if path.name == STRATEGY_COLUMNS:
            assert written == [c for c in columns.FILES[path.name] if c in written] and {"steps", "loss"} <= {*written}
        else:
            assert written == list(pd.read_csv(path).columns), path


# With split=domains, in tests/runs/test_domain_runs.py; with split.circle, in tests/data/test_circle.py.
TESTED_ELSEWHERE = {"tasks.csv": {"domain"}, "class_counts.csv": {"first_angle", "last_angle"}}


def test_every_column_that_is_described_is_written(finished):
    folder, _ = finished
    collection.collect(folder)
    run_files.write_table(folder / "report.csv", rows.table(rows.rows_of(runs.read(folder))))
    one = rows.rows_of(runs.read(folder))[0]
    comparison = compare.Comparison(one, one, "forgetting", "")
    run_files.write_table(folder / "comparison.csv", compare.table([comparison]))
    for file, names in columns.FILES.items():
        paths: list[Path] = [*folder.glob(f"runs/*/*/{file}"), *folder.glob(file)]
        assert paths or file == "trials.csv", f"none of these runs writes {file}"
        written = {re.sub(r"^task_\d+$", "task_<k>", column) for path in paths for column in pd.read_csv(path).columns}
        assert not paths or set(names) - {"<key>"} - TESTED_ELSEWHERE.get(file, set()) <= written, file


def test_the_columns_of_a_file_stand_in_the_order_of_their_description(finished):
    folder, _ = finished
    for path in folder.glob("runs/*/*/*.csv"):
        names = list(columns.FILES[path.name])
        shared = [column for column in pd.read_csv(path).columns if column in names]
        assert shared == [name for name in names if name in shared], path


def test_the_metrics_of_a_report_are_described():
    for metric in runs.MEASURES:
        assert metric in columns.FILES["summary.csv"] or metric in columns.REPORT_METRIC_MEANINGS


def test_text_columns_of_a_summary_are_stated(finished):
    """The numbers of summary.csv are checked when it is read, so that a column of text that is not stated as such makes
    the files of all runs unreadable."""
    folder, _ = finished
    filled: set[str] = set()
    for path in summaries(outputs=folder):
        row = run_files.read_summary(path).iloc[0]
        filled |= {name for name in columns.SUMMARY_TAIL if pd.notna(row[name])}
    assert {"sample_count", "pillow_version", "device", "torch_version", "clrun_version"} <= filled
    made = outcome(folder / "diverged", status=RunStatus.DIVERGED, diverged_at="task 1 step 1", warnings=["it is odd"])
    row = tables.summary_row(replace(made, sample_count=9, pillow_version="12.0"))
    holds_text = {name for name in columns.SUMMARY_TAIL if isinstance(row[name], str)}
    assert holds_text | {"commit"} == set(columns.SUMMARY_TEXTS)  # commit: empty where clrun is installed as a wheel


def test_a_version_of_two_numbers_stays_text(tmp_path):
    made = outcome(tmp_path, pillow_version="12.10")
    run_files.write_summary(made)
    assert run_files.read_summary(tmp_path / "summary.csv").at[0, "pillow_version"] == "12.10"
    assert "12.10" in (tmp_path / "summary.csv").read_text()


def test_no_column_that_is_measured_has_the_name_of_a_key():
    """(But threads and device, of which summary.csv states what was used.) Else the value of the key would be lost, and
    runs that an older version has recorded with it could not be read."""
    known = catalog.read()
    keys = set(known.root) | {
        key for group, options in known.options.items() for name in options for key in known.knobs(group, name)
    }
    assert keys & set(columns.SUMMARY_TAIL) == {"threads", "device"}
