"""The benchmark: its floor computes what clrun computes, and its table says what its CSV says."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from torch.func import grad

from clrun.system.paths import PACKAGE

ROOT = PACKAGE.parent
if not (ROOT / "scripts" / "bench.py").exists():
    pytest.skip("an installed package has no scripts/", allow_module_level=True)


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))


def bench(*arguments: str | Path) -> subprocess.CompletedProcess:
    line = [sys.executable, str(ROOT / "scripts" / "bench.py"), *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, cwd=ROOT)


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Path:
    """The CSV of a quick benchmark of two contenders, two rounds."""
    path = tmp_path_factory.mktemp("bench") / "performance_cpu.csv"
    done = bench("--quick", "--rounds", 2, "--only", "W1,W3", "--csv", path)
    assert done.returncode == 0, done.stderr
    return path


@pytest.mark.slow
def test_every_phase_of_both_is_measured_in_every_round(measured):
    rows = pd.read_csv(measured)
    for workload, phases in {
        "W1": ["training", "consolidation", "evaluation", "whole"],
        "W3": ["training", "whole"],
    }.items():
        for phase in phases:
            mine = rows[(rows.workload == workload) & (rows.phase == phase)]
            assert set(zip(mine.contender, mine["round"], strict=True)) == {
                (c, r) for c in ("floor", "ours") for r in (0, 1)
            }
            assert (mine.cpu_seconds > 0).all() and (mine.wall_seconds > 0).all()
    steps = rows[(rows.phase == "training")].groupby("contender")["count"].first()
    assert steps["floor"] == steps["ours"] == 15  # 280 samples a task in batches of 128, five tasks
    assert rows[["hardware", "device", "threads", "torch"]].notna().all().all()


@pytest.mark.slow
def test_floor_and_clrun_learn_alike(measured):
    """With a step or two a task; both forget nothing to speak of."""
    rows = pd.read_csv(measured)
    mean = rows[rows.phase == "whole"].groupby(["workload", "contender"])["accuracy"].mean()
    for workload in ("W1", "W3"):
        assert mean[workload, "floor"] == pytest.approx(mean[workload, "ours"], abs=0.25)


@pytest.mark.slow
def test_table_of_the_csv(measured, tmp_path):
    from benchmark import table

    page = tmp_path / "page.md"
    page.write_text(f"before\n{table.BEGIN.format('cpu')}\nold\n{table.END.format('cpu')}\nafter\n")
    done = bench("--table", "--csv", measured, "--page", page)
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    for name in ("**W1**", "**W3**", "| floor |", "| clrun |", "n = 2"):
        assert name in text


def test_ratios_are_of_one_round():
    from benchmark import table

    times = {"floor": [1.0, 2.0, 4.0], "ours": [2.0, 2.0, 6.0]}
    rows = pd.DataFrame(
        {"contender": name, "phase": "training", "round": i, "cpu_seconds": seconds}
        for name, values in times.items()
        for i, seconds in enumerate(values)
    )
    assert table.ratio(rows, "ours", "training") == "1.50 × (1.00 to 2.00)"


def test_a_peer_is_compared_with_and_without_pictures():
    from benchmark import table

    spent = [("ours", "whole", 2.0), ("ours", "plots", 0.4), ("avalanche", "whole", 4.0)]
    columns = ("contender", "phase", "cpu_seconds")
    rows = pd.DataFrame([dict(zip(columns, one, strict=True)) for one in spent]).assign(round=0, note=None)
    said = "Avalanche takes 2.00 × clrun's CPU time for the whole, 2.50 × without its plots."
    assert table.peers_said(rows) == f"\n\n{said}"


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_fisher_of_the_floor_is_its_definition(kind):
    from benchmark import floor

    net, w, x = tiny(floor, kind)
    lo, hi = 2, 5

    def log_p(w, x, y):
        return net(w, x[None])[0, lo:hi].log_softmax(0)[y]

    expected = [torch.zeros_like(p) for p in w]
    for one in x:
        for y in range(hi - lo):
            p, g = log_p(w, one, y).exp(), grad(log_p)(w, one, y)
            expected = [e + p * piece.square() for e, piece in zip(expected, g, strict=True)]
    with torch.no_grad():
        got = floor.fisher(kind, w, x, lo, hi)
    for piece, e in zip(got, expected, strict=True):
        torch.testing.assert_close(piece, e, rtol=1e-10, atol=1e-12)


def tiny(floor, kind):
    """A network of the floor's, its parameters and pictures, in float64."""

    spec = {"model": kind, "widths": [12, 8], "width": 3}
    experiment = SimpleNamespace(spec=spec, outputs=6, shape=(2, 8, 8))
    torch.manual_seed(0)
    w = [p.detach().double() for layer in floor.layers(experiment) for p in layer.parameters()]
    x = torch.rand(20, *experiment.shape, dtype=torch.float64)
    return floor.NETWORKS[kind], w, x.flatten(1) if kind == "mlp" else x


@pytest.fixture
def shelf(tmp_path):
    from benchmark.data import Shelf

    return Shelf(tmp_path, None, quick=True)


def test_fisher_of_the_floor_is_clruns(shelf):
    from benchmark import measure, probe_worker, workloads

    ours, theirs, n = probe_worker.estimators(measure.told(workloads.SINGLE["W1"], shelf, 0, "cpu", tiny=True))
    assert n == 280
    assert probe_worker.difference(ours(), theirs()) < 1e-5
    with pytest.raises(ValueError, match="differ"):
        probe_worker.difference(ours(), 1.01 * theirs())


def test_graph_floor_takes_the_steps_of_the_floor(shelf):
    """On a CPU, where nothing is captured: the same weights."""
    from benchmark import floor, measure, workloads

    spec = measure.told(workloads.SINGLE["W1"], shelf, 0, "cpu", tiny=True) | {"batch": 32, "epochs": 2}
    found = []
    for kind in (floor.Floor, floor.GraphFloor):
        one = kind(floor.Experiment(spec))
        for number in (0, 1):
            assert one.train(number) == 18
            one.consolidate(number)
        found.append(one.parameters.theta)
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_stacks_of_the_gpu_plan_run_here_too(shelf):
    """What the GPU's part asks for, on the CPU: two runs as one stack and one after another."""
    from benchmark import measure, stack_worker, workloads

    spec = measure.told(workloads.SINGLE["W1"], shelf, 0, "cpu", tiny=True)
    runs = [(1000.0, 0), (1000.0, 1)]
    together, apart = (
        stack_worker.run(spec | {"runs": runs, "stacked": stacked, "overrides": [*spec["overrides"], "stack=2"]})
        for stacked in (True, False)
    )
    assert together["accuracy"] == pytest.approx(apart["accuracy"], abs=0.02)


def test_refusals(tmp_path):
    for flag, name in (("--only", "W9"), ("--peers", "avalanch")):
        done = bench(flag, name)
        assert done.returncode == 2 and f"there is no {name}" in done.stderr and "Traceback" not in done.stderr
    if not torch.cuda.is_available():
        done = bench("--device", "cuda", "--csv", tmp_path / "out.csv")
        assert done.returncode == 2 and "no CUDA device" in done.stderr and not list(tmp_path.iterdir())


@pytest.mark.parametrize("stacked", [True, False])
def test_what_is_said_of_a_stack(stacked):
    from benchmark import stack_worker

    overrides = ["dataset=digits", "tasks=2", "iterations=2", "model.widths=[4]", "plots=false", "device=cpu"]
    spec = {"device": "cpu", "overrides": overrides, "runs": [(None, 0), (None, 1)], "stacked": stacked}
    answer = stack_worker.run(spec)
    assert 0 < answer["accuracy"] <= 1 and answer["reckoned_mb"] > 0 and answer["memory_mb"] is None
