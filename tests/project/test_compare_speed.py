"""scripts/compare_speed.py measures the other checkout's code beside this one's."""

import subprocess
import sys

import pandas as pd
import pytest

from clrun.system.paths import PACKAGE

SCRIPT = PACKAGE.parent / "scripts" / "compare_speed.py"
if not SCRIPT.is_file():
    pytest.skip("an installed package has no scripts/", allow_module_level=True)

# A worker whose training takes as many CPU seconds as its round has a number, plus one.
OTHER = """
import json, sys
for line in sys.stdin:
    seed = int(next(o for o in json.loads(line)["overrides"] if o.startswith("seed=")).partition("=")[2])
    phases = {"training": [seed + 1.0, seed + 1.0, 1], "whole": [seed + 1.0, seed + 1.0, None]}
    print("@clrun-bench " + json.dumps({"matrix": [[1.0]], "phases": phases, "state_mb": 0}), flush=True)
"""


def typed(*arguments) -> subprocess.CompletedProcess:
    line = [sys.executable, SCRIPT, *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, cwd=SCRIPT.parents[1])


@pytest.mark.slow
def test_each_round_has_the_time_of_both(tmp_path):
    from benchmark.worker import MARK

    worker = tmp_path / "other" / "scripts" / "benchmark" / "ours_worker.py"
    worker.parent.mkdir(parents=True)
    worker.write_text(OTHER.replace("@clrun-bench ", MARK))
    csv = tmp_path / "out.csv"
    done = typed(tmp_path / "other", "--quick", "--rounds", 3, "--only", "W0", "--csv", csv)
    assert done.returncode == 0, done.stderr
    times = (
        pd.read_csv(csv).query("phase == 'training'").pivot(index="round", columns="contender", values="cpu_seconds")
    )
    assert times["ours-other"].tolist() == [1, 2, 3] and (times["ours"] > 0).all()
    ratio = (times["ours"] / times["ours-other"]).median()
    (line,) = (line for line in done.stdout.splitlines() if "| training |" in line)
    assert f"| 2.00 s | {times['ours'].median():.3f} s | {ratio:.2f} × (" in line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere is no checkout"),
        ([".", "--only", "W9"], "there is no W9"),
        ([".", "--rounds", "0"], "--rounds 0"),
    ],
)
def test_refusals(arguments, said):
    done = typed(*arguments)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
