"""The identity of runs: it never changes by accident, so that finished runs stay finished."""

import pytest

from clrun.data import datasets


@pytest.mark.parametrize("outputs", ["outputs", "elsewhere"])  # where a run is written is no part of its identity
def test_the_identity_of_a_run_stays(settings_of, outputs):
    settings = settings_of("strategy=ewc", "lambda=400", f"outputs={outputs}")
    fingerprint = datasets.load(settings.values).fingerprint
    assert settings.identity(fingerprint) == "3e1dca28ed"
    assert settings.directory(fingerprint).name == "digits-classes-task-5tasks-seed=0-3e1dca28ed"


def test_another_value_is_another_run(settings_of):
    settings = settings_of("strategy=ewc", "lambda=401")
    assert settings.identity(datasets.load(settings.values).fingerprint) != "3e1dca28ed"
