"""The command as a process of its own: what it imports, how long it takes, and what it writes to which stream."""

import resource
import subprocess
import sys

import pytest
from helpers import summaries

from clrun.config import catalog

SHORT = ("iterations=2", "model.widths=[8]", "device=cpu", "workers=1")


pytestmark = pytest.mark.usefixtures("empty_folder")


TELL = """
import sys
from clrun.cli import cli
try:
    cli()
finally:
    print("IMPORTED", *({"torch", "hydra", "pandas", "clrun.sweep.launcher"} & set(sys.modules)))
"""


@pytest.mark.parametrize("arguments, imported", [(["--help"], ""), (["--version"], ""), (["lambda=-1"], "hydra")])
def test_torch_is_imported_late(arguments, imported):
    done = subprocess.run([sys.executable, "-c", TELL, *arguments], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1].split() == ["IMPORTED", *imported.split()]


@pytest.mark.parametrize(("arguments", "launcher"), [((), False), (("-m",), True), (("hydra.mode=MULTIRUN",), True)])
def test_the_launcher_is_imported_for_sweeps_alone(arguments, launcher):
    line = [sys.executable, "-c", TELL, *arguments, *SHORT]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert ("clrun.sweep.launcher" in done.stdout.splitlines()[-1]) == launcher and len(summaries()) == 1


def test_help_is_quick():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "clrun.commands.run", "--help"], capture_output=True, check=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.6


def test_a_reader_that_leaves_is_no_crash():
    line = f"{sys.executable} -m clrun.cli --help | head -1"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
    assert done.stderr == "" and "clrun" in done.stdout


def test_a_process_refuses_and_runs():
    command = [sys.executable, "-m", "clrun.commands.run"]
    wrong = subprocess.run([*command, "lamda=400"], capture_output=True, text=True, timeout=60)
    assert (wrong.returncode, wrong.stdout) == (2, "") and "did you mean lambda?" in wrong.stderr
    right = subprocess.run([*command, *SHORT], capture_output=True, text=True, timeout=120)
    assert right.returncode == 0 and "average" in right.stdout and "Warning" not in right.stderr
    assert len(summaries()) == 1


@pytest.mark.slow
def test_what_is_known_to_fail_is_said_before_training():
    """Standard error, with a line for each task, and standard output as they follow one another on a terminal."""
    line = [sys.executable, "-u", "-m", "clrun.commands.run", "strategy=ewc", *SHORT]
    told = {}
    for scenario in ("class", "task"):
        done = subprocess.run(
            [*line, f"scenario={scenario}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120
        )
        assert done.returncode == 0 and done.stdout.count("learnt in") == 5
        told[scenario] = " ".join(done.stdout.partition("learnt in")[0].split())
    assert " ".join(catalog.read().options["strategy"]["ewc"].warns["class"].split()) in told["class"]
    assert "Warning" in told["class"] and "Warning" not in told["task"]
