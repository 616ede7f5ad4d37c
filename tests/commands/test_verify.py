"""clrun-verify: the verdict is two-sided, the commands are those of the table, and a run is never chosen."""

import math
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import live
from helpers import summaries

from clrun.commands import console, verify
from clrun.commands.verify import Case, Finding
from clrun.config.composition import compose
from clrun.results.run_files import summary_of
from clrun.runs import prepare, train
from clrun.system.errors import UsageError

CASE = Case(overrides=[], target=90.0, tolerance=1.0, se=0.3)


@pytest.mark.parametrize(
    ("mean", "error", "n", "verdict"),
    [
        (90.9, 0.1, 5, "inside"),
        (89.1, 0.1, 5, "inside"),
        (91.2, 0.1, 20, "out"),
        (88.8, 0.1, 20, "out"),  # too low is as wrong as too high
        (91.2, 0.1, 5, "outside: needs more seeds"),
        (90.9, 0.5, 5, "cannot tell"),  # 2.5 * sqrt(0.5^2 + 0.3^2) = 1.46 exceeds the tolerance of 1
        (91.5, 0.5, 20, "cannot tell"),  # below 1 + 1.46
        (92.4, 0.5, 20, "cannot tell"),
        (92.5, 0.5, 20, "out"),
        (87.5, 0.5, 5, "outside: needs more seeds"),
        (90.9, math.nan, 1, "cannot tell"),  # one seed says nothing of its noise
        (200.0, math.nan, 1, "cannot tell"),
    ],
)
def test_verdict(mean, error, n, verdict):
    finding = Finding("1", "x", CASE, "", mean, error, n, 1.0, "")
    assert finding.verdict == verdict
    assert finding.allowed == 1.0  # whatever our own noise


@pytest.mark.parametrize(("number", "name"), [(n, c) for n, row in verify.rows().items() for c in row.cases])
def test_every_case_is_a_run(number, name):
    """Its overrides compose and pass the checks, and the settings are the protocol's."""
    row = verify.rows()[number]
    settings = compose(*verify.overrides_of(row, row.cases[name], []), "seed=2")
    assert settings["dataset"] == ("cifar10" if number == "11" else "mnist")
    assert settings["validation"] == 0


@pytest.mark.parametrize("number", verify.rows())
def test_every_row_says_why_it_has_which_tolerance(number):
    assert len(verify.rows()[number].tolerances.split()) >= 4


def test_the_table_fits_into_a_window():
    lines = verify.TABLE.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if len(line) > 160] == []


def test_maximally_interfered_retrieval_is_the_published_protocol():
    """The published step follows the sum of two losses, clrun's their mean: so the rate is twice theirs, and the
    virtual step has theirs."""
    row = verify.rows()["26"]
    for name, rate in (("split mir", 0.1), ("permuted mir", 0.05)):
        settings = compose(*verify.overrides_of(row, row.cases[name], []), "seed=2")
        wanted = {
            "model.widths": [400, 400],
            "batch_size": 10,
            "replay_batch": 10,
            "candidates": 50,
            "memory_size": 500,
        }
        wanted |= {"iterations": 101, "lr": 2 * rate, "virtual_lr": rate, "weighting": "equal"}
        wanted |= {"memory_policy": "reservoir", "optimizer.momentum": 0.0, "dataset.normalize": False}
        assert {key: settings[key] for key in wanted} == wanted


def test_split_mnist_is_the_published_protocol():
    row = verify.rows()["3"]
    settings = compose(*verify.overrides_of(row, row.cases["task"], []), "seed=2")
    wanted = {"model.widths": [400, 400], "lr": 1e-3, "iterations": 2000, "batch_size": 128, "drop_last": True}
    wanted |= {"dataset.normalize": False, "optimizer.name": "adam", "optimizer.reset": False, "lambda": 1e5}
    wanted |= {"fisher": "exact", "fisher_samples": None, "active": "all", "online": False}
    assert {key: settings[key] for key in wanted} == wanted


@pytest.mark.parametrize(("case", "lr"), [("er", 0.1), ("derpp", 0.03)])
def test_split_cifar10_is_the_published_protocol(case, lr):
    row = verify.rows()["11"]
    settings = compose(*verify.overrides_of(row, row.cases[case], []), "seed=2")
    wanted = {"tasks": 5, "split.order": "fixed", "scenario": "class", "active": "all", "epochs": 50, "batch_size": 32}
    wanted |= {"model": "resnet18", "model.width": 64, "model.norm": "batch", "augment": "crop_flip", "lr": lr}
    wanted |= {"optimizer.name": "sgd", "optimizer.momentum": 0.0, "optimizer.weight_decay": 0.0, "memory_size": 200}
    assert {key: settings[key] for key in wanted} == wanted


@pytest.mark.parametrize("case", ["500", "4400"])
def test_gdumb_has_what_can_be_typed_of_the_published_protocol(case):
    """A first pass of 128 with a lower rate, and the pictures of a task never leave batch norm a batch of one."""
    row = verify.rows()["13"]
    settings = compose(*verify.overrides_of(row, row.cases[case], []), "seed=2")
    wanted = {"model.widths": [400, 400], "model.norm": "batch", "lr": 0.05, "epochs": 128, "batch_size": 16}
    wanted |= {"optimizer.name": "sgd", "optimizer.momentum": 0.9, "optimizer.weight_decay": 1e-6, "clip_norm": 10.0}
    wanted |= {"schedule": "cosine", "warmup": 1 / 128, "augment": "crop", "memory_size": int(case)}
    wanted |= {"drop_last": True}
    assert {key: settings[key] for key in wanted} == wanted


def test_icarl_has_the_outputs_of_the_published_code():
    """Those of the classes so far, though all are active in the other rows of Split MNIST."""
    row = verify.rows()["14"]
    settings = compose(*verify.overrides_of(row, row.cases["class"], []), "seed=2")
    wanted = {"active": "seen", "scenario": "class", "memory_per_class": 100, "memory_policy": "herding"}
    wanted |= {"iterations": 2000, "batch_size": 128, "lr": 0.001, "optimizer.reset": False}
    assert {key: settings[key] for key in wanted} == wanted


@pytest.mark.parametrize(("case", "lr"), [("fdr 200", 0.03), ("fdr 500", 0.1)])
def test_fdr_has_the_batches_and_the_weight_of_the_published_code(case, lr):
    """The published alpha is not read there, so that the distance has the weight 1."""
    row = verify.rows()["15"]
    settings = compose(*verify.overrides_of(row, row.cases[case], []), "seed=2")
    wanted = {"batch_size": 128, "replay_batch": 128, "replay_draw": "without", "alpha": 1.0, "lr": lr, "epochs": 1}
    wanted |= {"active": "all", "split.order": "fixed", "model.init": "xavier", "dataset.normalize": False}
    assert {key: settings[key] for key in wanted} == wanted


@pytest.mark.parametrize("strategy", ["er", "derpp"])
def test_split_cifar10_takes_a_step(stack_of, strategy):
    """On the digits, padded, with a narrow network: what the experiment composes can be trained."""
    small = ("dataset=digits", "dataset.pad=4", "model.width=2", "iterations=1")
    run, report = live(stack_of("+experiment=split_cifar10", f"strategy={strategy}", *small))
    assert run.theta.isfinite().all()
    assert report[-1].health[0]["memory_fill"] > 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [(["77"], "there is no row 77"), ([], "type rows out of 1, 2"), (["1", "--seeds", "0"], "at least one"),
     (["1", "--set", "lambda=3"], "would change what is verified"), (["1", "--seeds", "x"], "invalid int value"),
     (["1", "--sed", "3"], "unrecognized arguments"), (["1", "--set", "init_from=there"], "would change what is")],
)  # fmt: skip
def test_refusals(capsys, arguments, reason):
    with pytest.raises(SystemExit) as end:
        console.end_with(lambda _: verify.command(arguments, verify.rows()))
    assert end.value.code == 2
    assert reason in capsys.readouterr().err


@pytest.mark.slow
def test_a_row_from_end_to_end(capsys, tmp_path):
    """A small row of our own on digits: trained, compared, printed; and again, without training."""
    base = ["strategy=finetune", "iterations=20", "model.widths=[8]"]
    near, far = (
        Case(overrides=[f"scenario={scenario}"], target=target, tolerance=tolerance)
        for scenario, target, tolerance in (("task", 75, 60), ("class", 999, 60))
    )
    cases = {"near": near, "far": far}
    row = verify.Row(title="small", source="none", tolerances="none", base=base, cases=cases)
    arguments = ["1", "--seeds", "2", "--set", f"outputs={tmp_path}", "device=cpu"]
    for _ in range(2):
        with pytest.raises(SystemExit) as end:
            console.end_with(lambda _: verify.command(arguments, {"1": row}))
        assert end.value.code == 1
        out = capsys.readouterr().out
        assert "seed=range(2,4)" in out
        (near,) = [line for line in out.splitlines() if " near " in line and "75.00" in line]
        (far,) = [line for line in out.splitlines() if " far " in line and "999.00" in line]
        assert " inside " in near and " needs more seeds " in far
    assert len(summaries("finetune", outputs=tmp_path)) == 4
    assert "0 to train, 2 done already" in out


def test_a_case_says_what_it_costs_and_by_which_commit(monkeypatch):
    """A run of a version that wrote no commit has none."""
    runs = [(90.0, "c54102f"), (30.0, "4c7f09a+"), (60.0, "c54102f"), (60.0, "")]
    of = {Path(str(k)): {"wall_seconds": seconds, "commit": commit} for k, (seconds, commit) in enumerate(runs)}
    monkeypatch.setattr("clrun.results.run_files.summary_of", of.get)
    minutes, commit = verify.spent(list(of))
    assert minutes == pytest.approx(1.0) and commit == "c54102f, 4c7f09a+"
    finding = Finding("1", "x", CASE, "", 90.0, 0.1, 3, minutes, commit)
    assert verify.cells_of(finding)[-3:] == ["inside", "1.0", "c54102f, 4c7f09a+"]


def test_data_that_cannot_be_read_are_one_paragraph(monkeypatch, capfd, tmp_path):
    """A file of MNIST is there, but damaged: that is noticed when the data are loaded."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            (raw / f"{part}-{kind}-ubyte").write_bytes(b"no picture")
    line = ["clrun-verify", "3", "--set", f"outputs={tmp_path / 'outputs'}", f"data_dir={tmp_path}"]
    monkeypatch.setattr(sys, "argv", line)
    with pytest.raises(SystemExit) as end:
        verify.main()
    err = capfd.readouterr().err
    assert end.value.code == 2
    assert err.startswith("clrun: ") and "ubyte" in err and err.count("\n") == 1
    assert not (tmp_path / "outputs").exists()


def test_a_metric_that_is_unknown_is_refused():
    """In a row and in a case, by a sentence that says what there is."""
    row = {"title": "t", "source": "s", "tolerances": "r", "base": [], "cases": {}}
    with pytest.raises(UsageError, match=r"row 7 of .*metric: there is no metric acuracy; type first_task, online_acc"):
        verify.checked("7", row | {"metric": "acuracy"})
    for metric in ("online_accuracy_0", "online_accuracy_", "diverged_at", "online_accuracy_2x"):
        case = {"overrides": [], "target": 50, "tolerance": 1, "metric": metric}
        with pytest.raises(UsageError, match=f"cases.one.metric: there is no metric {metric};"):
            verify.checked("7", row | {"cases": {"one": case}})
    with pytest.raises(UsageError, match="the field tolerances is missing"):
        verify.checked("7", {key: value for key, value in row.items() if key != "tolerances"})


def test_cases_of_the_same_runs_read_what_each_asks_for(tmp_path, capsys):
    """The runs are trained once, and the online accuracy is that of the task, in percent."""
    metrics = {"first": "online_accuracy_1", "last": "online_accuracy_5", "mean": None}
    cases = {name: Case(overrides=[], target=50, tolerance=1, metric=metric) for name, metric in metrics.items()}
    base = ["strategy=finetune", "stream=online", "first_tasks=5", "batch_size=16", "model.widths=[8]", "plots=false"]
    row = verify.Row(title="small", source="none", tolerances="none", base=base, cases=cases)
    common = [f"outputs={tmp_path}", "device=cpu"]
    found = {finding.name: finding.mean for finding in verify.verify("1", row, range(2, 4), common)}
    assert capsys.readouterr().out.count("row 1, ") == 1
    folders = verify.directories([*base, *common], range(2, 4))
    tables = [pd.read_csv(folder / "online_accuracy.csv").set_index("task").online_accuracy for folder in folders]
    assert found["first"] == pytest.approx(100 * sum(table["1"] for table in tables) / 2)
    assert found["last"] == pytest.approx(100 * sum(table["5"] for table in tables) / 2)
    assert found["mean"] == pytest.approx(100 * sum(summary_of(folder)["average_accuracy"] for folder in folders) / 2)
    assert found["first"] != found["last"]
    with pytest.raises(UsageError, match="has no task 6, so it has no online_accuracy_6"):
        verify.measured(folders[0], "online_accuracy_6")


def test_the_list_has_tolerances_and_their_reasons_within_the_width():
    """Whatever the width, the words are the same; a wide terminal has a line for each part."""
    row = verify.Row(title="Small", source="a book", tolerances="half a " * 12, base=[], cases={"one": CASE})
    narrow, wide = verify.listing({"9": row}, 40), verify.listing({"9": row}, 1000)
    assert max(len(line) for line in narrow.splitlines()) <= 40
    assert narrow.split() == wide.split()
    title, published, source, reason = wide.splitlines()
    assert title == "  9  Small" and published.endswith("in %: one 90 ± 1")
    assert source.strip() == "Source: a book" and reason.strip().startswith("Tolerances: half a")


def test_the_list_is_printed_as_wide_as_the_terminal(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "70")
    verify.command(["--list"], verify.rows())
    out = capsys.readouterr().out
    assert max(len(line) for line in out.splitlines()) <= 70
    assert "task 84.32 ± 3; domain" in out


def test_accuracy_on_the_first_task(tmp_path):
    prepared = prepare.prepare(compose("iterations=5", "model.widths=[8]", "device=cpu", f"outputs={tmp_path}"))
    train.train_run(prepared, quiet=True)
    last = pd.read_csv(prepared.directory / "accuracy_matrix.csv").iloc[-1]
    assert verify.measured(prepared.directory, "first_task") == pytest.approx(100 * last["task_1"])
    assert verify.measured(prepared.directory, "average_accuracy") == pytest.approx(100 * last["average"])


@pytest.mark.parametrize("metric", ["online_accuracy", "online_accuracy_1", "accuracy_auc"])
def test_a_number_that_a_run_did_not_measure_is_no_verdict(tmp_path, metric):
    """It is not far from what was published: there is none."""
    prepared = prepare.prepare(compose("iterations=5", "model.widths=[8]", "device=cpu", f"outputs={tmp_path}"))
    train.train_run(prepared, quiet=True)
    with pytest.raises(UsageError, match=f"did not measure {metric}, so it has no number to compare"):
        verify.measured(prepared.directory, metric)
