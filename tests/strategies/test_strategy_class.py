"""What the base class promises to those who write a strategy: former names, `reads_once`, and imports of one module."""

import ast
import sys
import warnings
from pathlib import Path

import pytest
import torch
from conftest import STRATEGIES, live

import clrun
import clrun.fisher
import clrun.memory
from clrun.config.catalog import read
from clrun.strategies.ewc import EWC
from clrun.strategies.finetune import Finetune
from clrun.strategies.hat import HAT
from clrun.strategy import Memory, Replay, Strategy, diagonal_fisher, fisher


def imported_modules(path):
    """Yield the modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_method_imports_nothing_but_the_toolkit(strategy):
    """torch, the standard library, `clrun.strategy`, and the file of a method that it extends."""
    module = read().options["strategy"][strategy].target.rpartition(".")[0]
    path = Path(clrun.__file__).parent.joinpath(*module.split(".")[1:]).with_suffix(".py")
    for name in imported_modules(path):
        package = name.partition(".")[0]
        if package == "clrun":
            assert name == "clrun.strategy" or name.startswith("clrun.strategies."), f"{path.name} imports {name}"
        else:
            assert package == "torch" or package in sys.stdlib_module_names, f"{path.name} imports {name}"


def test_former_names_of_hooks_are_accepted_with_a_warning():
    with pytest.warns(DeprecationWarning) as caught:

        class Old(Replay):
            @classmethod
            def objection(cls, network, optimizer, knobs):
                return super().objection(network, optimizer, knobs) or "no"

            @classmethod
            def complaints(cls, health, knobs):
                return [*super().complaints(health, knobs), "it did nothing"]

    assert [str(w.message) for w in caught] == [
        "test_former_names_of_hooks_are_accepted_with_a_warning.<locals>.Old.objection is now called incompatibility; "
        "the former name goes away in the next release.",
        "test_former_names_of_hooks_are_accepted_with_a_warning.<locals>.Old.complaints is now called warnings; "
        "the former name goes away in the next release.",
    ]
    assert {w.filename for w in caught} == {__file__}
    both = {"memory_size": 7, "memory_per_class": 3}
    assert "type one of them" in Old.incompatibility(None, "sgd", both)
    assert Old.incompatibility(None, "sgd", {"memory_size": 7}) == "no"
    row = {"task": 2, "memory_fill": 0, "replay_loss": 0, "loss": 1, "memory_classes": 0}
    assert Old.warnings([row, row], {}) == [
        "the memory stayed empty, so nothing was replayed: this is finetuning",
        "it did nothing",
    ]


def test_present_names_of_hooks_give_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")

        class New(Strategy):
            @classmethod
            def incompatibility(cls, network, optimizer, knobs):
                return "no"

    assert New.objection(None, "sgd", {}) == "no"


def test_logits_that_are_overridden_read_the_network_once_only_if_the_class_states_it():
    class Other(EWC):
        def logits(self, theta, state, hp, x, t):
            return self.net(theta / 2, x)

    class Mixin:
        def logits(self, theta, state, hp, x, t):
            return self.net(theta / 2, x)

    class Mixed(Mixin, EWC):
        pass

    class Child(Other):
        def loss(self, theta, state, hp, batch):
            return super().loss(theta, state, hp, batch)

    class Stated(Other):
        reads_once = True

        def logits(self, theta, state, hp, x, t):
            return self.net(theta, x)

    class GrandChild(Stated):
        pass

    read_once = (Strategy, EWC, Stated, GrandChild)
    assert all(cls.reads_once for cls in read_once)
    assert not any(cls.reads_once for cls in (HAT, Other, Mixed, Child))


def test_stored_samples_are_the_slots_in_use_of_all_memories():
    memory, full = (Memory(torch.zeros(5, dtype=torch.long), torch.tensor(offered)) for offered in (3, 700))
    strategy, state = Strategy(None, None), (memory, {"other": full, "logits": torch.zeros(5, 2)})
    assert strategy.stored_samples(()) == strategy.unused_bytes(()) == 0
    assert strategy.stored_samples(state) == 3 + 5
    assert strategy.unused_bytes(state) == 2 * 8


def test_former_paths_of_the_fisher_information_and_the_memory():
    assert fisher is diagonal_fisher is clrun.fisher.fisher
    assert clrun.memory.Memory is Memory and clrun.memory.Replay is Replay


class FormerHooks:
    """A mix-in of a user's that defines a hook by its former name."""

    @classmethod
    def objection(cls, network, optimizer, knobs):
        return "former"


def test_a_former_name_in_a_mix_in_is_accepted():
    with pytest.warns(DeprecationWarning, match="objection is now called incompatibility"):

        class Mixed(FormerHooks, Strategy):
            pass

    assert Mixed.incompatibility(None, "sgd", {}) == "former"


def test_of_a_former_and_a_present_name_the_present_one_counts():
    with warnings.catch_warnings():
        warnings.simplefilter("error")

        class Both(Strategy):
            @classmethod
            def objection(cls, network, optimizer, knobs):
                return "former"

            @classmethod
            def incompatibility(cls, network, optimizer, knobs):
                return "present"

    assert Both.incompatibility(None, "sgd", {}) == Both.objection(None, "sgd", {}) == "present"


class Reversed(Finetune):
    """Trains as finetuning does, and answers by the smallest logit."""

    def scores(self, theta, state, hp, x, t):
        return -self.logits(theta, state, hp, x, t)


def test_what_answers_is_the_largest_score(stack_of):
    """Two outputs a task: where finetuning is right, its reverse is wrong; and the training is the same."""
    run, reports = live(stack_of("strategy=finetune"))
    other, reversed_ = live(stack_of("strategy=finetune", strategy=Reversed))
    assert torch.equal(run.theta, other.theta)
    sizes = torch.tensor([len(pool) for pool in stack_of("strategy=finetune").streams[0].test])
    assert torch.equal(reports[-1].correct + reversed_[-1].correct, sizes[None])
