"""Runs whose results.csv is kept."""

from pathlib import Path

import pytest
from outcomes import VALUES, placed
from run_changes import results, written_from_folders

from clrun.results import collection


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def outputs(tmp_path) -> Path:
    """Twelve runs of three strategies with different keys, indexed."""
    for seed in range(4):
        placed(tmp_path, "ewc", seed, warnings=['a "quoted", one', "größe"])
        placed(tmp_path, "finetune", seed, values=VALUES | {"strategy": "finetune", "seed": seed, "own": seed})
        placed(tmp_path, "si", seed, values=VALUES | {"strategy": "si", "seed": seed, "c": 0.1 * seed})
    collection.update(tmp_path)
    assert results(tmp_path) == written_from_folders(tmp_path)
    return tmp_path
