"""scripts/kill_rounds.py: its plan has every signal with every kind and target, and it sees what is left behind."""

import importlib.util
import random
import subprocess
import sys
from itertools import islice, product

import pytest

from clrun.system.paths import PACKAGE

SCRIPT = PACKAGE.parent / "scripts" / "kill_rounds.py"
if not SCRIPT.is_file():
    pytest.skip("an installed package has no scripts/", allow_module_level=True)


@pytest.fixture(scope="module")
def rounds():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("kill_rounds", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_sixty_rounds_have_everything(rounds):
    planned = list(islice(rounds.plan(random.Random(0)), 60))
    assert len(set(planned)) == 60
    have = {(one.kind, one.signal, one.target) for one in planned}
    targets = ("parent", "worker", "forkserver", "group")
    assert have >= {("single", name, "parent") for name in rounds.SIGNALS}
    assert have >= {("sweep", *pair) for pair in product(rounds.SIGNALS, targets)}
    assert {(one.kind, one.moment) for one in planned} == set(product(rounds.KINDS, ("any", *rounds.AIMS)))


@pytest.mark.parametrize(
    "name",
    ["lock.json", ".summary.csv.abc.tmp", "checkpoint.safetensors", "checkpoint.safetensors.bad", "failed.txt"],
)
def test_what_is_left_behind_is_seen(rounds, tmp_path, name):
    command = rounds.Command(tmp_path, "single")
    folder = tmp_path / "outputs" / "runs" / "er" / "digits"
    folder.mkdir(parents=True)
    (folder / "summary.csv").touch()
    assert command.left_behind() == []
    (folder / name).touch()
    assert command.left_behind() == [f"outputs/runs/er/digits/{name}"]


@pytest.mark.slow
def test_a_round(empty_folder):
    told = subprocess.run([sys.executable, SCRIPT, "--rounds", "1"], capture_output=True, text=True)
    assert told.returncode == 0 and "all: 1 of 1 good" in told.stdout, told.stdout + told.stderr
