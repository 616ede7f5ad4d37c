"""report.tex: what is bold, how columns are chosen, renamed and aligned, and that nothing is a command by accident."""

import re
import shutil
import subprocess
from collections.abc import Sequence

import pandas as pd
import pytest

from clrun.report import latex
from clrun.report.rows import Row, rows_of, streams
from clrun.report.runs import completed, with_derived
from clrun.report.tables import in_latex
from clrun.system.errors import UsageError


def part(**accuracies: Sequence[float]) -> list[Row]:
    """The rows of one stream, a strategy each, with these accuracies by seed; it forgets twice what it knows."""
    rows = [
        {"strategy": strategy, "seed": seed, "stream": "s", "setup": "s", "group": strategy, "run": f"{strategy}{seed}",
         "status": "done", "dataset": "a_b", "split": "50%", "scenario": "task", "tasks": 5,
         "average_accuracy": accuracy, "forgetting": 2 * accuracy - 1}
        for strategy, values in accuracies.items()
        for seed, accuracy in enumerate(values)
    ]  # fmt: skip
    return streams(rows_of(with_derived(completed(pd.DataFrame(rows)))))[0]


LOW, HIGH, NOISY = [0.50, 0.51, 0.52], [0.90, 0.91, 0.92], [0.85, 0.91, 0.95]


@pytest.mark.parametrize(
    "accuracies, winners",
    [
        ({"ewc": LOW, "si": HIGH}, ["si", "ewc"]),  # less forgetting is better
        ({"ewc": NOISY, "si": HIGH}, [None, None]),
        ({"ewc": LOW, "si": NOISY, "mas": HIGH}, [None, "ewc"]),
        ({"ewc": LOW, "si": HIGH, "joint": [0.91, 0.92, 0.93], "finetune": [0.1, 0.2, 0.3]}, ["si", "ewc"]),
        ({"ewc": LOW, "si": HIGH, "cumulative": [0.91, 0.92, 0.93]}, ["si", "ewc"]),  # which keeps all data
        ({"ewc": LOW, "si": HIGH[:1]}, [None, None]),  # one run has no interval
        ({"ewc": LOW, "joint": HIGH}, [None, None]),  # alone, it is no best one
        ({"ewc": HIGH, "si": HIGH}, [None, None]),
    ],
)
def test_bold_is_the_best_where_its_interval_overlaps_no_other(accuracies, winners):
    rows = part(**accuracies)
    found = [latex.best(rows, measure) for measure in ("average_accuracy", "forgetting")]
    assert [row and row.strategy for row in found] == winners
    text = latex.table(rows, ["average_accuracy", "forgetting"], {}, "")
    assert text.count(r"\textbf{") == 2 - winners.count(None)
    assert ("Bold: the best value" in text) == (winners != [None, None]) == ("No value is bold" not in text)


def test_columns_are_chosen_renamed_and_aligned():
    asked = latex.wanted("forgetting,n, average_accuracy", ["average_accuracy=Acc. (%),si=SI & co", "n=$n$"])
    (text,) = latex.tables(part(ewc=LOW, si=HIGH), "average_accuracy", asked)
    lines = text.splitlines()
    assert lines[4] == r"\begin{tabular}{lr@{\,}rrr@{\,}r}"
    assert lines[6] == r"strategy & \multicolumn{2}{c}{forgetting} & \$n\$ & \multicolumn{2}{c}{Acc. (\%)} \\"
    assert lines[8] == r"ewc & \textbf{2.0} & $\pm$ 2.0 & 3 & 51.0 & $\pm$ 1.0 \\"
    assert lines[9] == r"SI \& co & 82.0 & $\pm$ 2.0 & 3 & \textbf{91.0} & $\pm$ 1.0 \\"
    assert [lines[5], lines[7], *lines[10:]] == [
        r"\toprule", r"\midrule", r"\bottomrule", r"\end{tabular}", r"\end{table}"
    ]  # fmt: skip


def test_columns_choose_the_keys_that_are_shown():
    rows = part(ewc=LOW, si=HIGH)
    assert latex.table(rows, ["strategy", "forgetting"], {}, "").splitlines()[6].startswith("strategy & \\multicolumn")
    alike = [rows[0], rows[0]]
    with pytest.raises(UsageError, match="look alike by strategy"):
        latex.label_columns(alike, ["strategy"])
    with pytest.raises(UsageError, match="no column nothing; there are n, strategy"):
        latex.refuse_unknown_columns(["nothing"], rows)


def test_the_caption_says_stream_n_and_spread():
    said = latex.table(part(ewc=LOW, si=NOISY[:2]), ["average_accuracy"], {}, "").splitlines()[2]
    assert r"a\_b, 50\%, scenario task, tasks 5 (stream s): mean $\pm$ standard deviation" in said
    assert "over the seeds (n = 2 to 3). In percent. No value is bold" in said


def test_a_negative_mean_has_a_minus_and_a_missing_one_nothing():
    rows = part(ewc=[0.1, 0.2], si=[0.3, 0.3])
    assert latex.value_cells(rows[0], "forgetting", True) == [r"\textbf{$-$70.0}", r"$\pm$ 14.1"]
    assert latex.value_cells(rows[0], "energy_wh", False) == ["", ""]


def test_nothing_is_a_command_by_accident():
    typed = "50 % & $x_1$ #{2} \\y ~ ^ <3> ± \N{MINUS SIGN}"
    assert in_latex(typed) == (
        r"50 \% \& \$x\_1\$ \#\{2\} \textbackslash{}y \textasciitilde{} \textasciicircum{} $<$3$>$ $\pm$ $-$"
    )


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="there is no pdflatex here")
def test_latex_takes_it(tmp_path):
    rows = part(ewc=LOW, si=HIGH)
    text = latex.table(rows, ["n", "average_accuracy"], {"ewc": "50 % & $x_1$ #{2} \\y ~ ^ <3>"}, "")
    document = rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{text}\end{{document}}"
    (tmp_path / "t.tex").write_text(document)
    done = subprocess.run(["pdflatex", "-halt-on-error", "t.tex"], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0 and not re.search(rb"^!|Overfull", done.stdout, re.M), done.stdout
