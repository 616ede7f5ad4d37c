"""The wheel: everything that a run needs is in it, and it works in an empty folder, far from the checkout."""

import os
import subprocess
import sys

import pytest
from helpers import python_path

from clrun.system.paths import CONF

ROOT = CONF.parent


@pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="a wheel is built from a checkout")
def test_a_wheel_works_in_an_empty_folder(tmp_path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path / "wheel", ROOT], check=True)
    (wheel,) = (tmp_path / "wheel").glob("clrun-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", tmp_path / "site", wheel], check=True)
    assert (tmp_path / "site" / "clrun" / "CITATION.cff").is_file()  # which clrun --cite reads
    (tmp_path / "empty").mkdir()
    command = [sys.executable, "-m", "clrun.commands.run", "strategy=ewc", "lambda=400", "iterations=2", "device=cpu"]
    environment = os.environ | {"PYTHONPATH": python_path(tmp_path / "site"), "HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path / "empty", env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "forgetting" in done.stdout
    assert [path.name for path in (tmp_path / "empty").iterdir()] == ["outputs"]
    where = [sys.executable, "-c", "import clrun; print(clrun.__file__)"]
    found = subprocess.run(where, cwd=tmp_path / "empty", env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.startswith(str(tmp_path))
