"""A metric of the user's: a Python function of the predictions of a run."""

import importlib.util
from collections.abc import Callable
from numbers import Real
from pathlib import Path

import numpy as np
import pandas as pd

from clrun.results import collection
from clrun.results.reading import UnreadableFile, read_table
from clrun.system.errors import UsageError
from clrun.system.messages import announce
from clrun.system.user_frames import described

NAME = "own_metric"  # the measure

Metric = Callable[[pd.DataFrame], float]


def metric_of(typed: str) -> Metric:
    """Return the function that --metric names as FILE.py:FUNCTION. Raise UsageError."""
    file, colon, name = typed.rpartition(":")
    path = Path(file).expanduser()
    if not colon or path.suffix != ".py" or not name.isidentifier():
        raise UsageError(f"--metric {typed}: name a Python file and a function in it, such as metrics.py:balanced.")
    if not path.is_file():
        raise UsageError(f"--metric {typed}: there is no file {path}.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # of a file whose name ends in .py
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's code raises
        reason = " ".join(described(error).split())
        raise UsageError(f"--metric {typed}: {path} cannot be run: {reason}") from error
    function = module.__dict__.get(name)
    if not callable(function):
        raise UsageError(f"--metric {typed}: {path} has no function {name}.")
    return function


def measured(folder: Path, runs: pd.DataFrame, metric: Metric) -> pd.DataFrame:
    """Return the runs with the column `own_metric`: of each run that has a predictions.csv, what the function returns.
    A file that cannot be read is left out, which is said. Raise UsageError where no run has one or the function fails.
    """
    directories = collection.folders(folder, runs["run"].dropna().astype(str).tolist())
    paths = [directories[str(run)] / "predictions.csv" if str(run) in directories else None for run in runs["run"]]
    if not any(path is not None and path.is_file() for path in paths):
        raise UsageError(
            f"{folder}: no run there has a predictions.csv, which your metric reads; train runs with predictions=true."
        )
    values = [value_of(path, metric) if path is not None and path.is_file() else np.nan for path in paths]
    return runs.assign(**{NAME: values})


def value_of(path: Path, metric: Metric) -> float:
    """Return what the function returns for a predictions.csv; nan, after saying so, where that cannot be read. Raise
    UsageError where the function fails or returns no number."""
    try:
        predictions = read_table(path)
    except UnreadableFile as error:
        announce(f"left out of {NAME}: {error}")
        return np.nan
    try:
        value = metric(predictions)
    except Exception as error:  # whatever the user's code raises
        reason = " ".join(described(error).split())
        raise UsageError(f"your metric failed for {path}: {reason}") from error
    if not isinstance(value, Real):
        raise UsageError(f"your metric returned {value!r} for {path}; let it return a number.")
    return float(value)
