"""A folder is asked for only where it is needed: no /tmp and no home folder for a single run on packaged data."""

import subprocess
import sys
from pathlib import Path

import pytest

SMALL = ("model.widths=[8]", "tasks=2", "iterations=5", "device=cpu", "plots=false")

# What a machine without a temporary folder, or a user without a home folder, answers to Python.
NO_TEMPORARY_FOLDER = """
import tempfile
def none():
    raise FileNotFoundError(2, "No usable temporary directory found")
tempfile._get_default_tempdir = none
"""
NO_HOME = """
import os, pwd
def unknown(number):
    raise KeyError(number)
pwd.getpwuid = unknown
for name in ("HOME", "XDG_CACHE_HOME", "TMPDIR"):
    os.environ.pop(name, None)
assert os.path.expanduser("~") == "~"
"""
COMMAND = "\nfrom clrun.commands.run import cli\ncli()\n"
SEARCH = "\nfrom clrun.commands.tune import main\nmain()\n"

pytestmark = pytest.mark.usefixtures("empty_folder")


def clrun_where(machine: str, *arguments: str, command: str = COMMAND) -> tuple[int, str]:
    """Run clrun on such a machine -> exit code, standard error."""
    line = [sys.executable, "-c", machine + command, *SMALL, *arguments]
    done = subprocess.run(line, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def test_a_single_run_needs_no_temporary_folder():
    code, err = clrun_where(NO_TEMPORARY_FOLDER)
    assert code == 0, err


def test_a_sweep_without_one_says_so_in_a_paragraph():
    code, err = clrun_where(NO_TEMPORARY_FOLDER, "-m", "seed=0,1")
    assert code == 2 and "export TMPDIR=FOLDER" in err
    assert not Path("outputs").exists()


def test_a_search_without_one_says_so_in_a_paragraph():
    """It was a traceback of multiprocessing's."""
    pytest.importorskip("optuna")
    code, err = clrun_where(NO_TEMPORARY_FOLDER, "lambda=1,10", "trials=2", "workers=2", command=SEARCH)
    assert code == 2 and "a search needs a folder for temporary files" in err and "export TMPDIR=FOLDER" in err
    assert not Path("outputs").exists()


def test_digits_need_no_home():
    code, err = clrun_where(NO_HOME)
    assert code == 0, err


@pytest.mark.parametrize("data", ["dataset=mnist", "dataset=cifar10"])
def test_data_that_are_kept_in_a_folder_need_one(data):
    code, err = clrun_where(NO_HOME, data)
    assert code == 2 and "data_dir=FOLDER" in err
    assert not Path("outputs").exists()
