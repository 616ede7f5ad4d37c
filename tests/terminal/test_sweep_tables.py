"""The tables of a sweep: means over seeds, and the best setting by validation."""

import io

import numpy as np
import pandas as pd
from outcomes import CORRECT, placed
from rich.console import Console

from clrun.results import collection
from clrun.terminal import sweep_tables


def test_sweep_table(tmp_path):
    placed(tmp_path, "ewc", 0)
    placed(tmp_path, "ewc", 1, correct=np.full((4, 3), 9))
    correct = np.array(CORRECT[3])
    correct[2:] = -1
    placed(tmp_path, "si", 0, correct=correct, status="diverged")
    console = Console(file=io.StringIO(), width=240)
    sweep_tables.sweep_table(console, collection.collect(tmp_path), ["strategy", "seed"])
    rows = [line.split() for line in console.file.getvalue().splitlines()]
    assert ["ewc", "2", "81.7", "±", "11.8", "5.0", "±", "7.1", "85.0", "±", "7.1"] in rows
    assert ["si", "1", "1"] in rows


def test_the_best_by_validation_is_named():
    def row(strategy, strength, seed, validation, status="done", stream="a"):
        told = (stream, strategy, strength, seed, validation, status)
        return dict(zip(("stream", "strategy", "lambda", "seed", "validation_accuracy", "status"), told, strict=True))

    def said(rows, varying=("strategy", "lambda", "seed")):
        console = Console(file=io.StringIO(), width=240)
        sweep_tables.best_by_validation(console, pd.DataFrame(rows), varying)
        return console.file.getvalue()

    two = [row("ewc", "1", seed, 0.90) for seed in (0, 1)] + [row("ewc", "10", 0, 0.80), row("ewc", "10", 1, 0.96)]
    assert said(two) == "highest validation accuracy of ewc: lambda=1 (90.0 %, n = 2)\n"
    assert said([*two, row("ewc", "99", 0, 0.99), row("ewc", "99", 1, 0.99, "diverged")]) == said(two)
    assert said([*two, row("finetune", "", 0, 0.7)]) == said(two)
    assert said([*two[::2], row("ewc", "5", 0, 0.95, stream="b")], ["strategy", "lambda"]).count("\n") == 1
    assert said([{**one, "validation_accuracy": float("nan")} for one in two]) == ""
