"""Every strategy broken on purpose: the run says that it did nothing, in summary.csv and on the terminal.

A new strategy needs one line here, in BREAKS: which of its methods to replace so that it does nothing, and what the
warning then says. An empty list says that there is nothing in it that could be broken.
"""

from dataclasses import replace

import pytest
import torch
from conftest import STRATEGIES
from helpers import warnings_in
from torch.utils._pytree import tree_map

from clrun.runs import show
from clrun.runs.prepared import Prepared
from clrun.strategies.amn import AMN
from clrun.strategies.cbp import CBP
from clrun.strategies.gdumb import GDumb
from clrun.strategies.lwf import LwF
from clrun.strategies.packnet import PackNet
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
        ("after_step", der_stores_nothing, "held no sample of 5 of the 6 classes"),
    ],
    "derpp": [
        ("after_step", as_it_was, EMPTY),
        ("replay_loss", no_replay_loss, "never had a loss above 1e-12"),
    ],
    "er": [
        ("after_step", as_it_was, EMPTY),
        ("offer", nothing_stored, "held no sample of 5 of the 6 classes"),
    ],
    "dgr": [
        ("replay_loss", no_replay_loss, "what was generated never had a loss above 1e-12"),
        ("generator", property(untrained), "no step ever changed a weight of the generator"),
        ("generator", property(unmoved), "no step ever changed a weight of the generator"),
    ],
    "generative_classifier": [
        ("after_step", as_it_was, "no autoencoder was trained"),
        ("after_step", counted_once, "no autoencoder was trained after the first task"),
        ("loss", of_nothing, "the latent variables say nothing about a sample"),
    ],
    "er_ace": [
        ("after_step", as_it_was, EMPTY),
        ("offer", nothing_stored, "held no sample of 5 of the 6 classes"),
        ("answering", every_output, "no softmax leaves out an output that may answer"),
    ],
    "fdr": [
        ("after_phase", theta_and_state, EMPTY),
        ("replay_loss", no_replay_loss, "never had a loss above 1e-12"),
    ],
    "gdumb": [
        ("after_phase", theta_and_state, "the memory stayed empty, so GDumb trained on nothing"),
        ("offer_task", first_task_alone, "held no sample of 4 of the 6 classes"),
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
