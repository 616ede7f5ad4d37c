"""A value that comes from the environment has the type of its key; an unset variable is named."""

from pathlib import Path

import pytest

from clrun.config.composition import compose

pytestmark = pytest.mark.usefixtures("empty_folder")


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("seed", "7", 7),
        ("seed", "010", 10),  # an array's number with a leading zero is no octal one
        ("lr", "1e-3", 0.001),
        ("lambda", "400", 400.0),
        ("online", "True", True),
        ("online", "false", False),
        ("model.widths", "[8,9]", [8, 9]),
        ("workers", "2", 2),
        ("workers", "auto", "auto"),
        ("fisher", "empirical", "empirical"),
        ("outputs", "7", "7"),  # a path stays a text
        ("fisher_samples", "null", None),
        ("split.classes", "[[0,1],[2,3]]", [["0", "1"], ["2", "3"]]),
    ],
)
def test_a_variable_has_the_type_of_its_key(monkeypatch, key, text, value):
    monkeypatch.setenv("OF_THE_TEST", text)
    found = compose("strategy=ewc", f"{key}=${{oc.env:OF_THE_TEST}}")[key]
    assert found == value and type(found) is type(value)


def test_a_part_of_a_list_and_of_a_number(monkeypatch):
    monkeypatch.setenv("OF_THE_TEST", "8")
    assert compose("model.widths=[${oc.env:OF_THE_TEST},9]")["model.widths"] == [8, 9]
    assert compose("seed=1${oc.env:OF_THE_TEST}")["seed"] == 18


def test_the_identity_is_that_of_the_typed_value(monkeypatch):
    monkeypatch.setenv("OF_THE_TEST", "3")
    assert compose("seed=${oc.env:OF_THE_TEST}").identity("x") == compose("seed=3").identity("x")


@pytest.mark.parametrize("flags", [(), ("-m",), ("--check",), ("-m", "--check")])
def test_a_job_of_an_array_trains_its_seed(clrun, monkeypatch, flags):
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    arguments = ("seed=${oc.env:SLURM_ARRAY_TASK_ID}", "iterations=1", "tasks=2", "plots=false")
    code, _, error = clrun(*flags, *arguments)
    assert code == 0, error
    assert len(list(Path().glob("outputs/runs/ewc/*-seed=3-*"))) == (0 if "--check" in flags else 1)


def test_a_sweep_beside_a_variable(clrun, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    code, out, error = clrun("-m", "--check", "seed=${oc.env:SLURM_ARRAY_TASK_ID}", "lambda=1,2")
    assert code == 0 and "2 runs" in out, error


@pytest.mark.parametrize("flags", [(), ("-m",), ("--check",), ("--cfg", "job", "--resolve")])
@pytest.mark.parametrize("typed", ["seed=${oc.env:NOT_SET}", "cluster.cpus=${oc.env:NOT_SET}"])
def test_an_unset_variable_is_named_in_one_paragraph(clrun, flags, typed):
    code, _, error = clrun(*flags, typed, *(["cluster=local"] if "cluster" in typed else []))
    assert code == 2 and "NOT_SET" in error and "Traceback" not in error
    assert len(error.splitlines()) == 1
    assert not Path("outputs").exists()


@pytest.mark.parametrize("text", ["x", "1.5", "1_0", ""])
def test_what_is_no_number_is_refused(clrun, monkeypatch, text):
    monkeypatch.setenv("OF_THE_TEST", text)
    code, _, error = clrun("seed=${oc.env:OF_THE_TEST}")
    assert code == 2 and f"seed={text}: must be a whole number" in error


def test_a_typed_text_stays_a_text(clrun):
    code, _, error = clrun("seed='3'")
    assert code == 2 and "must be a whole number" in error


def test_a_cluster_takes_variables_too(clrun, monkeypatch):
    monkeypatch.setenv("OF_THE_TEST", "0")
    code, _, error = clrun("cluster=local", "cluster.cpus=${oc.env:OF_THE_TEST}")
    assert code == 2 and "cpus=0: must be a whole number" in error


@pytest.mark.parametrize("group", ["strategy", "dataset", "model", "split", "optimizer", "cluster", "+experiment"])
@pytest.mark.parametrize("sweep", [(), ("-m",)])
def test_an_option_that_a_variable_names_is_left_to_the_shell(clrun, monkeypatch, group, sweep):
    """What keys there are follows from the option, so it is chosen before variables are read; the sentence says so."""
    monkeypatch.setenv("OF_THE_TEST", "si")
    code, out, err = clrun(*sweep, f"{group}=${{oc.env:OF_THE_TEST}}")
    assert code == 2 and out == "" and err.count("\n") == 1
    assert f'let the shell fill it in, as {group}="$OF_THE_TEST"' in err
