"""clrun-report --compare: two rows paired by seed, against SciPy's tests, on a results.csv made by hand."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from results_by_hand import by_hand, values
from scipy import stats

from clrun.report.compare import conclusion, verdict
from clrun.report.intervals import Statistic, sufficient_n
from clrun.report.rows import rows_of
from clrun.report.runs import read, with_derived


@pytest.fixture
def folder(tmp_path) -> Path:
    by_hand().to_csv(tmp_path / "results.csv", index=False)
    return tmp_path


def test_a_comparison_is_scipys_paired_test(clrun_report):
    code, out, _ = clrun_report("--compare", "ewc lambda=100", "finetune tasks=5")
    ewc, fine = values("s1", "e100"), values("s1", "fine")[:4]
    low, high = stats.ttest_rel(ewc, fine).confidence_interval(0.95)
    said = f"{100 * (ewc - fine).mean():.1f} (95 % interval [{100 * low:.1f}, {100 * high:.1f}], n = 4 pairs by seed)"
    assert code == 0 and said in out and "The interval excludes 0." in out
    assert out.count("if you make k comparisons") == 1


def test_a_comparison_has_its_streams_heading(clrun_report, folder):
    """Two strategies in two streams: two comparisons, each below what it is of."""
    one = by_hand()
    other = one[one.stream == "s1"].assign(stream="s3", scenario="class")
    other = other.assign(run="x" + other["run"], group="x" + other["group"])
    pd.concat([one, other]).to_csv(folder / "results.csv", index=False)
    code, out, _ = clrun_report("--compare", "joint", "finetune")
    second, first, _ = out.strip().split("\n\n")  # sorted by settings: class comes before task
    assert code == 0 and first.splitlines()[0] == "digits, classes, scenario task, tasks 5 (stream s1)"
    assert second.splitlines()[0] == "digits, classes, scenario class, tasks 5 (stream s3)"
    assert first.splitlines()[1].startswith("average_accuracy, joint minus finetune: ")
    assert clrun_report("--compare", "joint scenario=class", "finetune")[1].count("minus") == 1


def test_a_row_answers_to_the_whole_of_its_label(clrun_report, folder):
    """Also where a value is a list, which the file writes with spaces."""
    runs = by_hand()
    widths = runs.group.map({"e100": "[100, 100]", "e1000": "[400, 400]"}).fillna("[9]")
    runs.assign(**{"model.widths": widths}).to_csv(folder / "results.csv", index=False)
    label = next(row.label for row in rows_of(read(folder)) if row.group == "e100")
    assert label == "ewc lambda=100 model.widths=[100,100]"
    code, out, _ = clrun_report("--compare", label, "joint")
    assert code == 0 and f"{label} minus joint" in out


def test_too_few_pairs_are_said_to_be_too_few(clrun_report):
    _, out, _ = clrun_report("--compare", "e100", "e1000")
    assert "n = 2" in out and "too small to tell" in out and "2 diverged runs are left out" in out
    runs = with_derived(by_hand())
    rows = {row.group: row for row in rows_of(runs[(runs.seed == 0) | (runs.group != "top")])}
    assert "too few to tell anything" in verdict(rows["top"], rows["fine"], "average_accuracy")


def test_how_many_pairs_would_do():
    few = Statistic(3, 1.0, 2.0, -4.0, 6.0)
    n = sufficient_n(few)
    half = [stats.t.ppf(0.975, m - 1) * 2.0 / np.sqrt(m) for m in (n - 1, n)]
    assert half[1] < 1.0 <= half[0] and f"of about {n} pairs would exclude it" in conclusion(few)
    assert "probability of about one half" in conclusion(few) and "Choose n before the runs" in conclusion(few)
    draws = np.random.default_rng(0).normal(1.0, 2.0, (20_000, n))  # that n has a power of one half, by SciPy's test
    power = (stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05).mean()
    assert 0.45 < power < 0.58
    hopeless = Statistic(3, 0.001, 2.0, -4.0, 4.0)
    assert sufficient_n(hopeless) is None and "more than 1000 pairs" in conclusion(hopeless)
