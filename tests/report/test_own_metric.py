"""predictions.csv (predictions=true), and a user's own metric of it: clrun-report --metric."""

import numpy as np
import pandas as pd
import pytest
from helpers import CPU

import clrun
from clrun.commands import report
from clrun.results.reading import read_table
from clrun.runs import train

SHORT = ("iterations=5", "model.widths=[8]", "scenario=class", "strategy=finetune", "predictions=true", "plots=false")
SHARE = """
def share(predictions):
    last = predictions[predictions.after_task == predictions.after_task.max()]
    return (last.true_class == last.predicted_class).mean()

def broken(predictions):
    return predictions.no_such_column

def text(predictions):
    return "much"
"""


@pytest.fixture
def trained(prepared_of):
    """The folder of a run."""
    prepared = prepared_of(*SHORT)
    train.train_run(prepared, quiet=True)
    return prepared.directory


@pytest.fixture
def folder(trained):
    """The folder of its results, with metrics beside them."""
    outputs = trained.parents[2]
    (outputs / "metrics.py").write_text(SHARE)
    return outputs


def test_every_answer_is_there(trained):
    """The answers add up to accuracy.csv and to confusion_over_tasks.csv; each sample is there once a stage."""
    answers = read_table(trained / "predictions.csv")
    right = answers.assign(right=answers["true_output"] == answers["predicted_output"])
    sums = right.groupby(["after_task", "eval_task"])["right"].agg(["sum", "size"])
    accuracy = read_table(trained / "accuracy.csv").query("after_task > 0").set_index(["after_task", "eval_task"])
    assert sums["sum"].tolist() == accuracy["correct"].tolist() and sums["size"].tolist() == accuracy["n"].tolist()
    keys = ["after_task", "eval_task", "true_class", "predicted_class"]
    pairs = pd.read_csv(trained / "confusion_over_tasks.csv").set_index(keys)["count"].sort_index()
    found = pd.read_csv(trained / "predictions.csv").groupby(keys).size()
    assert found.to_dict() == pairs.to_dict()
    assert not answers.duplicated(["after_task", "sample"]).any() and answers["sample"].min() >= 1347


def test_a_metric_of_ones_own_is_a_measure(trained, folder, capsys):
    """In the tables, report.csv, --budget and --compare; the share of right answers is the overall accuracy."""
    report.command([str(folder), "--no-plots", "--metric", f"{folder}/metrics.py:share", "--measure", "own_metric"])
    table = pd.read_csv(folder / "report.csv").set_index("metric")["mean"]
    assert table["own_metric"] == pytest.approx(table["overall_accuracy"])
    assert "own" in capsys.readouterr().out
    report.command([str(folder), "--metric", f"{folder}/metrics.py:share", "--budget", "own_metric>2"])
    assert "No row keeps" in capsys.readouterr().out
    predictions = clrun.load(folder).predictions
    assert len(predictions) == len(read_table(trained / "predictions.csv")) and set(predictions["seed"]) == {0}


@pytest.mark.parametrize("typed, said", [
    ("metrics.py", "name a Python file and a function"), ("none.py:share", "there is no file"),
    ("metrics.py:other", "has no function other"), ("metrics.py:broken", "no_such_column"),
    ("metrics.py:text", "let it return a number"),
    ("raises.py:f", "raises.py, line 1, in <module>: 1 / 0: ZeroDivisionError"),
    ("torn.py:f", "torn.py, line 2: def f(:: SyntaxError"),
    ("metrics.py:broken", "metrics.py, line 7, in broken: return predictions.no_such_column: AttributeError"),
])  # fmt: skip
def test_what_is_no_metric_is_one_paragraph(answer, folder, typed, said):
    (folder / "raises.py").write_text("1 / 0")
    (folder / "torn.py").write_text("\ndef f(:\n")
    code, _, err = answer(folder, "--metric", folder / typed, "--no-plots", command=report.command)
    assert code == 2 and said in err and err.count("\n") == 1


def test_a_damaged_file_is_named_and_the_others_go_on(answer, folder, trained):
    (trained / "predictions.csv").write_text("a,b\n1,2\n")
    typed = ("--metric", folder / "metrics.py:share", "--no-plots")
    code, _, err = answer(folder, *typed, command=report.command)
    assert code == 0 and (folder / "report.csv").is_file()
    assert "own_metric" in err and str(trained / "predictions.csv") in err and "rerun=true" in err


def test_runs_without_predictions_say_how_to_get_them(answer, folder, trained):
    (trained / "predictions.csv").unlink()
    code, _, err = answer(folder, "--metric", folder / "metrics.py:share", command=report.command)
    assert code == 2 and "predictions=true" in err


def test_a_checkpoint_keeps_the_answers(prepared_of):
    from clrun.runs.checkpointer import outcome_arrays

    prepared = prepared_of(*SHORT)
    outcome = train.new_outcome(prepared, train.build([prepared], device=CPU))
    outcome.predictions = np.ones((3, 5), np.int64)
    assert (outcome_arrays(outcome)["outcome.predictions"] == 1).all()


def test_no_predictions_is_one_run_however_it_is_typed(settings_of):
    plain, off, on = (
        settings_of("strategy=ewc", *typed).identity("d")
        for typed in ((), ("predictions=false",), ("predictions=true",))
    )
    assert off == plain and on != plain


def test_metrics_of_ones_own_from_python(folder):
    """clrun.load(metrics=...): a column for each, beside which rows and statistics stay as they are."""
    results = clrun.load(folder, metrics={"share": lambda answers: len(answers), "answers": len})
    assert results.runs["answers"].item() == results.runs["share"].item() == len(results.predictions)
    assert len(results.rows) == 1 and "share" not in results.labels.values()
    assert results.of(results.runs["run"]).runs["answers"].item() == len(results.predictions)
    with pytest.raises(clrun.UsageError, match="forgetting already"):
        clrun.load(folder, metrics={"forgetting": len})
    with pytest.raises(clrun.UsageError, match="your metric failed"):
        clrun.load(folder, metrics={"broken": lambda answers: answers.no_such_column})
