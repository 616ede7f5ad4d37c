"""Every strategy broken on purpose: the run says that it did nothing, in summary.csv and on the terminal.

A new strategy needs one line here, in BREAKS: which of its methods to replace so that it does nothing, and what the
warning then says. An empty list says that there is nothing in it that could be broken.
"""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from conftest import STRATEGIES
from torch.utils._pytree import tree_map

from clrun.results import run_files
from clrun.runs import show, train
from clrun.runs.prepared import Prepared
from clrun.strategies.amn import AMN
from clrun.strategies.bic import BiC
from clrun.strategies.cbp import CBP
from clrun.strategies.gdumb import GDumb
from clrun.strategies.icarl import ICaRL
from clrun.strategies.lwf import LwF
from clrun.strategies.packnet import PackNet
from clrun.strategies.wa import WA
from clrun.strategy import Autoencoder, Gaussian, Quadratic, gradient_of

SHORT = ("iterations=40", "model.widths=[24,16]", "device=cpu", "split.classes=[[0,1],[2,3],[4,5]]", "plots=false")
# What a method needs to do anything in so short a run.
SHORT_OF = {
    "cbp": ("replacement=0.01", "maturity=10"),
    # the scenarios in which their mask and their correction have something to do
    "er_ace": ("scenario=class",),
    "bic": ("scenario=class",),
}
EMPTY = "the memory stayed empty, so nothing was replayed: this is finetuning"
EMPTY_OF_TASKS = "the memory stayed empty, so no past task constrained a step: this is finetuning"
ALONE = "never saw a sample of another task than the one being learnt"


def zero_fisher(self, phase, theta, state, hp, pool):
    return theta, state.absorb(theta, torch.zeros_like(theta))


def zero_sensitivity(self, phase, theta, state, hp, pool):
    return theta, self.State(theta, state.importance + torch.zeros_like(theta))


def last_task_alone(self, phase, theta, state, hp, pool):
    """IMM that merges nothing but the newest parameters."""
    return theta, self.State(theta, Gaussian(theta, self.precision(theta, state, hp, pool)))


def nothing_stored(self, memory, samples):
    """A reservoir that counts what is offered and stores none of it."""
    return memory._replace(offered=memory.offered + (samples.weight > 0).sum())


def der_stores_nothing(self, state, hp, batch, aux):
    return state._replace(memory=nothing_stored(self, state.memory, batch))


def memory_without_gradient(self, delta, g, *rest):
    return AMN.restrict(self, delta, 0 * g, *rest)


def keep_share(share: float):
    """PackNet with another share of weights that are kept than the run's settings say."""
    return lambda self, phase, theta, state, hp, pool: PackNet.after_phase(
        self, phase, theta, state, hp._replace(keep=torch.full_like(hp.keep, share)), pool
    )


def gates(value: float):
    return lambda self, theta, hp: [torch.full_like(e, value) for e in self.embeddings(theta)]


def own_task(self, stage: int):
    return (stage,)


def one_for_all(self, theta, state):
    return theta.expand_as(state.thetas), state.statistics


def as_it_was(self, state, *_):
    return state


def no_replay_loss(self, theta, *_):
    return 0 * theta.sum()


def sums_of_the_first_task(self, state, features, targets, *where):
    """A head in closed form to whose sums no later task adds."""
    first = state.sums.number.sum() == 0
    return tree_map(
        lambda new, old: torch.where(first, new, old),
        type(self).__mro__[1].absorb(self, state, features, targets, *where),
        state,
    )


def counted_once(self, state, hp, batch, aux):
    """A generative classifier that counts samples in the first task alone."""
    return state._replace(samples=state.samples + torch.where(batch.stage == 0, 1.0, 0.0))


def of_nothing(self, theta, state, hp, batch):
    """Autoencoders that learn nothing, whose latent variables then mean nothing."""
    return 0 * theta.sum(), {"latent_nats": batch.mean_weight.sum() * 0}


def every_direction(self, phase, theta, state, hp, pool):
    full = {name: torch.eye(len(p), dtype=p.dtype) for name, p in state.projections.items()}
    return theta, self.State(full, state.learnt + 1)


def no_unit(self, layer, hp):
    return torch.zeros_like(layer.age, dtype=torch.bool), layer.due


def one_of_many(self, layer, hp):
    """A unit more comes due in every step than the rate says."""
    unit, due = CBP.chosen(self, layer, hp)
    return unit, due + 1


def pull_of_nothing(self, state, hp):
    return Quadratic(hp.lambda_, state.initial, 0 * state.initial)


CLOSED_FORM = [
    ("absorb", as_it_was, "no sample reached"),
    ("absorb", sums_of_the_first_task, "after the first task, so it learnt no other"),
]


def theta_and_state(self, phase, theta, state, hp, pool):
    return theta, state


def first_task_alone(self, memory, pool, theta):
    stored = GDumb.offer(self, memory, pool)
    return tree_map(lambda new, old: torch.where(pool.stage == 0, new, old), stored, memory)


def own_samples(self, phase, state, own):
    return own if phase == "train" else [own[0][:0]]


def own_teacher(self, theta, state, hp, batch):
    """A student that is its own teacher."""
    past = state.past._replace(teacher=theta.detach())
    return type(self).__mro__[1].loss(self, theta, state._replace(past=past), hp, batch)


class Untrained(Autoencoder):
    """An autoencoder whose loss says nothing about its weights."""

    def loss(self, pieces, x, e):
        return 0 * x.sum(1)


class Constant(Autoencoder):
    """An autoencoder whose loss is some number, whatever its weights are."""

    def loss(self, pieces, x, e):
        return 0 * x.sum(1) + 0.7


def unmoved(self):
    return Constant.of_samples(self.data.images, self.generator_units, self.latent)


def untrained(self):
    return Untrained.of_samples(self.data.images, self.generator_units, self.latent)


def every_output(self, state, batch):
    """ER-ACE whose softmax is over all outputs, also of a batch that has some of the classes alone."""
    return torch.ones_like(state.seen)


def no_past_gradient(self, theta, state, hp, batch, task):
    return 0 * theta, theta.new_zeros(())


def along_the_batch(self, theta, state, hp, batch, task):
    g, loss, _ = gradient_of(self.loss, theta, state, hp, batch)
    return g, loss


# strategy -> [(method, what replaces it, part of the warning)]
BREAKS = {
    "agem": [
        ("offer_task", lambda self, memory, pool, theta: memory, EMPTY),
        ("recall", lambda self, memory, batch, noise, walk: (batch, memory.draw(noise)), "had to be projected"),
    ],
    "amn": [
        ("restrict", memory_without_gradient, "the memory units never left zero"),
        ("after_phase", zero_fisher, "of the EWC in it: AMN found no weight important"),
    ],
    "bic": [
        ("offer_task", lambda self, memory, pool, theta: memory, "the memory stayed empty, so BiC had no exemplars"),
        ("solved", lambda self, theta, state, pool: state, "no bias was ever corrected"),
        ("loss", own_teacher, "so BiC learnt nothing from its teacher"),
    ],
    "cumulative": [("visible", own_task, ALONE)],
    "der": [
        ("after_step", as_it_was, EMPTY),
        ("replay_loss", no_replay_loss, "never had a loss above 1e-12"),
        ("after_step", der_stores_nothing, "samples of one class alone"),
    ],
    "derpp": [
        ("after_step", as_it_was, EMPTY),
        ("replay_loss", no_replay_loss, "never had a loss above 1e-12"),
    ],
    "er": [
        ("after_step", as_it_was, EMPTY),
        ("offer", nothing_stored, "samples of one class alone"),
    ],
    "dgr": [
        ("replay_loss", no_replay_loss, "what was generated never had a loss above 1e-12"),
        ("generator", property(untrained), "never had a loss above 1e-12 of the whole, so it was never trained"),
        ("generator", property(unmoved), "was the same in all tasks, so it was never trained"),
    ],
    "generative_classifier": [
        ("after_step", as_it_was, "no autoencoder was trained"),
        ("after_step", counted_once, "no autoencoder was trained after the first task"),
        ("loss", of_nothing, "the latent variables say nothing about a sample"),
    ],
    "er_ace": [
        ("after_step", as_it_was, EMPTY),
        ("offer", nothing_stored, "samples of one class alone"),
        ("answering", every_output, "no softmax leaves out an output that may answer"),
    ],
    "fdr": [
        ("after_phase", theta_and_state, EMPTY),
        ("replay_loss", no_replay_loss, "never had a loss above 1e-12"),
    ],
    "gdumb": [
        ("after_phase", theta_and_state, "the memory stayed empty, so GDumb trained on nothing"),
        ("offer_task", first_task_alone, "no more classes than after the first"),
    ],
    "gem": [
        ("after_phase", theta_and_state, EMPTY_OF_TASKS),
        ("past_gradient", no_past_gradient, "never had a loss above 1e-12"),
        ("past_gradient", along_the_batch, "no gradient ever had to be projected"),
    ],
    "cbp": [
        ("chosen", no_unit, "no unit was ever replaced"),
        ("chosen", one_of_many, "of one layer were waiting at the end"),
    ],
    "ewc": [("after_phase", zero_fisher, "EWC found no weight important (its fisher is all zero)")],
    "fecam": CLOSED_FORM,
    "finetune": [],
    "gpm": [
        ("after_phase", theta_and_state, "no direction entered GPM's memory"),
        ("after_phase", every_direction, "the memory held every direction after task 1"),
    ],
    "hat": [
        ("final_gates", gates(1.0), "every unit was in use after task 1"),
        ("final_gates", gates(0.0), "no gate opened"),
    ],
    "icarl": [
        ("offer_task", lambda self, memory, pool, theta: memory, "no class had a mean of exemplars"),
        ("trained_rows", own_samples, "no exemplar was ever trained on"),
        ("loss", own_teacher, "so ICaRL learnt nothing from its teacher"),
    ],
    "imm": [("after_phase", last_task_alone, "never differed from the last task's")],
    "joint": [("visible", own_task, ALONE)],
    "l2_init": [("quadratic", pull_of_nothing, "never passed 1e-12 of the loss")],
    "lwf": [
        (
            "divergence",
            lambda self, old, new, batch: LwF.divergence(self, new, new, batch),
            "distillation never passed",
        )
    ],
    "mas": [("after_phase", zero_sensitivity, "MAS found no weight important")],
    "ncm": CLOSED_FORM,
    "ranpac": CLOSED_FORM,
    "mir": [
        ("after_step", as_it_was, EMPTY),
        ("each_loss", lambda self, theta, state, hp, batch: 0 * batch.weight, "MIR chose nothing: this is er"),
    ],
    "packnet": [
        ("after_phase", keep_share(1.0), "no weight was free after task 1"),
        ("after_phase", keep_share(0.0), "a task kept no weight"),
    ],
    "rwalk": [("after_move", as_it_was, "RWalk found no weight important")],
    "scratch": [("visible", own_task, ALONE)],
    "separate": [("networks", one_for_all, "two tasks have one and the same network")],
    "slda": CLOSED_FORM,
    "shrink_perturb": [
        ("begin_stage", lambda self, theta, state, hp, fresh: (theta, state), "never shrunk or perturbed")
    ],
    "si": [("after_move", as_it_was, "SI found no weight important")],
    "wa": [
        ("offer_task", lambda self, memory, pool, theta: memory, "the memory stayed empty, so WA had no exemplars"),
        ("trained_rows", own_samples, "no exemplar was ever trained on"),
        ("aligned", lambda self, theta, past: (theta, torch.ones_like(theta[0])), "no weight was ever aligned"),
        ("loss", own_teacher, "so WA learnt nothing from its teacher"),
    ],
    "upgd": [
        ("next_utility", lambda self, theta, g, state, hp: 0 * state.utility, "no weight ever had a positive utility")
    ],
    "xdg": [("opened", lambda self, noise: torch.ones_like(noise) > 0, "all tasks have the same gates")],
}
CASES = [(strategy, *case) for strategy, cases in BREAKS.items() for case in cases]


def warnings_in(prepared: Prepared) -> str:
    """Train a run and return the warnings in its summary.csv, "" for none."""
    train.train_run(prepared, quiet=True)
    said = run_files.read_summary(prepared.directory / "summary.csv").iloc[0]["warnings"]
    return "" if pd.isna(said) else said


@pytest.fixture
def warnings_of(prepared_of):
    """warnings_of("ewc", visible=f) -> the warnings of a short run of a class whose method is replaced, and the run."""

    def trained(strategy: str, **methods) -> tuple[str, Prepared]:
        prepared = prepared_of(f"strategy={strategy}", *SHORT, *SHORT_OF.get(strategy, ()))
        cls = prepared.strategy
        prepared = replace(prepared, strategy=type(cls.__name__, (cls,), methods))
        return warnings_in(prepared), prepared

    return trained


def test_there_is_a_break_for_every_strategy():
    missing = set(STRATEGIES) - BREAKS.keys()
    assert not missing, f"add a line to BREAKS that says how to break {', '.join(missing)}"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_that_works_is_not_accused(warnings_of, strategy):
    assert warnings_of(strategy)[0] == ""


@pytest.mark.parametrize(("strategy", "method", "by", "text"), CASES, ids=[f"{c[0]}-{c[1]}" for c in CASES])
def test_one_that_is_broken_says_so(warnings_of, capsys, strategy, method, by, text):
    warnings, prepared = warnings_of(strategy, **{method: by})
    assert text in warnings
    capsys.readouterr()
    show.show(prepared)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("WARNING: ")]
    assert any(text in line for line in lines)


NO_TEACHER = "never passed 1e-12 of the loss, so"


@pytest.mark.parametrize(
    ("later", "said"),
    [
        ([], False),  # a single task has no teacher
        ([(0.0, 0.5), (1e-14, 0.5)], True),
        ([(0.0, 0.5), (1e-3, 0.5)], False),
        ([(1e-15, 1e-9), (1e-9, 1e-9)], False),  # tasks that are learnt perfectly
        ([(0.0, 0.0), (0.0, 0.0)], False),  # tasks of a single class have no loss
        ([(0.0, 0.0), (1e-2, 0.1)], False),
    ],
)
@pytest.mark.parametrize("cls", [WA, BiC, ICaRL])
def test_a_teacher_that_teaches_nothing_is_told_by_its_part_of_the_loss(cls, later, said):
    """(distillation, loss) of each task after the first; all else is as it should be."""
    works = {"gamma": 0.5, "alpha": 0.5, "beta": 0.1, "means": 2, "memory_fill": 1.0, "exemplar_share": 0.4}
    rows = [works | {"distillation": d, "loss": loss} for d, loss in [(0.0, 0.5), *later]]
    health = [row | {"task": k, "memory_classes": 2 * k, "new_outputs": 2} for k, row in enumerate(rows, start=1)]
    assert [NO_TEACHER in text for text in cls.warnings(health, {"memory_size": 200})] == [True] * said
    nothing_new = [row | {"new_outputs": 0} for row in health]  # in which a student is its teacher
    assert not any(NO_TEACHER in text for text in cls.warnings(nothing_new, {"memory_size": 200}))


@pytest.mark.parametrize(
    ("stream", "told"),
    [
        (("tasks=2", "split.blurry=0.3"), "no class of task 2 was new, and "),
        (("tasks=5", "split.blurry=0.3"), "no class of the tasks 2, 3, 4, 5 was new, and "),
        (("tasks=2", "split.blurry=0.3", "split.disjoint=0.5"), None),  # half of the classes stay with their task
        (("tasks=2",), None),
    ],
)
@pytest.mark.parametrize("strategy", ["icarl", "wa", "bic"])
def test_tasks_without_a_new_class_are_named(prepared_of, strategy, stream, told):
    """From them these methods learn nothing, and everything else that they report looks as ever."""
    said = warnings_in(prepared_of(f"strategy={strategy}", "scenario=class", "iterations=6", "plots=false", *stream))
    assert ("was new" in said) == (told is not None) and (told or "") in said


CHOSE_NOTHING = "MIR chose nothing: this is er; type more candidates"
TOO_FEW = "memory_size=1 is less than a sample a task, but each task keeps one"
NO_MORE = "has no more than 10 different"
WITHOUT = ("memory_size=10", "replay_draw=without")
NO_PATH = "the path of the loss (S) stayed 0"
NOT_HELD = "memory_size=1: after all tasks the memory held no sample of 9 of the 10 classes"
NOT_HELD_PER_TASK = "held no sample of 19 of the 20 classes, a class counting once per task"
SAME_WEIGHTS = "the average of the weights was the weights themselves after every task"
SPARES_NOTHING = "this is er whose two losses are added"
CORRECTS_NOTHING = "the largest of them stays the largest"
# what is typed, part of the warning, and whether it is given
TYPED = [
    (("strategy=mir", "candidates=10", "batch_size=16"), CHOSE_NOTHING, True),
    (("strategy=mir", "candidates=10", "batch_size=9"), CHOSE_NOTHING, False),
    (("strategy=gem", "memory_size=1"), TOO_FEW, True),
    (("strategy=gem", "memory_size=2"), TOO_FEW, False),
    (("strategy=er", "replay_batch=11", *WITHOUT), NO_MORE, True),
    (("strategy=derpp", "replay_batch=11", *WITHOUT), NO_MORE, True),
    (("strategy=er", "replay_batch=10", *WITHOUT), NO_MORE, False),
    (("strategy=er", "memory_size=10", "replay_batch=11"), NO_MORE, False),
    (("strategy=rwalk", "interval=7"), NO_PATH, True),
    (("strategy=rwalk", "interval=6"), NO_PATH, False),
    (("strategy=rwalk", "interval=7", "lambda=0"), NO_PATH, False),
    (("strategy=rwalk", "interval=7", "first_tasks=1"), NO_PATH, False),
    *(((f"strategy={name}", "memory_size=1"), NOT_HELD, True) for name in ("er", "er_ace", "der", "gdumb")),
    *(((f"strategy={name}", "memory_size=1", "epochs=1"), NOT_HELD, True) for name in ("icarl", "wa")),
    (("strategy=er", "memory_size=1", "split=permuted"), NOT_HELD_PER_TASK, True),
    (("strategy=er", "memory_size=1", "replay_batch=11", *WITHOUT[1:]), NOT_HELD, True),  # beside what else is said
    (("strategy=er", "memory_size=1", "first_tasks=1"), "held no sample", False),
    (("strategy=gdumb", "memory_size=10"), "held no sample", False),
    (("strategy=er", "memory_per_class=1"), "held no sample", False),
    (("strategy=finetune", "average=ema", "average_decay=0"), SAME_WEIGHTS, True),
    (("strategy=finetune", "average=ema"), SAME_WEIGHTS, False),
    (("strategy=finetune",), SAME_WEIGHTS, False),
    (("strategy=er_ace",), SPARES_NOTHING, True),
    (("strategy=er_ace", "scenario=domain"), SPARES_NOTHING, True),
    (("strategy=er_ace", "scenario=domain", "stream=online", "boundaries=false"), SPARES_NOTHING, True),
    (("strategy=er_ace", "scenario=class"), SPARES_NOTHING, False),
    (("strategy=er_ace", "scenario=class", "first_tasks=1"), SPARES_NOTHING, False),
    (("strategy=bic",), CORRECTS_NOTHING, True),
    (("strategy=bic", "scenario=class"), CORRECTS_NOTHING, False),
]


@pytest.mark.parametrize(("typed", "text", "given"), TYPED, ids=[f"{' '.join(case[0])}-{case[2]}" for case in TYPED])
def test_what_takes_a_part_of_a_method_away_is_said_once(prepared_of, typed, text, given):
    """Of runs in float32 as they are, whose sums round."""
    length = () if {"stream=online", "epochs=1"} & {*typed} else ("iterations=6",)
    scenario = () if any(part.startswith("scenario=") for part in typed) else ("scenario=task",)
    prepared = prepared_of("tasks=2", "plots=false", *length, *scenario, *typed)
    said = warnings_in(prepared)
    assert said.count(text) == given, said
