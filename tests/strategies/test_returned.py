"""What a method of a strategy must return: anything else is refused where clrun calls the method, with the place of the
method, what it returned and what it must return; alone, in a stack, and as it is recorded for a GPU."""

from dataclasses import replace
from typing import NamedTuple

import pytest
import torch

from clrun.engine import hooks
from clrun.engine.health import health_means
from clrun.engine.stack import DISTANCE
from clrun.engine.state import ANSWERS, COUNTED, NORM, QUADRATIC
from clrun.runs import prepare
from clrun.strategy import Quadratic, Strategy, gradient_of
from clrun.strategy.returned import RESERVED
from clrun.system.errors import UsageError
from clrun.system.user_frames import place_of


class Counting(Strategy):
    """A base of classes that have a state and do nothing with it."""

    class Hyper(NamedTuple):
        pass

    class State(NamedTuple):
        count: torch.Tensor

    def init(self, theta):
        return self.State(theta.new_zeros(()))


class LossAlone(Counting):
    def loss(self, theta, state, hp, batch):
        return super().loss(theta, state, hp, batch)[0]


class LossBySample(Counting):
    def loss(self, theta, state, hp, batch):
        fit, aux = super().loss(theta, state, hp, batch)
        return fit.expand(3), aux


class LossAsNumber(Counting):
    def loss(self, theta, state, hp, batch):
        return 0.5, {}


class AuxOfNumbers(Counting):
    def loss(self, theta, state, hp, batch):
        fit, _ = super().loss(theta, state, hp, batch)
        return fit, {"penalty": 1}


class NoLossWithGradient(Counting):
    def gradient(self, theta, state, hp, batch):
        g, _, aux = gradient_of(self.loss, theta, state, hp, batch)
        return g, aux


class ShortGradient(Counting):
    def gradient(self, theta, state, hp, batch):
        g, loss, aux = gradient_of(self.loss, theta, state, hp, batch)
        return g[1:], loss, aux


class InitOfNumbers(Counting):
    def init(self, theta):
        return self.State(0)


class NothingAfterStep(Counting):
    def after_step(self, state, hp, batch, aux):
        return ()


class TensorAfterStep(Counting):
    def after_step(self, state, hp, batch, aux):
        return state.count + 1


class LongerAfterStep(Counting):
    def after_step(self, state, hp, batch, aux):
        return self.State(state.count.expand(2))


class NothingAfterMove(Counting):
    def after_move(self, state, before, after, aux):
        pass


class StateAfterPhase(Counting):
    def after_phase(self, phase, theta, state, hp, pool):
        return state


class StateAtBeginning(Counting):
    def begin_stage(self, theta, state, hp, fresh):
        return theta, (state,)


class RestrictToNothing(Counting):
    def restrict(self, delta, g, theta, state, hp, batch):
        pass


class RestrictToSum(Counting):
    def restrict(self, delta, g, theta, state, hp, batch):
        return delta.sum()


class MaskAlone(Counting):
    def renew(self, theta, state, hp, batch):
        return theta > 0


class MaskOfNumbers(Counting):
    def renew(self, theta, state, hp, batch):
        return theta, theta


class PenaltyAsNumber(Counting):
    def quadratic(self, state, hp):
        return state.count


class PenaltyOnOne(Counting):
    def quadratic(self, state, hp):
        return Quadratic(state.count, state.count, state.count)


class LossOfItsOwn(Counting):
    def loss(self, theta, state, hp, batch):
        fit, aux = super().loss(theta, state, hp, batch)
        return fit, aux | {"loss": fit}


class TaskOfItsOwn(Counting):
    def health(self, state, hp):
        return {"task": state.count}


class TruthAsChange(Counting):
    def restrict(self, delta, g, theta, state, hp, batch):
        return delta > 0


class NoAnswer(Counting):
    def renewal_due(self, state, hp):
        pass

    def renew(self, theta, state, hp, batch):
        return theta > 0, theta


class HealthOfNumbers(Counting):
    def health(self, state, hp):
        return {"count": 3}


class HealthOfVectors(Counting):
    def health(self, state, hp):
        return {"count": state.count.expand(2)}


LOSS = "let it return (loss, aux): loss a tensor of shape (), and aux a dictionary of tensors by name, {} for none."
STATE = "let it return the state as init has made it, State(count: tensor ())."
COLUMNS = "let it return a dictionary of tensors of shape () by column, {} for none."
WRONG = [
    (LossAlone, "loss", "tensor ()", LOSS),
    (LossBySample, "loss", "(tensor (3,), {})", LOSS),
    (LossAsNumber, "loss", "(float 0.5, {})", LOSS),
    (AuxOfNumbers, "loss", "(tensor (), {penalty: int 1})", LOSS),
    (NoLossWithGradient, "gradient", "(tensor (974,), {})", "let it return (g, loss, aux): g a tensor of the shape"),
    (ShortGradient, "gradient", "(tensor (973,), tensor (), {})", "the shape (974,) of theta, loss a tensor"),
    (InitOfNumbers, "init", "State(count: int 0)", "let it return a state that holds tensors and nothing else"),
    (NothingAfterStep, "after_step", "()", STATE),
    (TensorAfterStep, "after_step", "tensor ()", STATE),
    (LongerAfterStep, "after_step", "State(count: tensor (2,))", STATE),
    (NothingAfterMove, "after_move", "None", STATE),
    (
        StateAfterPhase,
        "after_phase",
        "State(count: tensor ())",
        "let it return (theta, state): theta a tensor of shape",
    ),
    (StateAtBeginning, "begin_stage", "(tensor (974,), (State(count: tensor ())))", "State(count: tensor ())."),
    (LossOfItsOwn, "loss", "{loss: tensor ()}", "let it return another name for loss, which is clrun's own."),
    (TaskOfItsOwn, "health", "{task: tensor ()}", "let it return another name for task, which is clrun's own."),
    (TruthAsChange, "restrict", "tensor (974,)", "let it return a tensor of numbers of the shape (974,) of theta."),
    (RestrictToNothing, "restrict", "None", "let it return a tensor of numbers of the shape (974,) of theta."),
    (RestrictToSum, "restrict", "tensor ()", "let it return a tensor of numbers of the shape (974,) of theta."),
    (MaskAlone, "renew", "tensor (974,)", "let it return (mask, values), a tensor of True and False and"),
    (MaskOfNumbers, "renew", "(tensor (974,), tensor (974,))", "both of the shape (974,) of theta; or None."),
    (PenaltyAsNumber, "quadratic", "tensor ()", "let it return Quadratic(strength, mean, precision): strength"),
    (
        PenaltyOnOne,
        "quadratic",
        "Quadratic(strength: tensor (), mean: tensor (), precision: tensor ())",
        "strength a tensor of shape (), the others (974,) as theta; or None.",
    ),
    (HealthOfNumbers, "health", "{count: int 3}", COLUMNS),
    (HealthOfVectors, "health", "{count: tensor (2,)}", COLUMNS),
]


def learnt(stack):
    run = stack.initialize()
    for stage in range(2):
        run, _ = stack.learn(run, stage)
    return run


def said_of(stack):
    with pytest.raises(UsageError) as caught:
        learnt(stack)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["alone", "stacked", "recorded"])
@pytest.mark.parametrize(("cls", "method", "returned", "must"), WRONG, ids=[case[0].__name__ for case in WRONG])
def test_another_value_is_refused(stack_of, cls, method, returned, must, kind):
    stack = stack_of("strategy=finetune", "tasks=2", seeds=(0, 1) if kind == "stacked" else (0,), strategy=cls)
    if kind == "recorded":
        stack = replace(stack, use_graph=True)
    said = said_of(stack)
    line = getattr(cls, method).__code__.co_firstlineno
    assert said.startswith(f"{__file__}, line {line}, in {method}: {cls.__name__}.{method} returned {returned}; ")
    assert must in said


class NothingAsLogits(Counting):
    def logits(self, theta, state, hp, x, t):
        pass


class LogitsOfTwoOutputs(Counting):
    def logits(self, theta, state, hp, x, t):
        return super().logits(theta, state, hp, x, t)[:, :2]


class AnswersAsScores(Counting):
    def scores(self, theta, state, hp, x, t):
        return super().scores(theta, state, hp, x, t).argmax(-1)


class NothingDeployed(Counting):
    def deploy(self, theta, state, hp):
        return None


class LayersDeployed(Counting):
    def deploy(self, theta, state, hp):
        return self.net.layout.view(theta)


ROW_AND_COLUMN = "a row for each sample and a column for each output."
WRONG_ANSWERS = [
    (NothingAsLogits, "logits", "None", ROW_AND_COLUMN),
    (LogitsOfTwoOutputs, "logits", "tensor (", ROW_AND_COLUMN),
    (AnswersAsScores, "scores", "tensor (", ROW_AND_COLUMN),
    (NothingDeployed, "deploy", "None", "let it return a tensor of numbers of the shape (974,) of theta."),
    (LayersDeployed, "deploy", "{", "let it return a tensor of numbers of the shape (974,) of theta."),
]


@pytest.mark.parametrize("seeds", [(0,), (0, 1)], ids=["alone", "stacked"])
@pytest.mark.parametrize(
    ("cls", "method", "returned", "must"), WRONG_ANSWERS, ids=[case[0].__name__ for case in WRONG_ANSWERS]
)
def test_other_answers_are_refused_before_training(stack_of, cls, method, returned, must, seeds):
    stack = stack_of("strategy=finetune", "tasks=2", seeds=seeds, strategy=cls)
    with pytest.raises(UsageError) as caught:
        stack.evaluate_untrained(stack.initialize())
    line = getattr(cls, method).__code__.co_firstlineno
    place = f"{__file__}, line {line}, in {method}: {cls.__name__}.{method}"
    assert str(caught.value).startswith(f"{place} returned {returned}") and must in str(caught.value)


def test_what_is_asked_alone_is_checked_alone(stack_of):
    with pytest.raises(UsageError, match=r"NoAnswer\.renewal_due returned None; let it return True or False\."):
        learnt(stack_of("strategy=finetune", "tasks=2", strategy=NoAnswer))


def test_the_reserved_names_are_those_that_the_engine_fills():
    of_steps = health_means({"loss": torch.ones(1), NORM: torch.ones(1)}, torch.ones(1).double(), ())
    assert {"task", NORM, QUADRATIC, ANSWERS, DISTANCE, *COUNTED, *of_steps} <= RESERVED


def test_another_state_to_go_on_with_is_refused(stack_of):
    class StateInTuple(Counting):
        def adopt(self, theta, state, hp, added, learnt, tables):
            return theta, state

    stack = stack_of("strategy=finetune", "tasks=2", strategy=StateInTuple)
    run = stack.initialize()
    nothing_new = torch.zeros_like(run.theta, dtype=torch.bool)
    with pytest.raises(UsageError, match=r"in adopt: StateInTuple.adopt returned \(tensor \(974,\), State\(count"):
        hooks.adopted(stack.strategy, run, stack.hp, nothing_new, torch.tensor(1), stack.tables)


def test_what_is_right_is_trained(stack_of):
    """Also where a state is empty, a list or a dictionary, or nested."""

    class Nested(Counting):
        def init(self, theta):
            return {"a": [theta.clone(), ()], "b": self.State(theta.new_zeros(2))}

        def after_step(self, state, hp, batch, aux):
            return {"b": self.State(state["b"].count + 1), "a": state["a"]}

    plain = stack_of("strategy=finetune", "tasks=2")
    for cls in (Counting, Nested):
        stack = stack_of("strategy=finetune", "tasks=2", strategy=cls)
        run, report = stack.learn(stack.initialize(), 0)
        assert torch.equal(run.theta, plain.learn(plain.initialize(), 0)[0].theta)
        assert cls is Counting or (run.state["b"].count == report.step).all()


def test_a_wrong_state_is_refused_before_anything_is_written(settings_of, monkeypatch):
    monkeypatch.setattr(prepare, "strategy_class", lambda settings: InitOfNumbers)
    with pytest.raises(UsageError, match=r"in init: InitOfNumbers.init returned State\(count: int 0\)"):
        prepare.prepare(settings_of("strategy=finetune"))


def test_what_is_written_in_no_file_has_no_place():
    assert place_of(len) is None and place_of(Counting.init).endswith("in init")
