"""A value is printed as it is typed, wherever it is printed."""

import numpy as np
import pytest

from clrun.system.text import format_value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (np.bool_(False), "false"),
        (400.0, "400"),
        (1234567.0, "1234567"),
        (123456.7, "123456.7"),
        (np.float64(0.1), "0.1"),
        (1e-5, "1e-05"),
        (0.1 + 0.2, "0.30000000000000004"),
        (1e22, "1e+22"),
        (np.int64(3), "3"),
        ([100, 100], "[100,100]"),
        ([["cat", "dog"], ["deer"]], "[[cat,dog],[deer]]"),
        ("mlp", "mlp"),
    ],
)
def test_a_value_is_printed_as_it_is_typed(value, text):
    assert format_value(value) == text
