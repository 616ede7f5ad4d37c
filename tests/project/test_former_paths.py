"""Import paths of the first release that moved: they go on working for one release, with the same objects."""

import importlib
import subprocess
import sys

import pytest

# former path -> (name, where it lies now)
FORMER = [
    ("clrun.errors", "UsageError", "clrun.system.errors"),
    ("clrun.errors", "RunsFailed", "clrun.system.errors"),
    ("clrun.fisher", "fisher", "clrun.strategy"),
    ("clrun.memory", "Memory", "clrun.strategy"),
    ("clrun.memory", "Replay", "clrun.strategy"),
    ("clrun.stream", "Batch", "clrun.strategy"),
    ("clrun.stream", "Pool", "clrun.strategy"),
    ("clrun.stream", "Data", "clrun.strategy"),
    ("clrun.cli", "cli", "clrun.commands.run"),
    ("clrun.predict", "main", "clrun.commands.predict"),
    ("clrun.verify", "main", "clrun.commands.verify"),
]

# what users' own strategies, networks, optimizers and scripts import; these paths stay
PUBLIC = {
    "clrun.strategy": "Strategy Gaussian Quadratic Batch Data Pool cross_entropy losses log_softmax gradient_of fisher",
    "clrun.models": "Network MLP CNN ResNet18 Net Weights Layout Tap",
    "clrun.optimizers": "Optimizer SGD Adam AdamW",
    "clrun.config": "compose",
}


@pytest.mark.parametrize(("former", "name", "now"), FORMER)
def test_a_former_path_leads_to_the_same_object(former, name, now):
    assert getattr(importlib.import_module(former), name) is getattr(importlib.import_module(now), name)


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_are_importable(module):
    for name in PUBLIC[module].split():
        assert hasattr(importlib.import_module(module), name), name


@pytest.mark.parametrize("module", ["clrun", "clrun.cli", "clrun.commands.run"])
def test_a_module_that_is_run_is_the_command(module):
    done = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()[0]) == (0, "clrun"), done.stderr


@pytest.mark.parametrize("name", ["report", "predict", "tune", "verify"])
@pytest.mark.parametrize("package", ["clrun", "clrun.commands"])
def test_a_command_can_be_run_as_a_module(package, name):
    command = [sys.executable, "-m", f"{package}.{name}", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"clrun-{name}" in done.stdout


def test_former_names_are_the_present_ones():
    from clrun import memory, models, strategy

    assert strategy.lifted is strategy.inside_transform
    assert models.Statistics is models.RunningStatistics
    assert memory.census is strategy.buffer_stats and memory.moved_in is strategy.write_slots
