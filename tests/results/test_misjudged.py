"""misjudged.png of a run: which samples it shows, and that what is read is what was written."""

import numpy as np
import pytest
import torch
from outcomes import outcome
from PIL import Image

from clrun.results import misjudged
from clrun.runs.ending import write_misjudged

# tasks learnt, tested task, true, predicted, count, sample
PAIRS = np.array([[1, 0, 0, 1, 9, 7], [2, 0, 0, 1, 2, 3], [2, 0, 1, 0, 5, 4], [2, 0, 1, 1, 50, 5], [1, 0, 1, 0, 1, 4]])


def test_the_most_frequent_pairs_after_the_last_task_come_first():
    """Right answers are no pairs, and a sample is shown once."""
    assert misjudged.chosen(PAIRS) == [4, 3, 7] and misjudged.chosen(PAIRS, most=2) == [4, 3]
    assert misjudged.chosen(PAIRS[:0]) == []


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7), (1, 96, 60), (3, 200, 300)])
def test_what_is_read_is_what_was_written(tmp_path, shape):
    """Small pictures as they are, larger ones with a longer side of 48 pixels; two rows of them."""
    pictures = np.random.default_rng(0).integers(0, 256, (13, *shape), dtype=np.uint8)
    misjudged.write(tmp_path / "m.png", range(100, 113), pictures)
    found = misjudged.read(tmp_path / "m.png")
    assert list(found) == list(range(100, 113))
    if max(shape) <= misjudged.SIDE:
        assert all((found[100 + k] == pictures[k].transpose(1, 2, 0)).all() for k in range(13))
    else:
        assert max(found[100].shape) == misjudged.SIDE and found[112].shape == found[100].shape
        assert abs(found[112].mean() - pictures[12].mean()) < 1


def test_a_picture_that_is_no_such_sheet_is_refused(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "m.png")
    with pytest.raises(ValueError, match="does not say"):
        misjudged.read(tmp_path / "m.png")


@pytest.mark.parametrize("samples, there", [
    (torch.zeros(9, 1, 8, 8, dtype=torch.uint8), True), (torch.zeros(9, 8), False), (torch.zeros(9, 3, 8, 8), False),
    (torch.zeros(9, 2, 8, 8, dtype=torch.uint8), False),
])  # fmt: skip
def test_samples_that_are_no_pictures_have_no_sheet(tmp_path, samples, there):
    """And the sheet of an earlier training goes."""
    (tmp_path / misjudged.NAME).touch()
    write_misjudged(outcome(tmp_path, 2, confusions=PAIRS), samples)
    assert (tmp_path / misjudged.NAME).exists() == there
    if there:
        assert list(misjudged.read(tmp_path / misjudged.NAME)) == [4, 3, 7]
