"""Loading of a data set as the tests of several files do it."""

import numpy as np
import pytest
from PIL import Image

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


def red_and_blue(root, tests):
    """Write pictures of two classes, red and blue: 8 of each to learn from, and so many to test. Return the folder."""
    random = np.random.default_rng(0)
    for part, count in (("train", 8), ("test", tests)):
        for channel, name in ((0, "red"), (2, "blue")):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 120, (20, 30, 3), dtype=np.uint8)
                pixels[..., channel] += 100
                Image.fromarray(pixels).save(root / part / name / f"{i}.png")
    return root
