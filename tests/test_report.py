"""Statistics over seeds, against SciPy's, on a results.csv made by hand; and the pictures of real runs."""

import io
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from scipy import stats

from clrun import report, report_pictures, results, run
from clrun.errors import UsageError

ACCURACY = {  # (stream, group) -> accuracy by seed; nan: diverged
    ("s1", "e100"): [0.90, 0.92, 0.97, 0.93],
    ("s1", "e1000"): [0.95, 0.94, np.nan, np.nan],
    ("s1", "fine"): [0.60, 0.70, 0.65, 0.62, 0.90],
    ("s1", "top"): [0.99, 0.98, 0.97],
    ("s2", "other"): [0.10],
}
KEYS = {
    "e100": {"strategy": "ewc", "lambda": 100.0, "online": False},
    "e1000": {"strategy": "ewc", "lambda": 1000.0, "online": False},
    "fine": {"strategy": "finetune"},
    "top": {"strategy": "joint"},
    "other": {"strategy": "finetune", "tasks": 2},
}


def by_hand() -> pd.DataFrame:
    """A row a run."""
    rows = []
    for (stream, group), accuracies in ACCURACY.items():
        for seed, accuracy in enumerate(accuracies):
            status = "diverged" if np.isnan(accuracy) else "done"
            head = {"run": f"{group}{seed}", "group": group, "stream": stream, "status": status, "seed": seed}
            same = {"dataset": "digits", "split": "classes", "scenario": "task", "tasks": 5, "model": "mlp"}
            found = {"average_accuracy": accuracy, "learning_accuracy": accuracy + 0.01, "forgetting": 0.1 * seed}
            costs = {"train_seconds": 2.0, "consolidate_seconds": 0.5, "peak_memory_mb": 100.0 * seed, "device": "cpu"}
            rows.append({**head, **same, **KEYS[group], **found, **costs, "workers": seed})
    columns = [*results.HEAD, "stream", "lambda", "online", "workers", *results.TAIL]
    return pd.DataFrame(rows).reindex(columns=columns)


@pytest.fixture
def folder(tmp_path) -> Path:
    by_hand().to_csv(tmp_path / "results.csv", index=False)
    return tmp_path


@pytest.fixture
def clrun_report(folder, monkeypatch, capfd):
    """clrun_report("--sort", "n") -> exit code, standard output, standard error."""

    def answer(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["clrun-report", str(folder), *arguments])
        with pytest.raises(SystemExit) as caught:
            report.cli()
        return caught.value.code, *capfd.readouterr()

    return answer


def values(stream: str, group: str) -> np.ndarray:
    found = np.array(ACCURACY[stream, group])
    return found[np.isfinite(found)]


# ---------------------------------------------------------------- report.csv


@pytest.fixture
def table(clrun_report, folder) -> pd.DataFrame:
    assert clrun_report("--no-pictures")[0] == 0
    return pd.read_csv(folder / "report.csv")


def test_the_columns_are_those_of_the_contract(table):
    keys = ["strategy", "tasks", "lambda"]  # online is the same wherever it is taken, workers is of no consequence
    assert table.columns.tolist() == ["group", *keys, "metric", "n", "mean", "sd", "low", "high"]


@pytest.mark.parametrize("stream, group", [key for key in ACCURACY if key[1] != "other"])
def test_statistics_are_scipys(table, stream, group):
    (row,) = table[(table.group == group) & (table.metric == "average_accuracy")].itertuples()
    x = values(stream, group)
    low, high = stats.t.interval(0.95, len(x) - 1, loc=x.mean(), scale=stats.sem(x))
    assert row.n == len(x)
    assert [row.mean, row.sd, row.low, row.high] == pytest.approx([x.mean(), stats.tstd(x), low, high], rel=1e-12)


def test_one_run_has_no_interval(table):
    (row,) = table[(table.group == "other") & (table.metric == "average_accuracy")].itertuples()
    assert row.n == 1 and row.mean == 0.10 and np.isnan([row.sd, row.low, row.high]).all()


def test_equal_values_have_an_interval_of_no_width():
    assert report.statistic(pd.Series([0.5, 0.5, np.nan])) == (2, 0.5, 0.0, 0.5, 0.5)


def test_diverged_runs_are_counted_and_said_and_in_no_mean(clrun_report, table, folder):
    found = table[table.metric == "diverged"].set_index("group")
    assert found.loc["e1000", ["n", "mean"]].tolist() == [4, 0.5] and found.loc["e100", "mean"] == 0
    of_e1000 = table[(table.group == "e1000") & (table.metric != "diverged")]
    assert set(of_e1000.n) <= {1, 2} and of_e1000.set_index("metric").loc["forgetting", "mean"] == pytest.approx(0.05)
    _, out, _ = clrun_report("--no-pictures")
    assert "ewc lambda=1000: 2 of 4 runs diverged" in out.replace("tasks=5 ", "")
    assert "2 of 4 runs diverged" in (folder / "report.md").read_text()


def test_a_group_of_which_all_diverged_is_still_a_row():
    runs = report.with_derived(by_hand().assign(status="diverged"))
    found = report.table(report.rows_of(runs))
    assert set(found.metric) == {"diverged"} and set(found["mean"]) == {1.0} and len(found) == len(ACCURACY)


def test_the_gap_closed_is_paired_by_seed(table):
    (row,) = table[(table.group == "e100") & (table.metric == "gap_closed")].itertuples()
    ewc, fine, top = (values("s1", group)[:3] for group in ("e100", "fine", "top"))  # the seeds that all three have
    assert row.n == 3 and row.mean == pytest.approx((ewc - fine).mean() / (top - fine).mean())
    assert row.sd == pytest.approx((ewc - fine).std(ddof=1) / (top - fine).mean())
    assert set(table[table.metric == "gap_closed"].group) == {"e100", "e1000"}  # joint and finetune are the gap's ends


def test_intransigence_is_what_joint_learns_better(table):
    (row,) = table[(table.group == "fine") & (table.metric == "intransigence")].itertuples()
    assert row.n == 3 and row.mean == pytest.approx((values("s1", "top") - values("s1", "fine")[:3] - 0.01).mean())
    assert not {"other", "top"} & set(table[table.metric == "intransigence"].group)  # no joint on the other's stream


def test_no_gap_where_joint_is_not_better():
    runs = by_hand()
    runs.loc[runs.group == "top", "average_accuracy"] = 0.1
    assert report.with_derived(runs)["gap_closed"].isna().all()


def test_costs(table):
    found = table[table.group == "e100"].set_index(["metric"])
    x = values("s1", "e100")
    assert found.loc["accuracy_per_second", "mean"] == pytest.approx(x.mean() / 2.5)
    assert found.loc["accuracy_per_mb", "n"] == 3  # of the run with 0 MB it is not known
    assert found.loc["accuracy_per_mb", "mean"] == pytest.approx((x[1:] / [100, 200, 300]).mean())
    assert "accuracy_per_wh" not in found.index


def test_streams_are_never_mixed(clrun_report, folder):
    runs = by_hand().assign(group="same")
    rows = report.rows_of(report.with_derived(runs))
    assert sorted(len(row.done) + row.diverged for row in rows) == [1, 16]
    assert [{row.stream for row in part} for part in report.streams(rows)] == [{"s1"}, {"s2"}]
    clrun_report("--no-pictures")
    text = (folder / "report.md").read_text()
    assert text.count("## ") == 2 and "(stream s1)" in text and "(stream s2)" in text


# ---------------------------------------------------------------- sorting, Markdown, LaTeX


@pytest.mark.parametrize(
    "arguments, order",
    [
        ([], ["top", "e1000", "e100", "fine", "other"]),
        (["--reverse"], ["other", "fine", "e100", "e1000", "top"]),
        (["--sort", "lambda"], ["e100", "e1000", "fine", "top", "other"]),
        (["--sort", "strategy"], ["e100", "e1000", "fine", "other", "top"]),
        (["--sort", "gap_closed"], ["e1000", "e100", "fine", "top", "other"]),
    ],
)
def test_sorting(clrun_report, folder, arguments, order):
    assert clrun_report("--no-pictures", *arguments)[0] == 0
    assert list(dict.fromkeys(pd.read_csv(folder / "report.csv").group)) == order


def test_markdown_and_latex_say_the_same(clrun_report, folder):
    clrun_report("--no-pictures")
    markdown, latex = (folder / "report.md").read_text(), (folder / "report.tex").read_text()
    x = values("s1", "e100")
    low, high = stats.t.interval(0.95, len(x) - 1, loc=x.mean(), scale=stats.sem(x))
    for text in (markdown, latex):
        assert f"[{100 * low:.1f}, {100 * high:.1f}]" in text and f"{100 * x.std(ddof=1):.1f}" in text
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines[:6]}) == 1 and lines[1] == "|" + " --- |" * (lines[0].count("|") - 1)
    assert "average\\_accuracy" in latex and "$\\pm$" in latex and "±" not in latex


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--sort", "speed"], "--sort speed: rows are sorted by"),
        (["--measure", "speed"], "--measure speed"),
        (["--compare", "ewc", "si"], "--compare si: there is no such row"),
        (["--compare", "ewc", "joint"], "several rows"),
        (["--compare", "ewc lambda=100", "tasks=2"], "no stream in common"),
        (["--nothing"], "--nothing"),
    ],
)
def test_mistakes_are_one_paragraph(clrun_report, folder, arguments, said):
    code, out, err = clrun_report(*arguments)
    assert (code, out) == (2, "") and said in err and "Traceback" not in err
    assert [path.name for path in folder.iterdir()] == ["results.csv"]


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no finished runs"):
        report.read(tmp_path / "nowhere")


# ---------------------------------------------------------------- two rows


def test_a_comparison_is_scipys_paired_test(clrun_report):
    code, out, _ = clrun_report("--compare", "ewc lambda=100", "finetune tasks=5")
    ewc, fine = values("s1", "e100"), values("s1", "fine")[:4]
    low, high = stats.ttest_rel(ewc, fine).confidence_interval(0.95)
    said = f"{100 * (ewc - fine).mean():.1f} (95 % interval [{100 * low:.1f}, {100 * high:.1f}], n = 4 pairs by seed)"
    assert code == 0 and said in out and "excludes 0" in out


def test_too_few_pairs_are_said_to_be_too_few(clrun_report):
    _, out, _ = clrun_report("--compare", "e100", "e1000")
    assert "n = 2" in out and "too small to tell" in out and "2 diverged runs are left out" in out
    runs = report.with_derived(by_hand())
    rows = {row.group: row for row in report.rows_of(runs[(runs.seed == 0) | (runs.group != "top")])}
    assert "too few to tell anything" in report.verdict(rows["top"], rows["fine"], "average_accuracy")


def test_how_many_pairs_would_do():
    few = report.Statistic(3, 1.0, 2.0, -4.0, 6.0)
    n = report.enough(few)
    half = [stats.t.ppf(0.975, m - 1) * 2.0 / np.sqrt(m) for m in (n - 1, n)]
    assert half[1] < 1.0 <= half[0] and f"about {n} pairs" in report.judged(few)


# ---------------------------------------------------------------- pictures


@pytest.fixture
def trained(prepared_of, tmp_path) -> Path:
    """Six real runs in a folder."""
    for options in ("strategy=finetune", "strategy=joint", *(f"lambda={x}" for x in (0, 10, 1000))):
        for seed in (0, 1) if options == "lambda=10" else (0,):
            prepared = prepared_of("iterations=3", "model.widths=[8]", "device=cpu", f"seed={seed}", options)
            run.train(prepared, quiet=True)
    return tmp_path


def drawn(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer)
    return buffer.getvalue()


def test_pictures_of_real_runs(trained):
    report.command([str(trained)])
    names = ("first_task", "average_accuracy", "matrices", "accuracy_against_lambda", "accuracy_against_cost")
    assert {path.stem for path in (trained / "report").iterdir()} == set(names)
    rows = report.rows_of(report.read(trained))
    lines = report_pictures.references(trained, rows)
    assert lines["chance"] == 0.5 and set(lines) == {"joint", "finetune", "chance"}
    (axes,) = report_pictures.knob_picture(rows, "lambda", lines).axes
    curve = next(line for line in axes.lines if line.get_label() == "ewc")
    assert curve.get_xdata().tolist() == [0, 10, 1000] and axes.get_xscale() == "symlog"
    found = {row.keys["lambda"]: row["average_accuracy"].mean for row in rows if row.keys["strategy"] == "ewc"}
    assert curve.get_ydata() == pytest.approx([100 * found[x] for x in (0, 10, 1000)])


def test_the_first_tasks_curve_is_the_mean_of_its_column(trained):
    rows = [row for row in report.rows_of(report.read(trained)) if len(row.done) == 2]
    matrices = {row.group: report_pictures.matrices_of(trained, row) for row in rows}
    (axes,) = report_pictures.curves_picture(rows, matrices, "task_1", "accuracy of task 1", {}).axes
    expected = [100 * np.mean([m["task_1"][k] for m in matrices[rows[0].group]]) for k in range(1, 6)]
    assert axes.lines[0].get_ydata() == pytest.approx(expected) and len(axes.collections) == 1


@pytest.mark.parametrize(
    "options, expected",
    [
        (("scenario=class",), 0.1),
        (("scenario=domain",), 0.5),
        (("scenario=task",), 0.5),
        (("split=permuted", "scenario=task"), 0.1),
    ],
)
def test_chance_is_what_the_run_itself_says(prepared_of, tmp_path, options, expected):
    prepared = prepared_of("iterations=1", "model.widths=[4]", "device=cpu", "strategy=finetune", *options)
    run.train(prepared, quiet=True)
    assert report_pictures.chance(prepared.directory) == pytest.approx(prepared.chance) == pytest.approx(expected)
