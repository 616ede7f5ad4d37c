"""How pandas is asked to read all digits of the numbers in a CSV file."""

from typing import Any

import pandas as pd

# Before version 3.1, pandas may read a number that differs in the last digit, unless it is asked not to. Since then it
# never does, and warns where it is asked.
VERSION = tuple(int(part) for part in pd.__version__.split(".")[:2])
ALL_DIGITS: dict[str, Any] = {} if VERSION >= (3, 1) else {"float_precision": "round_trip"}
