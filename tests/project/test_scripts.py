"""The shell scripts: what they type is composed and checked, and every strategy is in the one that claims all."""

import os
import re
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
import yaml

from clrun.system.paths import CONF, PACKAGE

GPU_CHECK = PACKAGE.parent / "scripts" / "gpu_check.sh"
SCRIPTS = sorted(path for path in GPU_CHECK.parent.glob("*.sh") if path != GPU_CHECK)
if not SCRIPTS:
    pytest.skip("an installed package has no scripts/", allow_module_level=True)
ready = pytest.importorskip("gpu.ready")

STUB = """#!/usr/bin/env bash
printf '%s\\n' "$(basename "$0") $(printf '%q ' "$@")" >> typed
"""


@pytest.fixture
def typed(tmp_path, monkeypatch):
    """typed(script, *arguments) -> the commands that a script types, as lists of words."""
    for name in ("clrun", "clrun-report"):
        (tmp_path / name).write_text(STUB)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    def run(script: Path, *arguments: str) -> list[list[str]]:
        (tmp_path / "typed").unlink(missing_ok=True)
        subprocess.run(["bash", str(script), *arguments], cwd=tmp_path, check=True)
        return [shlex.split(line) for line in (tmp_path / "typed").read_text().splitlines()]

    return run


def jobs(words: list[str]) -> list[list[str]]:
    """The jobs of a sweep, one for each strategy, scenario and first value of all else."""
    first = [re.sub(r"range\((\d+).*", r"\1", word) for word in words if word != "-m"]
    fixed = [word.partition(",")[0] for word in first if not word.startswith(("strategy=", "scenario=", "lambda="))]
    lists = {key: value.split(",") for key, _, value in (word.partition("=") for word in first) if f"{key}={value}"}
    strategies, scenarios = lists["strategy"], lists.get("scenario", [None])
    return [[*fixed, f"strategy={s}", *([f"scenario={c}"] if c else [])] for s in strategies for c in scenarios]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
@pytest.mark.parametrize("arguments", [[], ["--quick"]], ids=["whole", "quick"])
def test_what_a_script_types_can_be(settings_of, typed, script, arguments):
    *sweeps, report = typed(script, *arguments)
    outputs = {word for sweep in sweeps for word in sweep if word.startswith("outputs=")}
    assert report[0] == "clrun-report" and outputs == {f"outputs={report[1]}"}
    for command, flag, *words in sweeps:
        assert (command, flag) == ("clrun", "-m")
        for job in jobs(words):
            settings = settings_of(*job)
            assert settings["dataset"] == "digits" or not arguments


def test_all_strategies_are_all(typed):
    (script,) = (path for path in SCRIPTS if path.stem == "all_strategies")
    sweeps = typed(script)[:-1]
    names = {job[-2].partition("=")[2] for sweep in sweeps for job in jobs(sweep[1:])}
    stated = {yaml.safe_load(path.read_text())["name"] for path in (CONF / "strategy").glob("*.yaml")}
    assert names == stated


def test_parts_of_the_day_of_a_card(tmp_path):
    """Every part that is listed can be asked for, and nothing else."""
    listed = subprocess.run([GPU_CHECK, "--list"], capture_output=True, text=True, check=True).stdout.split()
    branches = set(re.findall(r"^    ([a-z-]+)\) ", GPU_CHECK.read_text(), re.MULTILINE))
    assert set(listed) == branches and "cuda-tests" in listed
    assert subprocess.run([GPU_CHECK, "no-such-part", tmp_path], capture_output=True).returncode == 2


@pytest.mark.slow
def test_what_a_part_leaves_is_in_a_folder_of_its_own(tmp_path):
    environment = {**os.environ, "DEVICE": "cpu", "PYTHON": sys.executable}
    done = subprocess.run([GPU_CHECK, "environment", tmp_path], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "environment" / "exit_code.txt").read_text() == "0\n"
    assert f"torch {torch.__version__}" in (tmp_path / "environment" / "log.txt").read_text()


def test_a_bare_machine_is_told_what_to_carry(tmp_path):
    """Before anything is tried, and without a single package."""
    line = [sys.executable, "-S", GPU_CHECK.parent / "gpu" / "ready.py", "--part", "stacks", "--device", "cpu"]
    done = subprocess.run([*line, "--kit", tmp_path, "--unpacked", tmp_path], capture_output=True, text=True)
    assert done.returncode == 2 and "has no torch, numpy" in done.stderr and done.stderr.count("\n") == 1


def test_wheels_that_were_not_carried_are_asked_for(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        ready.install(tmp_path, tmp_path / "site", "Carry them.")
    assert caught.value.code == 2 and capsys.readouterr().err.endswith("nor carried. Carry them.\n")


def test_mnist_is_unpacked_where_no_folder_of_it_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("CLRUN_DATA_DIR", raising=False)
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(b"1")
    (tmp_path / "kit" / "data").mkdir(parents=True)
    with pytest.raises(SystemExit):
        ready.unpack(tmp_path / "kit", tmp_path / "there", "Carry it.")
    with tarfile.open(tmp_path / "kit" / "data" / "MNIST.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "MNIST", "MNIST")
    ready.unpack(tmp_path / "kit", tmp_path / "there", "Carry it.")
    assert (tmp_path / "there" / "MNIST" / "raw" / "train-images-idx3-ubyte").read_bytes() == b"1"
