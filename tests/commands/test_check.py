"""clrun-check: what it says of a class that keeps its promises, and of each way to break one."""

import sys
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, NamedTuple

import pytest
import torch

from clrun.commands import check, console
from clrun.runs import contract, prepare
from clrun.strategy import Strategy, gradient_of
from clrun.system.user_frames import users_frame, users_frame_printed

YAML = """
name: checked
about: a strategy under check
_target_: checked_of_the_user.Checked
neutral: {lambda: 0.0}
knobs:
  lambda: {default: 0.01, type: float, min: 0, about: strength of the pull}
"""
CLASS = """
from typing import NamedTuple

from torch import Tensor

from clrun.strategy import Strategy


class Checked(Strategy):
    class Hyper(NamedTuple):
        lambda_: Tensor

    def loss(self, theta, state, hp, batch):
        fit, aux = super().loss(theta, state, hp, batch)
        pull = hp.lambda_ * theta.square().sum(){more}
        return fit + pull, aux | {{"pull": pull}}
"""
SMALL = ("strategy=checked", "scenario=task", "tasks=2", "iterations=5", "batch_size=16")


@pytest.fixture
def checked(capsys, empty_folder):
    """checked(more) -> exit code, standard output and error of clrun-check of a class with this in its loss."""

    def answer(more: str, *arguments: str, yaml: str = YAML) -> tuple[int, str, str]:
        Path("my/strategy").mkdir(parents=True)
        Path("my/strategy/checked.yaml").write_text(yaml)
        Path("checked_of_the_user.py").write_text(CLASS.format(more=more))
        with pytest.raises(SystemExit) as caught:
            console.end_with(lambda _: check.command(["--config-dir", "my", *(arguments or SMALL)]))
        return caught.value.code, *capsys.readouterr()

    yield answer
    sys.modules.pop("checked_of_the_user", None)


def test_a_class_that_keeps_its_promises(checked):
    code, out, err = checked("")
    names = [line.split()[0] for line in out.splitlines()]
    assert code == 0 and not err and all(line.split()[1] == "ok" for line in out.splitlines())
    assert names == ["scenarios", "pure", "padding", "stacked", "strengths", "resumed", "neutral", "health"]
    assert "pull" in out.splitlines()[-1] and not Path("outputs").exists()


@pytest.mark.parametrize(
    ("yaml", "arguments", "none"),
    [
        (YAML.replace("neutral: {lambda: 0.0}\n", ""), SMALL, {"neutral": "its yaml states no neutral values"}),
        (YAML, (*SMALL, "lambda=0.1"), {"strengths": "no strength that is not typed"}),
    ],
)
def test_a_promise_that_is_not_made_is_not_called_kept(checked, yaml, arguments, none):
    """Nor broken: the exit code is 0."""
    code, out, err = checked("", *arguments, yaml=yaml)
    words = {line.split()[0]: line.split()[1] for line in out.splitlines()}
    assert code == 0 and not err
    assert words == {name: "none" if name in none else "ok" for name in words} and len(words) == 8
    for name, sentence in none.items():
        assert f"{name:<10} none   {sentence}" in out


def test_an_error_in_the_class_names_its_line(checked):
    """And all other checks are made all the same."""
    code, out, err = checked(" + undefined_name")
    failed = [line for line in out.splitlines() if " FAILED " in line]
    place = (
        "checked_of_the_user.py, line 15, in loss: pull = hp.lambda_ * theta.square().sum() + undefined_name: NameError"
    )
    assert code == 1 and len(failed) == 7 and all(place in line for line in failed)
    assert "7 of 8 promises are broken" in err


SENTENCE = (
    "checked_of_the_user.py, line 13, in loss: Checked.loss returned tensor (); let it return (loss, aux): loss a "
    "tensor of shape (), and aux a dictionary of tensors by name, {} for none."
)
LOSS_ALONE = "\n        return fit + pull"


def test_what_a_method_must_return_is_one_sentence(checked):
    """With the place of the method, and without the name of an error."""
    code, out, _ = checked(LOSS_ALONE)
    failed = [line for line in out.splitlines() if " FAILED " in line]
    assert code == 1 and len(failed) == 7 and all(line.endswith(SENTENCE) for line in failed)
    assert "Error" not in out


def test_clrun_says_the_same_of_a_run(clrun, empty_folder):
    """On standard error without a traceback, as of a mistake, and in failed.txt."""
    Path("my/strategy").mkdir(parents=True)
    Path("my/strategy/checked.yaml").write_text(YAML)
    Path("checked_of_the_user.py").write_text(CLASS.format(more=LOSS_ALONE))
    code, _, err = clrun("--config-dir", "my", *SMALL)
    sys.modules.pop("checked_of_the_user")
    (reason,) = Path("outputs").rglob("failed.txt")
    assert code == 2 and err.splitlines()[-1].endswith(SENTENCE) and "Traceback" not in err
    assert reason.read_text().splitlines()[0].endswith(SENTENCE)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("strategy=chekced",), "checked"),
        (("lambda=1",), "name it"),
        (("strategy=checked", "seed=3"), "leave seed out"),
        (("strategy=checked", "lambda=-1"), "lambda"),
    ],
)
def test_mistakes(checked, arguments, said):
    code, out, err = checked("", *arguments)
    assert code == 2 and not out and said in err and err.count("\n") == 1


def test_the_crash_of_a_run_begins_with_the_users_line(clrun, empty_folder, faulty):
    _, _, err = clrun(*faulty("raise ValueError('boom')"), "iterations=2", "tasks=2")
    first = err.splitlines()[0]
    assert first.startswith("clrun: an error in ") and "faulty_of_the_user.py, line 14, in after_phase: raise" in first


@pytest.mark.parametrize("sweep", [(), ("-m",)], ids=["run", "sweep"])
def test_the_reason_of_a_crash_begins_with_the_users_line(clrun, empty_folder, faulty, sweep):
    """In failed.txt and on standard error, so that nobody has to look for it among the frames of clrun."""
    code, _, err = clrun(*faulty("raise ValueError('boom')"), *sweep, "iterations=2", "tasks=2")
    (failed,) = Path("outputs").rglob("failed.txt")
    reason = failed.read_text().splitlines()[0]
    place, _, error = reason.partition(", line 14, in after_phase: raise ValueError('boom'): ")
    assert code == 1 and place.endswith("faulty_of_the_user.py") and error == "ValueError: boom"
    assert reason in err


def test_frames_of_libraries_are_not_the_users():
    for source in (lambda: torch.zeros(2) @ torch.zeros(3), lambda: int("x")):
        with pytest.raises((RuntimeError, ValueError)) as caught:
            source()
        assert "test_check.py" in users_frame(caught.value)
        printed = "".join(traceback.format_exception(caught.value))
        assert users_frame_printed(printed) == users_frame(caught.value)
    try:
        contract.alike(*[1])
    except TypeError as error:
        assert "test_check.py" in users_frame(error)
        error.__traceback__ = None
        assert users_frame(error) is None


# ---------------------------------------------------------------- each broken promise


class Broken(Strategy):
    """A base of classes that have a strength and a state, and do nothing with them."""

    class Hyper(NamedTuple):
        pass


class PlainMean(Broken):
    def loss(self, theta, state, hp, batch):
        fit, aux = super().loss(theta, state, hp, batch)
        return fit + self.logits(theta, state, hp, batch.x, batch.t).square().mean(), aux


class PlainSum(Broken):
    def loss(self, theta, state, hp, batch):
        fit, aux = super().loss(theta, state, hp, batch)
        return fit + self.logits(theta, state, hp, batch.x, batch.t).square().sum() / 100, aux


class BatchCount(Broken):
    def init(self, theta):
        return theta.new_zeros(())

    def after_step(self, state, hp, batch, aux):
        return state + len(batch.x)


class InPlace(BatchCount):
    def after_step(self, state, hp, batch, aux):
        return state.add_(1)


class OwnNoise(Broken):
    def gradient(self, theta, state, hp, batch):
        g, loss, aux = gradient_of(self.loss, theta, state, hp, batch)
        return g + 0.1 * torch.randn(g.shape, dtype=g.dtype), loss, aux


class Narrows(BatchCount):
    """Another shape is refused at the first step; another type of number is found by the check alone."""

    def after_step(self, state, hp, batch, aux):
        return state.float()


class CountsThePool(Broken):
    """In a stack, the pool of each run is as long as that of the longest task."""

    def after_phase(self, phase, theta, state, hp, pool):
        return theta + 1e-3 * len(pool.rows), state


class Drifts(Broken):
    """A plain mean over how far outputs have moved since the last task, which is 0 at the first step of the next."""

    def init(self, theta):
        return theta.clone()

    def loss(self, theta, state, hp, batch):
        fit, aux = super().loss(theta, state, hp, batch)
        z, old = (self.logits(weights, state, hp, batch.x, batch.t) for weights in (theta, state))
        return fit + (z - old).square().mean(), aux

    def after_phase(self, phase, theta, state, hp, pool):
        return theta, theta.clone()


class Remembers(Broken):
    """It counts the tasks outside of its state, so that a run that is killed in its second task loses the count."""

    learnt: ClassVar[list[int]] = []

    def init(self, theta):
        self.learnt.clear()
        return super().init(theta)

    def loss(self, theta, state, hp, batch):
        fit, aux = super().loss(theta, state, hp, batch)
        return fit + 0.01 * len(self.learnt) * theta.square().sum(), aux

    def after_phase(self, phase, theta, state, hp, pool):
        self.learnt.append(1)
        return theta, state


class NotANumber(Broken):
    def health(self, state, hp):
        return {"ratio": torch.zeros(()) / torch.zeros(())}


class ScoresAreNoNumbers(Broken):
    def scores(self, theta, state, hp, x, t):
        return self.net(theta, x) / 0 * 0


class DeploysNoNumbers(Broken):
    def deploy(self, theta, state, hp):
        return theta * torch.nan


@dataclass(frozen=True)
class Pulls(Broken):
    def loss(self, theta, state, hp, batch):
        fit, aux = super().loss(theta, state, hp, batch)
        return fit + 1e-12 * theta.square().sum(), aux


class AnswersTheLeastLikely(Broken):
    def scores(self, theta, state, hp, x, t):
        return -self.net(theta, x)


class DeploysLess(Broken):
    def deploy(self, theta, state, hp):
        return -theta


def found(stack_of, name: str, cls: type[Strategy]) -> str | None:
    typed: tuple[str, ...] = (
        "strategy=finetune",
        "first_tasks=1" if name == "stacked" else "split.classes=[[0,1,2],[3,4]]",
    )

    def one(**more):
        return stack_of(*typed, strategy=cls, **more)

    if name == "stacked":
        typed += ("epochs=1", "batch_size=48")
        return contract.stacked(one(seeds=(0, 1)), lambda r: one(seeds=[r]), ["seed=0", "seed=1"])
    if name == "neutral":
        return contract.neutral(one(), stack_of(*typed))
    if name == "health":
        return contract.health(contract.trained(one())[1])
    return getattr(contract, name)(contract.SecondTask.of(one()))


@pytest.mark.parametrize(
    ("name", "cls", "said"),
    [
        ("padding", PlainMean, "batch.mean"),
        ("padding", PlainSum, "batch.weight"),
        ("padding", BatchCount, "batch.weight"),
        ("padding", Drifts, "batch.mean"),
        ("stacked", CountsThePool, "differs by"),
        ("pure", InPlace, "write into none"),
        ("pure", OwnNoise, "batch.noise"),
        ("pure", Narrows, "shapes"),
        ("neutral", Pulls, "differ from those of finetune"),
        ("neutral", AnswersTheLeastLikely, "answers otherwise after task 1"),
        ("neutral", DeploysLess, "answers otherwise after task 1"),
        ("health", NotANumber, "column ratio is nan after task 1"),
        ("health", ScoresAreNoNumbers, "test samples had a score that is no number (NaN) after task 1"),
        ("health", DeploysNoNumbers, "test samples had a score that is no number (NaN) after task 1"),
    ],
)
def test_each_broken_promise_is_found(stack_of, name, cls, said):
    """And finetune, which keeps them, is not blamed."""
    assert said in found(stack_of, name, cls)
    assert found(stack_of, name, Broken) is None


class RemembersSteps(Remembers):
    """It counts the steps of a pass outside of its state, so that a run that is killed within the pass loses them."""

    def after_step(self, state, hp, batch, aux):
        self.learnt.append(1)
        return state

    def after_phase(self, phase, theta, state, hp, pool):
        self.learnt.clear()
        return theta, state


@pytest.mark.parametrize("tasks", [1, 2])
@pytest.mark.parametrize(
    ("iterations", "cls", "kept"),
    [(20, Remembers, False), (5, Remembers, False), (20, Broken, True), (5, RemembersSteps, True)],
)
def test_a_run_is_killed_in_its_first_and_second_task(settings_of, tmp_path, tasks, iterations, cls, kept):
    """With several points in a task from which it can go on, and with none but its end."""
    typed = ("strategy=finetune", f"iterations={iterations}", f"first_tasks={tasks}", "checkpoint_every=1e-9")
    whole, killed = (
        replace(prepare.prepare(settings_of(*typed, "tasks=5", f"outputs={tmp_path / name}")), strategy=cls)
        for name in ("whole", "killed")
    )
    said = contract.resumed(whole, killed)
    assert (said is None) == (kept or tasks == 1), said


def test_a_run_that_is_killed_goes_on_from_within_the_pass(settings_of, tmp_path):
    typed = ("strategy=finetune", "iterations=20", "tasks=5", "first_tasks=2", "checkpoint_every=1e-9")
    whole, killed = (
        replace(prepare.prepare(settings_of(*typed, f"outputs={tmp_path / name}")), strategy=RemembersSteps)
        for name in ("whole", "killed")
    )
    assert "is not that of the run that was not killed" in (contract.resumed(whole, killed) or "")


@pytest.mark.parametrize(
    ("typed", "varied"), [((), "lambda"), (("online=true",), "lambda, gamma"), (("lambda=1",), None)], ids=str
)
def test_a_strength_that_another_setting_must_ask_for_is_left_as_it_is(capsys, empty_folder, typed, varied):
    small = ("scenario=task", "tasks=2", "iterations=5", "batch_size=16")
    check.command(["strategy=ewc", *small, *typed])  # gamma is read by online EWC alone
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("strengths")]
    assert f"runs that differ in {varied} stacked" in line if varied else line.split()[1] == "none"
