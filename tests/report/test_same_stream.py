"""Rows of one stream, however each was trained: comparisons, budgets, runs of earlier versions, and of searches."""

import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import summaries
from scipy import stats

from clrun.config import composition
from clrun.report import budget
from clrun.report.rows import rows_of
from clrun.report.runs import read
from clrun.results import run_files, searched_runs
from clrun.runs import prepare, train
from clrun.system.errors import UsageError

TINY = ("iterations=2", "model.widths=[4]", "device=cpu", "plots=false")
SWEEP = [
    (f"strategy={strategy}", f"lr={lr}", f"seed={seed}")
    for strategy in ("ewc", "finetune")
    for lr in (0.001, 0.01)
    for seed in (0, 1)
]


def trained(outputs: Path, *typed: str) -> prepare.Prepared:
    prepared = prepare.prepare(composition.compose(*TINY, *typed, f"outputs={outputs}"))
    train.train_run(prepared, quiet=True)
    return prepared


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Path:
    """What `clrun -m strategy=ewc,finetune lr=0.001,0.01 seed=0,1` trains, and joint and another network beside it."""
    outputs = tmp_path_factory.mktemp("outputs")
    for typed in SWEEP:
        trained(outputs, *typed)
    trained(outputs, "strategy=joint", "lr=0.001")
    trained(outputs, "strategy=finetune", "model.widths=[5]", "optimizer=sgd")
    return outputs


@pytest.fixture
def folder(swept, tmp_path) -> Path:
    shutil.copytree(swept / "runs", tmp_path / "runs")
    return tmp_path


@pytest.fixture
def clrun_report(clrun_report):
    """The same without plots, which are not looked at here."""
    return partial(clrun_report, "--no-plots")


def as_of_an_earlier_version(folder: Path, runs: list[Path]) -> None:
    """Write summaries as they were: without the column setup, whose value stood in the column stream."""
    for path in runs:
        row = run_files.read_summary(path / "summary.csv")
        row = row.assign(stream=row["setup"]).drop(columns=["setup", "cpu_seconds"])
        run_files.write_table(path / "summary.csv", row)


# ---------------------------------------------------------------- one stream


def test_a_label_of_one_stream_hides_no_rows_of_another(folder, clrun_report):
    """With ewc in another stream, where it is the only one and so called 'ewc', those of a sweep are still compared."""
    trained(folder, "strategy=ewc", "tasks=2")
    code, out, _ = clrun_report("--compare", "ewc", "finetune")
    assert code == 0 and out.count(" minus finetune") == 2


def test_rows_are_compared_whatever_their_training(clrun_report, folder):
    code, out, _ = clrun_report("--compare", "ewc lr=0.01", "finetune lr=0.001")
    runs = {(row.strategy, row.keys["lr"]): row.done.set_index("seed") for row in rows_of(read(folder))}
    ewc, fine = runs["ewc", 0.01], runs["finetune", 0.001]
    differences = ewc["average_accuracy"] - fine["average_accuracy"]
    (line,) = pd.read_csv(folder / "comparison.csv").itertuples()
    assert code == 0 and re.search(r"ewc lr=0.01 minus finetune .*lr=0.001: ", out)
    assert (line.n, line.mean) == (2, pytest.approx(differences.mean())) and line.measure == "average_accuracy"
    low, high = np.clip(stats.ttest_1samp(differences, 0).confidence_interval(0.95), -1, 1)
    assert [line.low, line.high] == pytest.approx([low, high])
    assert line.first == "ewc lr=0.01" and line.second.endswith("lr=0.001")


def test_several_rows_are_paired_by_what_they_share(clrun_report, folder):
    code, out, _ = clrun_report("--compare", "ewc", "finetune optimizer.name=adam")
    assert code == 0 and out.count(" minus ") == 2 and len(pd.read_csv(folder / "comparison.csv")) == 2
    for lr in ("0.001", "0.01"):
        assert re.search(rf"ewc lr={lr} minus finetune .*lr={lr}: ", out)
    (folder / "comparison.csv").unlink()
    code, out, err = clrun_report("--compare", "ewc", "finetune model.widths=[5]")
    assert (code, out) == (2, "") and "ewc is several rows" in err and not (folder / "comparison.csv").exists()


def test_references_are_of_the_same_training(folder, clrun_report):
    rows = {row.label.partition(" model")[0]: row for row in rows_of(read(folder))}
    assert rows["ewc lr=0.001"]["intransigence"].n == 1 and rows["ewc lr=0.01"]["intransigence"].n == 0
    assert rows["ewc lr=0.01"]["accuracy_kept"].n == 2
    _, out, _ = clrun_report()
    said = " ".join(out.split())
    assert "ewc lr=0.01: there is no joint with the same lr, epochs, network and so on" in said
    assert "type their command with strategy=joint" in said and "no finetune" not in said
    assert out.count("(stream ") == 1


def test_a_row_says_the_processor_time_beside_the_wall(folder, clrun_report):
    runs = read(folder)
    assert (runs["cpu_seconds"] > 0).all() and (runs["cpu_seconds"] < 3 * runs["wall_seconds"] + 0.1).all()
    clrun_report()
    assert "| wall_seconds | cpu_seconds |" in (folder / "report.md").read_text()


# ---------------------------------------------------------------- runs of earlier versions


@pytest.mark.parametrize("some", [slice(None), slice(3), slice(None, None, 2)])
def test_runs_of_an_earlier_version_are_on_the_stream_of_today(folder, some):
    today = read(folder)
    as_of_an_earlier_version(folder, [path.parent for path in summaries(outputs=folder)][some])
    (folder / "results.csv").unlink()
    found = read(folder)
    assert found["stream"].nunique() == 1 and found["setup"].tolist() == today["setup"].tolist()
    known = found["run"].notna() & today["cpu_seconds"].notna() & found["cpu_seconds"].notna()
    assert (found["stream"][known] == today["stream"][known]).all()
    for name in ("gap_closed", "accuracy_kept", "intransigence"):
        assert found[name].equals(today[name])


def test_files_that_may_have_changed_are_of_one_stream_only_where_that_is_known(folder):
    """Of a user's data, an earlier version's runs meet those of today by their setup alone."""
    runs = read(folder).assign(dataset="image_folder")
    old = runs["strategy"] == "ewc"
    runs.loc[old, "stream"] = runs["setup"]
    runs.loc[old, "setup"] = np.nan
    shutil.rmtree(folder / "runs")
    (folder / ".results.sqlite").unlink()
    run_files.write_table(folder / "results.csv", runs)
    assert read(folder)["stream"].nunique() == 1
    alone = runs[old | (runs["setup"] == runs["setup"][~old].iloc[-1])]  # one learning rate of finetune's at most
    run_files.write_table(folder / "results.csv", runs[old])
    assert read(folder)["stream"].nunique() == 2
    assert len(alone)


# ---------------------------------------------------------------- searches


def test_trials_stay_out(folder, clrun_report):
    runs = read(folder)
    trials = runs.loc[(runs["strategy"] == "ewc") & (runs["lr"] == 0.01), "run"].tolist()
    (folder / "tune" / "ewc-lr-1").mkdir(parents=True)
    searched_runs.add(folder / "tune" / "ewc-lr-1", trials[:1])
    searched_runs.add(folder / "tune" / "ewc-lr-1", trials)
    assert (folder / "tune" / "ewc-lr-1" / searched_runs.NAME).read_text().split() == trials
    said: list[str] = []
    assert set(runs["run"]) - set(read(folder, say=said.append)["run"]) == set(trials)
    assert said == ["2 runs of searches (clrun-tune) were left out; --trials shows them."]
    assert clrun_report("--trials")[0] == 0 and set(pd.read_csv(folder / "report.csv")["lr"]) == {0.001, 0.01, 0.1}
    assert clrun_report("--compare", "ewc lr=0.01", "joint")[0] == 2
    searched_runs.add(folder / "tune" / "ewc-lr-1", runs["run"])
    code, out, err = clrun_report()
    assert (code, out) == (2, "") and "all runs there are trials of searches; type --trials" in err


# ---------------------------------------------------------------- a budget

POINTS = {  # strategy -> average accuracy, seconds, megabytes
    "er": (0.9, 10.0, 2.0),
    "agem": (0.8, 5.0, 2.0),
    "ewc": (0.7, 5.0, 2.0),
    "si": (0.6, 2.0, 0.0),
    "mas": (0.95, 40.0, 0.5),
}


@pytest.fixture
def priced(tmp_path) -> Path:
    rows = [
        {"run": f"{name}{seed}", "strategy": name, "dataset": "mine", "seed": seed,
         "average_accuracy": accuracy + 0.01 * seed, "train_seconds": seconds, "state_mb": mb}
        for name, (accuracy, seconds, mb) in POINTS.items()
        for seed in range(3)
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv(tmp_path / "results.csv", index=False)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "within", "front"),
    [
        ("total_seconds<30,state_mb<=2", ["er", "agem", "ewc", "si"], ["er", "agem", "si"]),
        ("state_mb < 1", ["mas", "si"], ["mas", "si"]),
        ("total_seconds>=5", ["mas", "er", "agem", "ewc"], ["mas", "er", "agem"]),
        ("average_accuracy>0.75", ["mas", "er", "agem"], ["mas", "er", "agem"]),
        ("total_seconds<1", [], []),
        ("cpu_seconds<1", [], []),
    ],
)
def test_rows_that_keep_a_budget(priced, text, within, front):
    found = budget.section(rows_of(read(priced)), "average_accuracy", text)
    if not within:
        assert not found.tables and "No row keeps" in found.notes[0]
        assert ("2.00 (si)" in found.notes[0]) == text.startswith("total") and (
            "measured of none" in found.notes[0]
        ) != (text.startswith("total"))
        return
    (table,) = found.tables
    assert table["strategy"].tolist() == within
    assert table.loc[table["front"] == "*", "strategy"].tolist() == front
    assert (
        f"{len(within)} of 5 rows keep" in found.notes[0]
        and f"Highest average_accuracy: {within[0]}," in found.notes[2]
    )


def test_the_front_of_a_loss_and_rows_that_are_not_told_apart(priced):
    rows = rows_of(read(priced))
    assert budget.front(rows, "total_seconds", ["state_mb"]) == {row.group for row in rows if row.strategy == "si"}
    assert "Not told apart" not in budget.section(rows, "average_accuracy", "state_mb<9").notes[2]
    table = pd.read_csv(priced / "results.csv")
    table.loc[table["strategy"] == "er", "average_accuracy"] = [0.99, 0.93, 0.96]
    table.to_csv(priced / "results.csv", index=False)
    assert "paired by seed: mas." in budget.section(rows_of(read(priced)), "average_accuracy", "state_mb<9").notes[2]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("speed<3", "there is no measure speed"),
        ("state_mb", "type limits such as"),
        ("state_mb<few", "few is no number"),
        ("average_accuracy>90", "type average_accuracy>0.9 for 90 %"),
        ("", "type limits such as"),
    ],
)
def test_a_budget_that_cannot_be_read(text, said):
    with pytest.raises(UsageError, match=said):
        budget.limits(text)
