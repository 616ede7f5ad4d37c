"""Every digit of a number in a CSV file is read, with every version of pandas."""

import io
import warnings

import pytest

from clrun.data import table
from clrun.results import reading, run_files

# Older versions of pandas read each of them as its neighbour.
NUMBERS = (7 / 92, 34 / 90, 0.1 + 0.2)


def from_a_data_set(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("\n".join(["x,y", *(f"{v!r},1" for v in NUMBERS)]))
    return table.from_csv(path, table.Typed(str(path)), "the table")


READERS = {
    "a file of a run": lambda _: reading.table_of(["x"], [[repr(v)] for v in NUMBERS], []),
    "results.csv": lambda _: run_files.table_of(io.StringIO("\n".join(["x", *map(repr, NUMBERS)]))),
    "a data set": from_a_data_set,
}


@pytest.mark.parametrize("reader", READERS)
def test_all_digits_are_read(tmp_path, reader):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert READERS[reader](tmp_path)["x"].tolist() == list(NUMBERS)
