"""clrun-report --classes: the accuracy on each class after the last task, over the seeds."""

import numpy as np
import pandas as pd
import pytest
from outcomes import placed

from clrun.commands import report
from clrun.report import class_accuracy


def test_the_accuracy_on_each_class_is_the_mean_over_the_seeds(tmp_path, capsys):
    """After the last task alone; a class of several tasks counts by its samples; names in their natural order."""
    for seed, right in enumerate((8, 4)):
        pairs = [[1, 0, 0, 0, 10, 0], [3, 0, 0, 0, right, 0], [3, 0, 0, 1, 10 - right, 1]]
        pairs += [[3, 1, 1, 1, 10, 2], [3, 2, 2, 1, 30, 3]]  # the third output is the class of the first
        placed(tmp_path, "ewc", seed, class_names=["c10", "c9", "c10"], confusions=np.array(pairs))
    report.command([str(tmp_path), "--classes", "--no-plots"])
    table = pd.read_csv(tmp_path / class_accuracy.NAME).set_index("class")
    assert list(table.index) == ["c9", "c10"] and table["n"].tolist() == [2, 2]
    assert table["mean"].tolist() == pytest.approx([1.0, (0.2 + 0.1) / 2])
    printed = " ".join(capsys.readouterr().out.split())
    assert "class c9" in (tmp_path / "report.md").read_text() and "15.0 ± 7.1" in printed


def test_without_the_file_it_is_refused(answer, tmp_path):
    directory = placed(tmp_path, "ewc", 0).directory
    (directory / class_accuracy.NAME).unlink(missing_ok=True)
    code, _, err = answer(tmp_path, "--classes", "--no-plots", command=report.command)
    assert code == 2 and "--classes" in err and not (tmp_path / "report.csv").exists()
