"""How pandas is asked to read all digits of the numbers in a CSV file."""

import re
from typing import Any

import pandas as pd

# Before version 3.1, pandas may read a number that differs in the last digit, unless it is asked not to. Since then it
# never does, and warns where it is asked.
NUMBERS = re.match(r"(\d+)\.(\d+)", pd.__version__)  # None for a version of nobody, such as 0+unknown
VERSION = (int(NUMBERS[1]), int(NUMBERS[2])) if NUMBERS else (0, 0)
ALL_DIGITS: dict[str, Any] = {} if VERSION >= (3, 1) else {"float_precision": "round_trip"}
