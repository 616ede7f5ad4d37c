"""Files in the current folder that are named as modules are never executed: code runs from one place alone."""

import os
import subprocess
import sys

import pytest
from helpers import python_path, summaries

THIRD_PARTY = ("numpy", "torch", "pandas", "matplotlib", "hydra", "omegaconf", "rich", "scipy", "PIL", "yaml")
SMALL = ("model.widths=[8]", "tasks=2", "iterations=5", "device=cpu", "threads=1")
TRAP = "import os\nopen(os.environ['SPRUNG'], 'a').write(__name__ + ' ')\nraise SystemExit(7)\n"


@pytest.fixture
def shadowed(tmp_path, monkeypatch):
    """shadowed("clrun", ...) -> the finished process, in a folder in which every module's name is a file's."""
    folder = tmp_path / "here"
    folder.mkdir()
    for name in {*sys.stdlib_module_names, *THIRD_PARTY} - {"__future__"}:
        (folder / f"{name}.py").write_text(TRAP)
    monkeypatch.setenv("PYTHONPATH", python_path())
    monkeypatch.setenv("SPRUNG", str(tmp_path / "sprung"))

    def run(module: str, *typed: str) -> subprocess.CompletedProcess:
        script = tmp_path / "script.py"  # as pip installs it: Python puts its folder first, and not the current one
        function = "main" if module == "tune" else "cli"
        script.write_text(
            f"from clrun.commands.{module} import {function}\nif __name__ == '__main__':\n    {function}()\n"
        )
        line = [sys.executable, str(script), *typed]
        done = subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
        assert not (tmp_path / "sprung").exists(), (tmp_path / "sprung").read_text()
        return done

    return run


@pytest.mark.slow  # four processes that import PyTorch; the search below is in the quick suite
def test_no_file_of_the_current_folder_is_executed(shadowed):
    lines = {"run": SMALL, "run -m": ("-m", *SMALL, "seed=1,2", "workers=2"), "report": ()}
    for module, typed in lines.items():
        done = shadowed(module.split()[0], *typed)
        assert done.returncode == 0, done.stderr


def test_a_search_executes_no_file_of_the_current_folder(shadowed):
    pytest.importorskip("optuna")
    done = shadowed("tune", "strategy=ewc", "lambda=1,10", "trials=2", "workers=2", *SMALL)
    assert done.returncode == 0, done.stderr


def test_python_m_clrun_takes_modules_from_elsewhere(tmp_path):
    for name in ("queue", "matplotlib", "yaml", "hydra"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(7)")
    environment = os.environ | {"PYTHONPATH": python_path()}
    line = [sys.executable, "-m", "clrun", *SMALL]
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert summaries(outputs=tmp_path / "outputs")
