"""Costs: energy by a made-up NVML and without one, what a task costs, what they add up to, what a strategy keeps."""

import os
import sys
import time
from functools import partial
from itertools import count
from math import isnan
from pathlib import Path

import pandas as pd
import pytest
import torch
from helpers import MadeUpCards
from interrupting import SHORT_BLOCKS

from clrun.results import costs as prices
from clrun.results import run_files
from clrun.runs import checkpoint, train
from clrun.runs.prepared import Prepared
from clrun.system import energy, peak_memory

SMALL = ("model.widths=[8]", "iterations=20", "device=cpu", "plots=false")
MILLIJOULES = 3_600_000  # a watt-hour


class Refused(Exception):
    """What NVML raises."""


class FakeNvml:
    """An NVML with one board. counter, power: what is asked of it, or None where it does not tell."""

    NVMLError = Refused

    def __init__(self, counter=None, power=None, driver: bool = True) -> None:
        self.counter, self.power, self.driver, self.sessions = counter, power, driver, 0

    def nvmlInit(self) -> None:
        if not self.driver:
            raise Refused
        self.sessions += 1

    def nvmlShutdown(self) -> None:
        self.sessions -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid != "GPU-7":
            raise Refused
        return "the handle"

    def answer(self, value, board):
        assert board == "the handle" and self.sessions == 1
        if value is None:
            raise Refused
        return value() if callable(value) else value

    def nvmlDeviceGetTotalEnergyConsumption(self, board) -> int:
        return self.answer(self.counter, board)

    def nvmlDeviceGetPowerUsage(self, board) -> int:
        return self.answer(self.power, board)


# ---------------------------------------------------------------- energy


def test_the_counter_is_read_from_its_start_on():
    board = FakeNvml(counter=5 * MILLIJOULES, power=10**9)  # the power is not asked where there is a counter
    with energy.board_meter(board, "GPU-7") as meter:
        assert meter() == 0
        board.counter += MILLIJOULES // 4
        assert meter() == 0.25
        board.counter += MILLIJOULES
        assert meter() == 1.25
    assert board.sessions == 0


def test_a_board_that_stops_answering_is_unknown():
    board = FakeNvml(counter=5 * MILLIJOULES)
    with energy.board_meter(board, "GPU-7") as meter:
        board.counter = None
        assert isnan(meter())


def test_the_power_is_integrated_where_there_is_no_counter():
    reads = count()
    board = FakeNvml(power=lambda: next(reads) and 250_000)  # 250 W, but for the first look
    with energy.board_meter(board, "GPU-7", seconds=0.005) as meter:
        meter()  # after the first look
        before, began = meter(), time.perf_counter()
        time.sleep(0.1)
        after, ended = meter(), time.perf_counter()
    assert after - before == pytest.approx(250 * (ended - began) / 3600, rel=0.05)
    assert next(reads) > 5, "nobody looked while it slept"
    assert board.sessions == 0


def test_the_integral_is_the_trapezoids():
    """By hand: 100 W for 2 s, rising to 300 W within 4 s, falling to 0 within 1 s: 200 + 800 + 150 J."""
    times, watts = iter([10.0, 12.0, 16.0, 17.0]), iter([100.0, 100.0, 300.0, 0.0])
    integral = energy.Integral(lambda: next(watts), lambda: next(times))
    assert [integral.update() for _ in range(3)] == [200.0, 1000.0, 1150.0]


@pytest.mark.parametrize(
    "board, uuid", [(FakeNvml(driver=False), "GPU-7"), (FakeNvml(counter=1), "GPU-8"), (FakeNvml(), "GPU-7")]
)
def test_without_a_driver_a_board_or_an_answer_it_is_unknown(board, uuid):
    with energy.board_meter(board, uuid) as meter:
        assert isnan(meter())
    assert board.sessions == 0


def test_a_cpu_tells_nothing():
    def binding():
        pytest.fail("NVML is not asked about a CPU")

    with energy.meter(torch.device("cpu"), binding) as meter:
        assert isnan(meter())


def test_without_the_package_it_is_unknown(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert energy.nvml_binding() is None
    with energy.meter(torch.device("cuda")) as meter:
        assert isnan(meter())


# ---------------------------------------------------------------- energy of a run


class Killed(Exception):
    """As if the process had ended there, without a word."""


class Working:
    """A progress bar at which every step draws a watt-hour; at the `lives`-th block the process is killed."""

    def __init__(self, board: FakeNvml, lives: float = float("inf")) -> None:
        self.board, self.lives, self.begins = board, lives, False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def begin_task(self, stage, steps):
        self.begins = True

    def advance(self, steps):
        """The first word of a task is of the steps that are done already, the others of a block's steps."""
        if not self.begins:
            self.board.counter += steps * MILLIJOULES
            self.lives -= 1
            if self.lives <= 0:
                raise Killed
        self.begins = False

    def end_task(self, stage, accuracies):
        pass


@pytest.fixture
def board() -> FakeNvml:
    """A board that `measured_by` measures runs by."""
    return FakeNvml(counter=10**12)


def measured_by(board: FakeNvml, **arguments) -> train.StackTrainer:
    """Return a trainer whose runs are measured by this board, whatever their device."""
    return partial(train.train_stack, meter_of=lambda device: energy.board_meter(board, "GPU-7"), **arguments)


def saved_costs(prepared: Prepared) -> pd.DataFrame:
    """Return the rows of costs.csv that the checkpoint of a run holds; none without one."""
    saved = checkpoint.read(prepared.directory, prepared.id)
    return costs(prepared)[:0] if saved is None else pd.DataFrame(saved.notes["task_costs"])


def summary(prepared: Prepared) -> pd.Series:
    return run_files.read_summary(prepared.directory / "summary.csv").iloc[0]


def costs(prepared: Prepared) -> pd.DataFrame:
    return pd.read_csv(prepared.directory / "costs.csv")


def test_energy_of_a_run_and_of_its_tasks(prepared_of, board):
    prepared = prepared_of(*SMALL)
    train.train_runs([prepared], progress=Working(board), trainer=measured_by(board))
    assert summary(prepared)["energy_wh"] == pytest.approx(5 * 20)
    assert costs(prepared)["energy_wh"].tolist() == [0, 20, 20, 20, 20, 20]


def test_a_stack_shares_its_energy(prepared_of, board):
    stack = [prepared_of(*SMALL, f"seed={seed}") for seed in range(4)]
    train.train_runs(stack, progress=Working(board), trainer=measured_by(board))
    assert [summary(one)["energy_wh"] for one in stack] == pytest.approx([5 * 20 / 4] * 4)
    assert costs(stack[0])["energy_wh"].tolist() == [0, 5, 5, 5, 5, 5]


@pytest.mark.parametrize("lives", [2, 4, 7, 10, 14])
@pytest.mark.parametrize("every", ["checkpoint_every=1e-9", "checkpoint_every=0"])
def test_an_interrupted_run_adds_up(prepared_of, board, lives, every):
    """Three blocks a task. What was lost since the last checkpoint was drawn in vain, and is not in the run's bill.

    After a task so short as these, a checkpoint is written only if that takes a small share of the time.
    """
    prepared = prepared_of(*SMALL, every, "rerun=true")
    train.train_runs([prepared], progress=Working(board), trainer=measured_by(board, **SHORT_BLOCKS.keywords))
    whole = costs(prepared)
    with pytest.raises(Killed):
        train.train_runs(
            [prepared], progress=Working(board, lives), trainer=measured_by(board, **SHORT_BLOCKS.keywords)
        )
    told = saved_costs(prepared)
    learnt = (lives - 1) // 3
    assert len(told) in ({0, *range(2, learnt + 2)} if every == "checkpoint_every=0" else {max(learnt, 1), learnt + 1})
    board.counter = 3  # another machine
    train.train_runs([prepared], progress=Working(board), trainer=measured_by(board, **SHORT_BLOCKS.keywords))
    assert summary(prepared)["energy_wh"] == pytest.approx(5 * 20)
    found = costs(prepared)
    assert found["energy_wh"].tolist() == pytest.approx([0, 20, 20, 20, 20, 20])
    assert found[["task", "samples"]].equals(whole[["task", "samples"]])
    pd.testing.assert_frame_equal(
        found.iloc[: len(told)][list(told)], told
    )  # what was saved before the end is as it was


def test_half_known_is_unknown(prepared_of, board):
    prepared = prepared_of(*SMALL)
    with pytest.raises(Killed):
        train.train_runs([prepared], progress=Working(board, 3), trainer=measured_by(board))
    board.driver = False  # it goes on where nobody can tell
    train.train_runs([prepared], progress=Working(board), trainer=measured_by(board))
    assert pd.isna(summary(prepared)["energy_wh"])
    assert costs(prepared)["energy_wh"].isna().tolist() == [False, False, True, True, True, True]


# ---------------------------------------------------------------- carbon and money


def test_carbon_and_money(prepared_of, board):
    prepared = prepared_of(*SMALL, "grams_per_kwh=400", "price_per_hour=3.6")
    train.train_runs([prepared], progress=Working(board), trainer=measured_by(board))
    found = summary(prepared)
    assert found["carbon_g"] == pytest.approx(0.1 * 400)  # 100 Wh
    assert found["money"] == pytest.approx(found["wall_seconds"] / 1000)
    assert (found["grams_per_kwh"], found["price_per_hour"]) == (400, 3.6)


def test_nothing_costs_nothing(prepared_of, board):
    """0 is a price; null is none."""
    prepared = prepared_of(*SMALL, "grams_per_kwh=0", "price_per_hour=0")
    train.train_runs([prepared], progress=Working(board), trainer=measured_by(board))
    assert summary(prepared)[["carbon_g", "money"]].tolist() == [0, 0]


def test_where_the_energy_is_unknown_the_cells_are_empty(prepared_of):
    prepared = prepared_of(*SMALL, "grams_per_kwh=400")
    train.train_run(prepared, quiet=True)
    cells = pd.read_csv(prepared.directory / "summary.csv", dtype=str, keep_default_na=False).iloc[0]
    assert cells[["energy_wh", "carbon_g", "money"]].tolist() == ["", "", ""]
    assert pd.read_csv(prepared.directory / "costs.csv")["energy_wh"].isna().all()


def test_prices_do_not_make_another_run(prepared_of):
    dear = prepared_of(*SMALL, "grams_per_kwh=400", "price_per_hour=3.6")
    assert dear.directory == prepared_of(*SMALL).directory


def test_prices():
    assert prices.carbon(2500.0, 380.0) == pytest.approx(950) and prices.money(1800.0, 3.0) == pytest.approx(1.5)


# ---------------------------------------------------------------- costs.csv


@pytest.mark.parametrize("strategy", ["ewc", "joint", "scratch"])
def test_the_tasks_add_up_to_the_summary(prepared_of, strategy):
    prepared = prepared_of(*SMALL, f"strategy={strategy}")
    train.train_run(prepared, quiet=True)
    rows, whole = costs(prepared), summary(prepared)
    for name in ("train_seconds", "consolidate_seconds", "eval_seconds"):
        assert rows[name].sum() == pytest.approx(whole[name], rel=1e-12)
    assert rows["task"].tolist() == list(range(6))
    assert rows.loc[0, ["train_seconds", "consolidate_seconds", "samples"]].tolist() == [0, 0, 0]
    assert (rows["eval_seconds"] > 0).all()
    assert rows["samples"].sum() == pytest.approx(whole["samples_per_second"] * whole["train_seconds"])


def test_a_diverged_run_is_charged_until_then(prepared_of):
    prepared = prepared_of(*SMALL, "optimizer=sgd", "lr=0.05", "lambda=1e30", "iterations=30")
    assert train.train_run(prepared, quiet=True) == "diverged"
    assert len(costs(prepared)) == int(summary(prepared)["diverged_at"].split()[1]) + 1


# ---------------------------------------------------------------- what a strategy keeps


def pictures(prepared: Prepared, tasks: range) -> int:
    return sum(len(prepared.stream.train[task]) for task in tasks) * 64  # digits: 8 x 8 pixels, a byte each


@pytest.mark.parametrize(
    "options, expected",
    [
        (("strategy=finetune",), lambda one: 0),
        (("strategy=er", "memory_size=50"), lambda one: 50 * (64 + 8) + 8),  # pixels, row number; how many were seen
        (("strategy=derpp", "memory_size=50"), lambda one: 50 * (64 + 8 + 4 * 10) + 8),  # and the logits
        (("strategy=er", "memory_per_class=3"), lambda one: 30 * (64 + 8) + 8),
        (("strategy=cumulative",), lambda one: pictures(one, range(4))),  # the last task's own arrive anyway
        (("strategy=scratch",), lambda one: pictures(one, range(4))),
        (("strategy=joint",), lambda one: pictures(one, range(1, 5))),
    ],
)
def test_pictures_that_must_be_kept_are_state(prepared_of, options, expected):
    prepared = prepared_of(*SMALL, "iterations=1", *options)
    train.train_run(prepared, quiet=True)
    assert summary(prepared)["state_mb"] == pytest.approx(expected(prepared) / 1e6)


def test_a_run_of_a_stack_keeps_what_it_keeps_alone(prepared_of):
    stack = [prepared_of(*SMALL, "iterations=1", "strategy=er", "memory_size=50", f"seed={seed}") for seed in (0, 1)]
    train.train_runs(stack, quiet=True)
    assert [summary(one)["state_mb"] for one in stack] == pytest.approx([(50 * 72 + 8) / 1e6] * 2)


@pytest.mark.skipif(not peak_memory.RESET.exists(), reason="only Linux lets a process forget its peak")
def test_the_peak_of_memory_is_the_runs_own():
    cpu = torch.device("cpu")
    held = torch.ones(100_000_000, dtype=torch.uint8)
    most = peak_memory.peak_memory(cpu)
    del held
    peak_memory.forget_peak(cpu)
    assert peak_memory.peak_memory(cpu) < most - 90_000_000


def test_on_a_card_the_peak_is_that_cards():
    cards = MadeUpCards(0, 0)
    peak_memory.forget_peak(torch.device("cuda:1"), cards)
    peak_memory.forget_peak(torch.device("cuda"), cards)
    assert cards.told == [("forget_peak", 1), ("forget_peak", None)]
    assert peak_memory.peak_memory(torch.device("cuda:1"), cards) == 7_000_000


def test_no_file_is_left_half(prepared_of, monkeypatch):
    """costs.csv too is written under another name and renamed."""
    written: list[Path] = []
    rename = os.replace

    def recorded(source, target):
        rename(source, target)
        assert Path(source).parent == Path(target).parent
        written.append(Path(target))

    monkeypatch.setattr(os, "replace", recorded)
    prepared = prepared_of(*SMALL, "iterations=1")
    train.train_run(prepared, quiet=True)
    assert prepared.directory / "costs.csv" in written
