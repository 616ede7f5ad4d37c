"""Statistics over seeds, against SciPy's, on a results.csv made by hand."""

import errno
import io
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from results_by_hand import ACCURACY, by_hand, values
from rich.console import Console
from scipy import stats

from clrun.commands import report
from clrun.report import figures, tables
from clrun.report.intervals import statistic, statistics_of
from clrun.report.rows import Row, heading, rows_of, streams
from clrun.report.rows import table as report_table
from clrun.report.runs import MEASURES, completed, read, with_derived
from clrun.system.errors import UsageError


@pytest.fixture
def folder(tmp_path) -> Path:
    by_hand().to_csv(tmp_path / "results.csv", index=False)
    return tmp_path


# ---------------------------------------------------------------- report.csv


@pytest.fixture
def table(clrun_report, folder) -> pd.DataFrame:
    assert clrun_report("--no-plots")[0] == 0
    return pd.read_csv(folder / "report.csv")


def test_the_columns_are_those_of_the_contract(table):
    keys = ["strategy", "tasks", "lambda"]  # online is the same wherever it is taken, workers is of no consequence
    assert table.columns.tolist() == ["group", *keys, "metric", "n", "mean", "sd", "low", "high"]


@pytest.mark.parametrize("stream, group", [key for key in ACCURACY if key[1] != "other"])
def test_statistics_are_scipys(table, stream, group):
    (row,) = table[(table.group == group) & (table.metric == "average_accuracy")].itertuples()
    x = values(stream, group)
    low, high = np.clip(stats.t.interval(0.95, len(x) - 1, loc=x.mean(), scale=stats.sem(x)), 0, 1)
    assert row.n == len(x)
    assert [row.mean, row.sd, row.low, row.high] == pytest.approx([x.mean(), stats.tstd(x), low, high], rel=1e-12)


def test_one_run_has_no_interval(table):
    (row,) = table[(table.group == "other") & (table.metric == "average_accuracy")].itertuples()
    assert row.n == 1 and row.mean == 0.10 and np.isnan([row.sd, row.low, row.high]).all()


def test_equal_values_have_an_interval_of_no_width():
    assert statistic(pd.Series([0.5, 0.5, np.nan])) == (2, 0.5, 0.0, 0.5, 0.5)


def test_diverged_runs_are_counted_and_said_and_in_no_mean(clrun_report, table, folder):
    found = table[table.metric == "diverged"].set_index("group")
    assert found.loc["e1000", ["n", "mean"]].tolist() == [4, 0.5] and found.loc["e100", "mean"] == 0
    of_e1000 = table[(table.group == "e1000") & (table.metric != "diverged")]
    assert set(of_e1000.n) <= {1, 2} and of_e1000.set_index("metric").loc["forgetting", "mean"] == pytest.approx(0.05)
    _, out, _ = clrun_report("--no-plots")
    assert "ewc lambda=1000: 2 of 4 runs diverged" in out
    assert "2 of 4 runs diverged" in (folder / "report.md").read_text()


def test_a_group_of_which_all_diverged_is_still_a_row():
    runs = with_derived(by_hand().assign(status="diverged"))
    found = report_table(rows_of(runs))
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
    assert with_derived(runs)["gap_closed"].isna().all()


def test_what_is_kept_for_what_it_costs(table):
    """Each by its formula in clrun/report/runs.py, paired by seed; seed 0 keeps nothing beside its network."""
    found = table[table.group == "e100"].set_index(["metric"])
    kept = values("s1", "e100") - values("s1", "fine")[:4]
    expected = {
        "accuracy_kept": kept,
        "total_seconds": np.full(4, 4.5),
        "relative_seconds": np.full(4, 4.5 / 2.5),
        "kept_per_second": kept / 4.5,
        "kept_per_mb": kept[1:] / [0.1, 0.2, 0.3],
    }
    for name, x in expected.items():
        assert found.loc[name, "n"] == len(x)
        assert found.loc[name, ["mean", "sd"]].tolist() == pytest.approx([x.mean(), x.std(ddof=1)], abs=1e-12)
    assert not {"kept_per_wh", "carbon_g", "money"} & set(table.metric)
    assert not {"fine", "other"} & set(table[table.metric == "accuracy_kept"].group)  # what it is counted from
    assert set(table[(table.metric == "relative_seconds") & (table["mean"] == 1)].group) == {"fine", "other"}


def test_prices_afterwards(clrun_report, folder):
    """In place of what the runs were told; energy is known of some runs alone."""
    runs = by_hand().assign(carbon_g=5.0, wall_seconds=1800.0)
    runs.loc[runs.seed > 0, "energy_wh"] = runs.seed * 10.0
    runs.to_csv(folder / "results.csv", index=False)
    assert clrun_report("--no-plots", "--grams-per-kwh", "400", "--price-per-hour", "3")[0] == 0
    found = pd.read_csv(folder / "report.csv").set_index(["group", "metric"])
    x = 0.4 * np.array([10.0, 20.0, 30.0])
    low, high = stats.t.interval(0.95, 2, loc=x.mean(), scale=stats.sem(x))
    assert found.loc[("e100", "carbon_g"), ["n", "mean", "low", "high"]].tolist() == pytest.approx(
        [3, 8, max(low, 0), high]
    )
    assert found.loc[("e100", "money"), ["n", "mean", "sd"]].tolist() == [4, 1.5, 0]
    kept = (values("s1", "e100") - values("s1", "fine")[:4])[1:] / [10, 20, 30]
    assert found.loc[("e100", "kept_per_wh"), ["n", "mean"]].tolist() == pytest.approx([3, kept.mean()])
    text = (folder / "report.md").read_text()
    assert "| 8.00 ± 4.00 |" in text and "| 1.50 |" in text


@pytest.mark.parametrize(("overall", "shown"), [(0.5, True), (0.92, False)])
def test_both_definitions_of_the_incremental_accuracy_where_tasks_differ_in_size(overall, shown):
    runs = by_hand()
    runs = runs[runs.group == "e100"].assign(scenario="class", overall_accuracy=runs.average_accuracy)
    runs = runs.assign(average_incremental_accuracy=0.92, overall_incremental_accuracy=overall)
    section = tables.section(rows_of(with_derived(runs)), "average_accuracy", {})
    assert ("overall_incremental_accuracy" in section.tables[0]) is shown
    assert any("differ in size" in remark for remark in section.remarks) is shown


def test_without_energy_there_is_no_carbon(clrun_report, folder):
    _, out, _ = clrun_report("--no-plots", "--grams-per-kwh", "400")
    assert "carbon_g is empty" in out and "carbon_g" not in set(pd.read_csv(folder / "report.csv").metric)


def test_a_table_by_hand_may_leave_out_what_follows(tmp_path, monkeypatch, capfd):
    """No group, no stream, no status, no costs: groups and streams follow from the keys."""
    head = "run,strategy,dataset,scenario,tasks,seed,epochs,lambda,average_accuracy\n"
    ewc = [0.5, 0.75, 0.6]
    lines = [f"a{i},ewc,mine,task,5,{i},3,10,{x}\n" for i, x in enumerate(ewc)]
    lines += [f"b{i},finetune,mine,task,5,{i},3,,{x / 2}\n" for i, x in enumerate(ewc)]
    lines += [f"c{i},ewc,mine,task,5,{i},4,10,{x}\n" for i, x in enumerate(ewc)]
    (tmp_path / "results.csv").write_text(head + "".join(lines))
    report.command([str(tmp_path), "--no-plots"])
    table = pd.read_csv(tmp_path / "report.csv")
    found = table[(table.metric == "average_accuracy") & (table.strategy == "ewc")]
    low, high = stats.t.interval(0.95, 2, loc=np.mean(ewc), scale=stats.sem(ewc))
    assert found[["n", "mean", "low", "high"]].to_numpy() == pytest.approx(np.array([[3, np.mean(ewc), low, high]] * 2))
    kept = table[table.metric == "accuracy_kept"]
    assert kept["mean"].tolist() == [pytest.approx(np.mean(ewc) / 2)]  # finetune was trained for as many epochs alone
    text = (tmp_path / "report.md").read_text()
    assert text.count("## mine") == 1 and "there is no finetune with the same lr, epochs" in text


def test_streams_are_never_mixed(clrun_report, folder):
    runs = by_hand().assign(group="same")
    rows = rows_of(with_derived(runs))
    assert sorted(len(row.done) + row.diverged for row in rows) == [1, 16]
    assert [{row.stream for row in part} for part in streams(rows)] == [{"s1"}, {"s2"}]
    clrun_report("--no-plots")
    text = (folder / "report.md").read_text()
    assert text.count("## ") == 2 and "(stream s1)" in text and "(stream s2)" in text


def test_a_stream_tells_what_differs_within_it(clrun_report, folder):
    """What differs between streams alone stands in the headings, and in report.csv; a knob that is the same for all
    runs of its strategy is in no label."""
    runs = by_hand().assign(epochs=3, c=np.nan)
    runs.loc[runs.stream == "s2", "epochs"] = 7
    si = runs[runs.group == "fine"].assign(group="si", strategy="si", c=0.5)
    runs = pd.concat([runs, si.assign(run="si" + si["run"])])
    runs.to_csv(folder / "results.csv", index=False)
    rows = rows_of(with_derived(completed(pd.read_csv(folder / "results.csv", dtype={"group": str}))))
    assert sorted(row.label for row in rows) == [
        "ewc lambda=100",
        "ewc lambda=1000",
        "finetune",
        "finetune",
        "joint",
        "si",
    ]
    assert [heading(part) for part in streams(rows)] == [
        "digits, classes, scenario task, tasks 5, epochs=3 (stream s1)",
        "digits, classes, scenario task, tasks 2, epochs=7 (stream s2)",
    ]
    clrun_report("--no-plots")
    assert list(pd.read_csv(folder / "report.csv"))[:5] == ["group", "strategy", "tasks", "lambda", "epochs"]
    heads = [line for line in (folder / "report.md").read_text().splitlines() if line.startswith("| strategy")]
    assert heads[0].startswith("| strategy | lambda | n |") and heads[2].startswith("| strategy | n |")


# ---------------------------------------------------------------- sorting, Markdown, LaTeX


@pytest.mark.parametrize(
    "arguments, order",
    [
        ([], ["e100", "e1000", "other", "fine", "top"]),  # by settings, never by test accuracy unless asked for
        (["--reverse"], ["top", "fine", "other", "e1000", "e100"]),
        (["--sort", "average_accuracy"], ["top", "e1000", "e100", "fine", "other"]),
        (["--sort", "lambda"], ["e100", "e1000", "fine", "top", "other"]),
        (["--sort", "strategy"], ["e100", "e1000", "fine", "other", "top"]),
        (["--sort", "gap_closed"], ["e1000", "e100", "fine", "top", "other"]),
    ],
)
def test_sorting(clrun_report, folder, arguments, order):
    assert clrun_report("--no-plots", *arguments)[0] == 0
    assert list(dict.fromkeys(pd.read_csv(folder / "report.csv").group)) == order


def test_rows_with_validation_accuracy_are_sorted_by_it(clrun_report, folder):
    """The best on validation data first; and the report says by what it is sorted."""
    clrun_report("--no-plots")
    assert "Rows are sorted by their settings." in (folder / "report.md").read_text()
    runs = by_hand()
    runs["validation_accuracy"] = 1 - runs["average_accuracy"]
    runs.to_csv(folder / "results.csv", index=False)
    clrun_report("--no-plots")
    order = list(dict.fromkeys(pd.read_csv(folder / "report.csv").group))
    assert order == ["other", "fine", "e100", "e1000", "top"]
    assert "Rows are sorted by validation_accuracy." in (folder / "report.md").read_text()


def test_markdown_and_latex_say_the_same(clrun_report, folder):
    clrun_report("--no-plots")
    markdown, latex = (folder / "report.md").read_text(), (folder / "report.tex").read_text()
    x = values("s1", "e100")
    low, high = stats.t.interval(0.95, len(x) - 1, loc=x.mean(), scale=stats.sem(x))
    assert f"[{100 * low:.1f}, {100 * high:.1f}]" in markdown
    assert f"ewc & 100 & 4 & {100 * x.mean():.1f} & $\\pm$ {100 * x.std(ddof=1):.1f} & " in latex
    assert f"| {100 * x.mean():.1f} | {100 * x.std(ddof=1):.1f} |" in markdown
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines[:6]}) == 1 and lines[1] == "|" + " --- |" * (lines[0].count("|") - 1)
    assert "After ± stands the standard deviation" in markdown and "% After $\\pm$ stands" in latex
    assert "average\\_accuracy" in latex and "$\\pm$" in latex and "±" not in latex


@pytest.mark.parametrize(
    "flags, reason",
    [
        (["--columns", "average_accuracy,acc"], "there is no column acc; there are n, strategy"),
        (["--columns", ""], "there is no column"),
        (["--names", "forgetting"], "type what is called how"),
        (["--names", "sii=SI"], "nothing here is called sii; there are n,"),
    ],
)
def test_a_wrong_name_of_report_tex_is_refused(clrun_report, folder, flags, reason):
    code, _, error = clrun_report("--no-plots", *flags)
    assert code == 2 and reason in error and error.count("\n") == 1
    assert [path.name for path in folder.iterdir()] == ["results.csv"]


def test_statistics_of_all_groups_at_once_are_those_of_each():
    random = np.random.default_rng(0)
    values, groups = random.normal(size=(60, 4)), random.integers(0, 7, 60)
    values[random.random((60, 4)) < 0.3] = np.nan
    values[groups == 3] = np.nan
    groups[groups == 5] = 6
    groups[0] = 5
    fields = statistics_of(values, groups, 8)
    for group in range(8):
        for measure in range(4):
            alone = statistic(pd.Series(values[groups == group, measure]))
            together = [field[group, measure] for field in fields]
            assert together == pytest.approx(list(alone), rel=1e-12, nan_ok=True)


def test_no_interval_goes_beyond_what_there_can_be(table):
    """Two values near 100 %, whose t-interval would reach 101 %: in a group alone, and in all groups at once."""
    (row,) = table[(table.group == "e1000") & (table.metric == "average_accuracy")].itertuples()
    assert row.mean < row.high == 1 and stats.t.interval(0.95, 1, loc=row.mean, scale=row.sd / np.sqrt(2))[1] > 1
    assert statistic(pd.Series([0.01, 0.03]), (0, 1)).low == 0
    assert table[table.metric == "state_mb"].low.min() == 0


def test_rows_know_what_their_runs_say():
    for row in ordered_rows():
        assert row.counts == (len(row.done), int((row.runs["status"] == "diverged").sum()))
        assert {name: statistic.n for name, statistic in row.statistics.items() if statistic.n} == {
            name: int(row.done[name].notna().sum()) for name in MEASURES if row.done[name].notna().any()
        }
        alone = Row(row.stream, row.group, row.keys, row.stream_keys, row.label_keys, row.runs)
        for name in MEASURES:
            assert row[name] == pytest.approx(alone[name], rel=1e-12, nan_ok=True)


@pytest.mark.parametrize("width", [60, 80, 240])
def test_a_narrow_terminal_shows_every_cell(width):
    """Wide tables go on below, with the columns that say which row it is."""
    part = streams(ordered_rows())[0]
    made = tables.section(part, "average_accuracy", {"joint": 0.98, "chance": 0.5})
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, legacy_windows=False)
    made.print(console)
    text = console.file.getvalue()
    assert max(len(line) for line in text.splitlines() if "minus" not in line) <= max(width, 80)
    assert "…" not in text
    for lines in made.tables:
        for cell in lines.to_numpy().ravel():
            assert cell in text
    assert text.count("strategy") >= (4 if width == 60 else 2)


def ordered_rows() -> list[Row]:
    return rows_of(with_derived(completed(by_hand())))


@pytest.mark.parametrize(
    "measure, x, expected",
    [
        ("average_accuracy", [0.5, 0.6], "55.0 ± 7.1"),
        ("gap_closed", [0.5, 0.5], "50.0 ± 0.0"),
        ("kept_per_second", [0.0123, 0.0123], "1.23"),  # points a second
        ("kept_per_mb", [1.0, 30.0], "1550 ± 2051"),
        ("kept_per_mb", [0.0001, 0.01], "0.505 ± 0.700"),
        ("state_mb", [0.1, 0.1], "0.100"),
        ("money", [0.00002, 0.00002], "2.00e-05"),
        ("total_seconds", [1234.5], "1234"),
        ("carbon_g", [0.0, 0.0], "0"),
        ("energy_wh", [np.nan], ""),
    ],
)
def test_numbers_for_readers(measure, x, expected):
    assert tables.statistic_text(measure, statistic(pd.Series(x))) == expected


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
@pytest.mark.parametrize("name", ["report.csv", "report.md", "report.tex", "summary.png"])
def test_a_table_is_printed_before_its_file_cannot_be_written(clrun_report, monkeypatch, name, number):
    renamed = os.replace

    def refused(temporary: Path, path: Path) -> None:
        if Path(path).name == name or (name.endswith(".png") and Path(path).suffix == ".png"):
            raise OSError(number, os.strerror(number), str(temporary), None, str(path))
        renamed(temporary, path)

    arguments = ("--no-plots",) if not name.endswith(".png") else ()
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refused)
        code, out, err = clrun_report(*arguments)
    said = [line for line in err.splitlines() if os.strerror(number) in line]
    assert code == 1 and "lambda=100" in out and "Written" not in out
    assert len(said) == 1 and ".tmp" not in said[0] and Path(name).suffix in said[0] and "Traceback" not in err
    assert clrun_report(*arguments)[0] == 0


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--sort", "speed"], "--sort speed: rows are sorted by"),
        (["--measure", "speed"], "--measure speed"),
        (["--compare", "ewc", "si"], "--compare si: there is no such row"),
        (["--compare", "ewc", "joint"], "several rows"),
        (["--compare", "ewc lambda=100", "tasks=2"], "no stream in common"),
        (["--nothing"], "--nothing"),
        (["--grams-per-kwh", "-1"], "--grams-per-kwh"),
        (["--price-per-hour", "nan"], "--price-per-hour"),
    ],
)
def test_mistakes_are_one_paragraph(clrun_report, folder, arguments, said):
    code, out, err = clrun_report(*arguments)
    assert (code, out) == (2, "") and said in err and "Traceback" not in err
    assert [path.name for path in folder.iterdir()] == ["results.csv"]


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no finished runs"):
        read(tmp_path / "nowhere")


def test_a_heading_says_where_the_stream_was_cut():
    rows = rows_of(with_derived(completed(by_hand().assign(first_tasks=2))))
    assert "scenario task, tasks 5, the first 2 of them" in heading(rows[:1])
    assert "of them" not in heading(rows_of(with_derived(completed(by_hand())))[:1])


def test_what_is_over_fewer_seeds_is_said(clrun_report):
    _, out, _ = clrun_report("--no-plots")
    said = [line for line in out.splitlines() if "fewer than n" in line]
    assert said == [
        "WARNING: ewc lambda=100: gap_closed and intransigence are over the seeds that joint and finetune have, too: "
        "fewer than n."
    ]


def test_pictures_of_an_earlier_report_go(folder):
    old = [folder / "report" / place / "average_accuracy.png" for place in ("", "digits-classes-task-5tasks-old")]
    for path in old:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("old")
    figures.draw(folder, rows_of(with_derived(completed(by_hand()))))
    assert not any(path.exists() for path in old) and list((folder / "report").glob("*/accuracy_against_cost.png"))


@pytest.mark.parametrize(
    "change, said",
    [
        ({"average_accuracy": "50%"}, "average_accuracy=50% is no number"),
        ({"average_accuracy": 98.1}, "average_accuracy=98.1 cannot be: it is from 0 to 1; write 98.1 % as 0.981"),
        ({"train_seconds": -1.0}, "train_seconds=-1.0 cannot be"),
        ({"state_mb": np.inf}, "state_mb=inf cannot be"),
        ({"strategy": None}, "needs a strategy"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused(clrun_report, folder, change, said):
    by_hand().astype(object).assign(**change).to_csv(folder / "results.csv", index=False)
    code, _, err = clrun_report()
    assert code == 2 and said in err and err.count("\n") == 1
    assert [path.name for path in folder.iterdir()] == ["results.csv"]


def test_letters_that_no_font_has_are_one_sentence(clrun_report, folder):
    """In all pictures together, and no warning of Matplotlib's."""
    letters = "\U0001e7f5\U0001e7f6"  # code points that are assigned to no character
    runs = by_hand()
    lists = runs.group.map({"e100": f'[["{letters}"]]', "e1000": '[["x"]]'}).fillna('[["y"]]')
    runs.assign(**{"split.classes": lists}).to_csv(folder / "results.csv", index=False)
    code, _, err = clrun_report()
    assert code == 0 and err.count("\n") == 1
    assert f"no font here has {letters}, so the plots of the report show boxes" in err
