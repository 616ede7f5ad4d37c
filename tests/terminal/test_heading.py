"""The heading of a run's tables prints each value as it was typed."""

import numpy as np
import pandas as pd
import pytest

from clrun.terminal.run_tables import heading

SUMMARY = {
    "strategy": "ewc",
    "dataset": "digits",
    "split": "classes",
    "scenario": "task",
    "tasks": 5,
    "model": "mlp",
    "seed": 0,
    "device": "cpu",
}


@pytest.mark.parametrize(
    ("value", "text"),
    [(400.0, "400"), (1234567.0, "1234567"), (123456.7, "123456.7"), (1e-5, "1e-05"), (np.True_, "true")],
)
def test_the_heading_prints_a_value_as_it_is_typed(value, text):
    summary = pd.Series(SUMMARY | {"lambda": value}, dtype=object)
    assert heading(summary, ["lambda"]) == (
        f"ewc lambda={text} · digits, classes, 5 tasks, scenario task · mlp · seed 0 · cpu"
    )


@pytest.mark.parametrize("key", ["features.arch", "features.target"])
def test_the_heading_names_the_frozen_network(key):
    summary = pd.Series(SUMMARY | {"features": "any", key: "my.Net"}, dtype=object)
    assert heading(summary, []) == (
        "ewc · digits, classes, 5 tasks, scenario task · mlp on features of my.Net · seed 0 · cpu"
    )
