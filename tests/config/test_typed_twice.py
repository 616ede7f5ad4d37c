"""A key that is typed twice would have no effect the first time, so it is refused; lists that clrun joins are not."""

import sys
from pathlib import Path

import pytest

from clrun.commands import tune, verify
from clrun.commands.verify import Case, Row
from clrun.config.check_keys import last_of_each

pytestmark = pytest.mark.usefixtures("empty_folder")


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (("lambda=1", "lambda=2"), "lambda=1 lambda=2: lambda is typed twice; type one of them"),
        (("lambda=1", "lambda=1"), "lambda is typed twice"),
        (
            ("-m", "seed=1,2", "seed=3"),
            "seed is typed twice; type one of them, or several values as clrun -m 'seed=1,2,3'",
        ),
        (("lambda=1", "+lambda=2"), "lambda is typed twice"),
        (("strategy=ewc", "strategy=si"), "strategy is typed twice"),
        (("model.widths=[8]", "seed=1", "model.widths=[9]"), "model.widths is typed twice"),
        (("+experiment=split_mnist", "+experiment=permuted_mnist"), "experiment is typed twice"),
        (("--check", "seed=1", "seed=2"), "seed is typed twice"),
        (("--cfg", "job", "seed=1", "seed=2"), "seed is typed twice"),
    ],
)
def test_a_key_typed_twice_is_refused(clrun, typed, said):
    code, _, error = clrun(*typed)
    assert code == 2 and said in error and len(error.splitlines()) == 1
    assert not Path("outputs").exists()


def test_an_experiment_is_overridden_by_what_is_typed(clrun):
    code, _, error = clrun("--check", "+experiment=split_mnist", "strategy=ewc", "lambda=3", "iterations=7")
    assert code == 0, error


@pytest.mark.parametrize("typed", [("lambda=1,2", "lambda=3"), ("lambda=1,2", "trials=3", "trials=4")])
def test_tune_refuses_it_too(monkeypatch, capfd, typed):
    pytest.importorskip("optuna")
    monkeypatch.setattr(sys, "argv", ["clrun-tune", *typed])
    with pytest.raises(SystemExit) as caught:
        tune.main()
    assert caught.value.code == 2 and "is typed twice" in capfd.readouterr().err


def test_verify_lets_the_last_list_win():
    case = Case(overrides=["lambda=3", "device=cpu"], target=1.0, tolerance=1.0)
    row = Row(title="t", source="s", tolerances="r", base=["strategy=ewc", "lambda=1", "tasks=2"], cases={"a": case})
    joined = verify.overrides_of(row, case, ["device=auto"])
    assert joined == ["strategy=ewc", "tasks=2", "lambda=3", "device=auto"]
    assert last_of_each(["a=1", "a=1"]) == ["a=1"]


def test_verify_trains_a_row_whose_lists_share_a_key(clrun, capfd):
    case = Case(overrides=["iterations=1"], target=50.0, tolerance=100.0)
    row = Row(title="t", source="s", tolerances="r", base=["tasks=2", "iterations=9", "plots=false"], cases={"a": case})
    verify.command(["1", "--seeds", "2"], {"1": row})
    assert len(list(Path().glob("outputs/runs/ewc/*-iterations=1-*"))) == 2


def test_verify_refuses_a_setting_twice():
    with pytest.raises(Exception, match="device is typed twice"):
        verify.command(["1", "--set", "device=cpu", "device=auto"], verify.rows())
