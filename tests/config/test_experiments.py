"""The experiments of conf/experiment: what `--cfg job` says of each, and the commands in its comments."""

import itertools
import re
import shlex

import pytest
import yaml

from clrun.config.composition import compose
from clrun.system.paths import CONF

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
NEW = (
    "sequential_mnist", "twenty_permuted_mnist", "twenty_rotated_mnist", "cifar100_b0_inc10", "cifar100_b50_inc10",
    "online_cifar10", "online_cifar100", "online_permuted_mnist", "mnist360", "blurry10_mnist",
)  # fmt: skip
LR = {"sequential_mnist": 0.03, "online_permuted_mnist": 0.003, "mnist360": 0.2, "blurry10_mnist": 0.005}


def jobs(command: str) -> list[tuple[str, ...]]:
    """The overrides of each job of a sweep, of the first seed alone."""
    words = [word for word in shlex.split(command)[1:] if word != "-m"]
    values = [(word.partition("=")[0], re.sub(r"range\((\d+),\d+\)", r"\1", word.partition("=")[2])) for word in words]
    return list(itertools.product(*([f"{key}={one}" for one in value.split(",")] for key, value in values)))


@pytest.mark.parametrize("name", NEW)
def test_every_command_of_a_protocol_can_be_typed(name):
    lines = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()
    commands = [line.lstrip("# ") for line in lines if line.startswith("#   clrun")]
    assert len(commands) >= 2
    for job in [job for command in commands for job in jobs(command)]:
        assert job[0] == f"+experiment={name}"
        compose(*job)


@pytest.mark.parametrize("name", NEW)
def test_what_an_experiment_is(clrun, name):
    """The comments of its file, and then what it composes, which is YAML."""
    code, out, _ = clrun(f"+experiment={name}", "--cfg", "job")
    comments = [line for line in out.splitlines() if line.startswith("#")]
    assert code == 0 and comments[0] == f"# +experiment={name}" and any("clrun -m" in line for line in comments)
    composed = yaml.safe_load(out)
    assert composed["lr"] == LR.get(name, 0.2 if name.startswith("twenty") else 0.1)


def test_protocols_of_class_incremental_learning():
    """B50-inc10 has 50 classes and then 10 five times; B0-inc10 has 10 ten times; both in the order of seed 1993."""
    b50, b0 = (compose(f"+experiment=cifar100_{name}_inc10") for name in ("b50", "b0"))
    assert (b50["tasks"], b50["split.sizes"]) == (6, [50, 10, 10, 10, 10, 10]) and b0["tasks"] == 10
    assert b50["split.order"] == b0["split.order"] == "seed1993"
    assert compose("+experiment=online_cifar100")["stream"] == "online"
