"""The shell scripts: what they type is composed and checked, and every strategy is in the one that claims all."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from clrun.system.paths import CONF, PACKAGE

SCRIPTS = sorted((PACKAGE.parent / "scripts").glob("*.sh"))
if not SCRIPTS:
    pytest.skip("an installed package has no scripts/", allow_module_level=True)

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
