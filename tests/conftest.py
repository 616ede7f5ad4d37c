"""Settings from overrides, runs without the command line, and where MNIST lies."""

import csv
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import hypothesis
import pytest
import torch
from helpers import CPU, python_path

from clrun.commands import console, predict, report, run
from clrun.config import composition
from clrun.config.settings import Settings
from clrun.engine.blocks import BlockSizes
from clrun.engine.stack import Stack
from clrun.runs import checkpointer, prepare
from clrun.runs.build import build
from clrun.runs.prepared import Prepared
from clrun.system.paths import CONF

hypothesis.settings.register_profile("clrun", deadline=None)  # any example may take long on a machine that is busy
hypothesis.settings.load_profile("clrun")

STRATEGIES = sorted(path.stem for path in (CONF / "strategy").glob("*.yaml"))
SCENARIOS = ("task", "domain", "class")
STEPLESS = ("ncm", "slda", "fecam", "ranpac")  # unless they train a trunk, they take no gradient step


def pytest_addoption(parser):
    parser.addoption(
        "--device", default="cuda", choices=["cpu", "cuda"], help="of the tests marked cuda; cpu rehearses"
    )


@pytest.fixture
def card(request) -> torch.device:
    """The device of a test that is marked cuda; skips where there is none."""
    device = torch.device(request.config.getoption("--device"))
    if device.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device here; --device cpu rehearses the test")
    return device


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def same_random_numbers():
    """Whichever tests this process ran before."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_columns(monkeypatch):
    """In a process of pytest-xdist COLUMNS is 80, by GNU readline, and help would be narrower there."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(autouse=True)
def blocks_by_steps(request, monkeypatch):
    """The size of a block does not depend on how fast its steps are, so that tests can count reports."""
    if request.path.name != "test_blocks.py":
        affordable = BlockSizes.affordable
        monkeypatch.setattr(BlockSizes, "affordable", lambda self, s: affordable(self, None if s is None else 0.0))


@pytest.fixture(autouse=True)
def checkpoint_after_every_task(monkeypatch):
    """However short a task is; tests/runs/test_resume.py has the rule for those that are too short."""
    monkeypatch.setattr(checkpointer, "CHECKPOINT_SHARE", math.inf)


@pytest.fixture(autouse=True)
def ctrl_c():
    """A console script that was interrupted ignores Ctrl-C from then on; these tests go on in its process."""
    yield
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def settings_of() -> Callable[..., Settings]:
    """settings_of("strategy=ewc", "lambda=4") -> Settings, by Hydra's composition and clrun's checks."""
    return composition.compose


@pytest.fixture
def prepared_of(settings_of, tmp_path) -> Callable[..., Prepared]:
    """prepared_of("strategy=ewc") -> a run that writes below tmp_path."""
    return lambda *overrides: prepare.prepare(settings_of(*overrides, f"outputs={tmp_path}"))


# What is typed for a strategy whose size by default takes seconds, unless the test types another size.
SMALL = {
    "strategy=ranpac": ("units=40",),
    "strategy=generative_classifier": ("autoencoder_units=8", "importance_samples=3"),
}


@pytest.fixture
def stack_of(prepared_of) -> Callable[..., Stack]:
    """stack_of("strategy=ewc", seeds=[0, 1]) -> an engine stack in float64, small enough for a test, on the CPU: a test
    compares it with tensors of its own.

    strategy: a class to train with in place of the one of the settings, such as a broken subclass.
    """

    def stack(*overrides: str, seeds=(0,), dtype=torch.float64, variants=None, strategy=None) -> Stack:
        small = ("model.widths=[12,8]",) if not any(o.startswith("model") for o in overrides) else ()
        budget = () if any(o.startswith(("epochs", "iterations")) for o in overrides) else ("iterations=4",)
        sizes = [size for o in overrides for size in SMALL.get(o, ())]
        small += tuple(s for s in sizes if not any(o.startswith(s.partition("=")[0] + "=") for o in overrides))
        runs = [(f"seed={seed}", *variant) for seed in seeds for variant in (variants or [()])]
        prepared = [prepared_of(*overrides, *small, *budget, *own) for own in runs]
        if strategy is not None:
            prepared = [replace(run, strategy=strategy) for run in prepared]
        return build(prepared, dtype, device=CPU)

    return stack


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    """Every test starts in an empty folder, without settings of the user's."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("MPLCONFIGDIR", os.path.expanduser("~/.cache/matplotlib"))  # its list of fonts takes seconds
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", python_path())  # for processes, in a bare checkout
    for name in ("CLRUN_DATA_DIR", "XDG_CACHE_HOME", "HYDRA_FULL_ERROR", "COMP_LINE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def clrun(monkeypatch, capfd):
    """clrun("strategy=ewc") -> exit code, standard output, standard error."""

    def answer(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["clrun", *arguments])
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        with pytest.raises(SystemExit) as caught:
            run.cli()
        out, err = capfd.readouterr()
        return caught.value.code, out, err

    return answer


@pytest.fixture
def answer(capsys):
    """answer(directory, "a.png") -> exit code, rows and standard error of clrun-predict, or of another command."""

    def predicted(*arguments, command=predict.command):
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            console.end_with(lambda _: command(list(map(str, arguments))))
        out, err = capsys.readouterr()
        return caught.value.code, list(csv.DictReader(out.splitlines())), err

    return predicted


def live(stack):
    """Train a stack to its end -> run, reports."""
    state, reports = stack.initialize(), []
    for stage in range(stack.strategy.data.tasks):
        state, report = stack.learn(state, stage)
        reports.append(report)
    return state, reports


@pytest.fixture
def clrun_report(folder, monkeypatch, capfd):
    """clrun_report("--sort", "n") -> exit code, standard output, standard error, for the file's own `folder`."""

    def answer(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["clrun-report", str(folder), *arguments])
        with pytest.raises(SystemExit) as caught:
            report.cli()
        return caught.value.code, *capfd.readouterr()

    return answer


@pytest.fixture
def mnist() -> str:
    """The folder of the real MNIST; skips where there is none."""
    folder = os.environ.get("CLRUN_DATA_DIR")
    if not folder or not (Path(folder) / "MNIST" / "raw" / "train-images-idx3-ubyte").is_file():
        pytest.skip("CLRUN_DATA_DIR names no folder with MNIST in it")
    return folder


@pytest.fixture
def neighbour() -> Iterator[subprocess.Popen]:
    """Another living process."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


FAULTY = """
import os
import signal
from pathlib import Path
from clrun.strategies.finetune import Finetune
from dataclasses import dataclass

@dataclass(frozen=True)
class Faulty(Finetune):
    fault: int = 1

    def after_phase(self, phase, theta, state, hp, pool):
        if self.fault == 1 and not Path("repaired").exists():
            {fault}
        return theta, state
"""
FAULTY_YAML = """
name: faulty
about: finetuning that ends badly
_target_: faulty_of_the_user.Faulty
knobs:
  fault: {default: 1, type: int, min: 0, about: whether there is a fault}
"""


@pytest.fixture
def faulty():
    """faulty("raise KeyboardInterrupt") -> the arguments of a strategy of the user's own that does this after the steps
    of its first task, where fault=1, until there is a file `repaired` in the current folder."""

    def written(fault: str) -> tuple[str, ...]:
        Path("my/strategy").mkdir(parents=True)
        Path("my/strategy/faulty.yaml").write_text(FAULTY_YAML)
        Path("faulty_of_the_user.py").write_text(FAULTY.format(fault=fault))
        return "--config-dir", "my", "strategy=faulty"

    yield written
    sys.modules.pop("faulty_of_the_user", None)


MINE = """
from typing import NamedTuple
from torch import Tensor
from clrun.strategies.finetune import Finetune

class Mine(Finetune):
    class Hyper(NamedTuple):
        myknob: Tensor
        gamma: Tensor
"""
MINE_YAML = """
name: mine
about: a strategy of mine
_target_: mine_of_the_user.Mine
knobs:
  myknob: {default: 1.0, type: float, min: 0, about: a knob of mine}
  gamma: {default: 7.0, type: float, max: 9, about: shares its name with a knob of ewc}
"""


@pytest.fixture
def my_folder():
    """A folder `my` (for --config-dir) with a strategy `mine` of the user's own, which is finetuning with two keys."""
    Path("my/strategy").mkdir(parents=True)
    Path("my/strategy/mine.yaml").write_text(MINE_YAML)
    Path("mine_of_the_user.py").write_text(MINE)
    yield
    sys.modules.pop("mine_of_the_user", None)


@pytest.fixture
def cache_home(tmp_path_factory, monkeypatch):
    """No test touches the user's own cache."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    return home / "cache"
