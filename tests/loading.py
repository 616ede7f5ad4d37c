"""Loading of a data set as the tests of several files do it."""

import pytest

from clrun.data import datasets
from clrun.system.errors import UsageError


def settings(name, data_dir=None, **dataset):
    """What `load` reads, with the defaults of the statements."""
    values = {"root": None, "size": 32, "test_fraction": None, "pad": 0, "white": None, "skip_broken": False} | dataset
    return {"dataset": name, "data_dir": data_dir} | {f"dataset.{key}": value for key, value in values.items()}


def refusal(*arguments, **dataset):
    """The text of the UsageError that loading ends with: one paragraph."""
    with pytest.raises(UsageError) as error:
        datasets.load(settings(*arguments, **dataset))
    text = str(error.value)
    assert "\n" not in text
    return text


def tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
