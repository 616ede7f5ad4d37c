"""scripts/growth.py makes folders of finished runs that clrun takes for its own, and measures beside them."""

import subprocess
import sys

import pandas as pd
import pytest

from clrun.commands import report
from clrun.results import reading
from clrun.system.paths import PACKAGE

SCRIPT = PACKAGE.parent / "scripts" / "growth.py"
if not SCRIPT.is_file():
    pytest.skip("an installed package has no scripts/", allow_module_level=True)


def typed(*arguments, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, **options)


@pytest.mark.slow
def test_the_folders_that_it_makes_are_finished_runs(empty_folder, tmp_path, clrun):
    made = typed("--make", 45, "--outputs", tmp_path)
    assert made.returncode == 0, made.stderr
    report.command([str(tmp_path), "--no-pictures"])
    runs = pd.read_csv(tmp_path / "results.csv")
    assert len(runs) == runs["run"].nunique() == 45 and runs["group"].nunique() == 5
    assert runs.groupby("group")["seed"].apply(sorted).tolist()[0] == list(range(10))
    folder = next(tmp_path.glob("runs/ewc/*lambda=2*seed=3*"))
    reading.refuse_contradiction(folder)
    code, out, _ = clrun("strategy=ewc", "epochs=1", "device=cpu", "lambda=2", "seed=3", f"outputs={tmp_path}")
    assert code == 0 and "Done already" in out and folder.name in out


@pytest.mark.slow
def test_it_measures(empty_folder):
    told = typed("--runs", 0, 12, "--rounds", 1, "--only", "a report")
    assert told.returncode == 0, told.stderr
    lines = [line.split("|") for line in told.stdout.splitlines()]
    assert [line[2].strip() for line in lines[2:]] == ["0", "12"] and all(float(line[3]) > 0 for line in lines[2:])
