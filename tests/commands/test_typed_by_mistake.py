"""What is typed by mistake, or nearly right: the answer says what was meant."""

from pathlib import Path

import pytest
import yaml
from helpers import summaries

from clrun.sweep import cluster

pytestmark = pytest.mark.usefixtures("empty_folder")


@pytest.mark.parametrize("word", ["report", "predict", "tune", "verify"])
@pytest.mark.parametrize("more", [(), ("outputs",), ("--compare", "a", "b"), ("strategy=ewc",)])
def test_a_command_typed_with_a_blank(clrun, word, more):
    code, out, error = clrun(word, *more)
    assert (code, out) == (2, "") and f"did you mean clrun-{word}?" in error and len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (("lambda=3", "report"), "did you mean clrun-report?"),
        (("help",), "did you mean clrun --help?"),
        (("version",), "did you mean clrun --version?"),
        (("ewc",), "type strategy=ewc."),
        (("lambda",), "type lambda=VALUE."),
    ],
)
def test_a_word_that_is_no_setting(clrun, typed, said):
    code, _, error = clrun(*typed)
    assert code == 2 and said in error and len(error.splitlines()) == 1


# ---------------------------------------------------------------- a cluster that is not there


@pytest.mark.parametrize("typed", [(), ("-m", "seed=0,1")])
@pytest.mark.parametrize("there", [(), ("sbatch",), ("srun",)])
def test_slurm_that_is_not_here_is_one_paragraph(clrun, monkeypatch, tmp_path, typed, there):
    pytest.importorskip("submitit")
    for name in there:
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, error = clrun(*typed, "cluster=slurm", "iterations=1")
    missing = next(name for name in cluster.SLURM if name not in there)
    assert code == 2 and f"there is no {missing} here" in error and len(error.splitlines()) == 1
    assert not Path("outputs").exists()


# ---------------------------------------------------------------- about of an experiment


def test_an_experiment_may_say_what_it_is_about(clrun):
    Path("my/experiment").mkdir(parents=True)
    text = "# @package _global_\n# A comment.\nabout: all of it in one step\niterations: 1\ntasks: 2\npictures: false\n"
    Path("my/experiment/short.yaml").write_text(text)
    assert "all of it in one step" in clrun("--config-dir", "my", "--help", "experiment")[1]
    for flags in ((), ("-m", "seed=1,2")):
        code, _, error = clrun("--config-dir", "my", "+experiment=short", *flags)
        assert code == 0, error
    assert len(summaries("ewc")) == 3
    assert "about" not in summaries("ewc")[0].read_text()
    code, _, error = clrun("about=x")
    assert code == 2 and "about: no such key" in error


# ---------------------------------------------------------------- clrun --cfg job


def test_what_is_composed_is_printed_without_nulls(clrun, monkeypatch):
    monkeypatch.setenv("OF_THE_TEST", "4")
    typed = (
        "strategy=ewc",
        "lambda=3",
        "model.widths=[8,9]",
        "seed=${oc.env:OF_THE_TEST}",
        "split.classes=[[0,1],[2]]",
    )
    code, out, error = clrun("--cfg", "job", *typed)
    assert (code, error) == (0, "") and out.startswith("# Keys that are null")
    tree = yaml.safe_load(out)
    assert "null" not in out.split("\n", 1)[1] and "knobs" not in str(tree)
    assert tree["lambda"] == 3 and tree["model"]["widths"] == [8, 9] and tree["strategy"]["name"] == "ewc"
    assert tree["split"]["classes"] == [["0", "1"], ["2"]] and tree["seed"] == "${oc.env:OF_THE_TEST}"
    assert len(out.splitlines()) < 60
    assert yaml.safe_load(clrun("--cfg", "job", "--resolve", *typed)[1])["seed"] == "4"
    assert yaml.safe_load(clrun("--cfg", "job", "-p", "optimizer")[1])["name"] == "adam"
    code, _, error = clrun("--cfg", "job", "-p", "optimize")
    assert code == 2 and "nothing of this name" in error
    assert not Path("outputs").exists()


@pytest.mark.parametrize("mode", ["hydra.mode=MULTIRUN"])
def test_the_job_of_a_sweep_by_mode_runs_nothing(clrun, mode):
    clrun("--cfg", "job", mode)
    assert not Path("outputs").exists()


def test_the_other_answers_of_cfg_are_hydras(clrun):
    assert "knobs:" in clrun("--cfg", "all")[1] and "sweeper" in clrun("--cfg", "hydra")[1]
