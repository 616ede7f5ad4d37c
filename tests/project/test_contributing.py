"""CONTRIBUTING.md: its example of a new strategy, added to a copy of the checkout, passes its test and the contract."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import python_path

from clrun.system.paths import CONF, PACKAGE

ROOT = CONF.parent
PAGE = ROOT / "CONTRIBUTING.md"
if not PAGE.is_file():
    pytest.skip("CONTRIBUTING.md lies in a checkout alone", allow_module_level=True)

FILES = {
    "python": ["clrun/strategies/freeze.py", "tests/strategies/test_freeze.py"],
    "yaml": ["conf/strategy/freeze.yaml"],
}


@pytest.fixture
def copy(tmp_path) -> Path:
    """A copy of the checkout with the files of the example in it."""
    ignored = shutil.ignore_patterns("__pycache__")
    for folder in (PACKAGE, CONF, ROOT / "tests"):
        shutil.copytree(folder, tmp_path / folder.name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    text = PAGE.read_text(encoding="utf-8")
    for language, paths in FILES.items():
        blocks = re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)
        for path, block in zip(paths, blocks, strict=True):
            assert f"`{path}`" in text
            (tmp_path / path).write_text(block, encoding="utf-8")
    return tmp_path


def test_the_example_strategy_passes_its_tests(copy):
    contract = "tests/strategies/test_every_strategy.py::test_step_is_pure"
    command = [sys.executable, "-m", "pytest", "-n", "0", "-k", "freeze", "tests/strategies/test_freeze.py", contract]
    environment = os.environ | {"PYTHONPATH": python_path(copy)}
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^4 passed", done.stdout, re.M), done.stdout  # its own test, and one per scenario


def test_the_example_is_formatted_as_the_code_is(copy):
    for check in (["check"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *check, *FILES["python"]]
        done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
