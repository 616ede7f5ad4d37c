"""Every strategy broken on purpose: the run says that it did nothing, in summary.csv and on the terminal.

A new strategy needs one line here, in BREAKS: what to replace in its code so that it does nothing, and what is then
said. An empty list says that there is nothing in it that could be broken.
"""

import pandas as pd
import pytest
import torch
from conftest import STRATEGIES

from clrun.results import plots, run_files
from clrun.runs import show, train
from clrun.runs.prepared import Prepared
from clrun.strategies import agem, amn, cumulative, der, er, ewc, hat, joint, lwf, mas, packnet, separate, si
from clrun.strategy import Gaussian, Memory, Replay

SHORT = ("iterations=40", "model.widths=[24,16]", "device=cpu", "split.classes=[[0,1],[2,3],[4,5]]")
EMPTY = "the memory stayed empty, so nothing was replayed: this is finetuning"
ALONE = "never saw a sample of another task than the one being learnt"


def zeros(_, theta, *__, **___):
    return torch.zeros_like(theta)


def nothing_stored(_, weight, __):
    return torch.full((200,), -1)


def gates(value: float):
    return lambda self, theta, hp: [torch.full_like(e, value) for e in self.embeddings(theta)]


def own_task(_, stage: int):
    return (stage,)


def one_for_all(self, theta, state):
    return theta.expand_as(state.thetas), state.statistics


kl = lwf.LwF.drift


# strategy -> (where, what is replaced, by what, what is said)
BREAKS = {
    "agem": [
        (agem.AGEM, "offer_task", lambda self, memory, pool: memory, EMPTY),
        (Replay, "recall", lambda self, memory, batch, noise: (batch, memory.draw(noise)), "had to be projected"),
    ],
    "amn": [
        (amn, "STEPS", dict.fromkeys(amn.STEPS, torch.zeros_like), "the memory units never left zero"),
        (ewc, "fisher", zeros, "of the EWC in it: AMN found no weight important"),
    ],
    "cumulative": [(cumulative.Cumulative, "visible", own_task, ALONE)],
    "der": [
        (der.DER, "after_step", lambda self, state, *_: state, EMPTY),
        (der.DER, "replayed", lambda self, theta, *_: 0 * theta.sum(), "never had a loss above 1e-12"),
        (Memory, "tenants", nothing_stored, "samples of one class alone"),
    ],
    "derpp": [
        (der.DERpp, "after_step", lambda self, state, *_: state, EMPTY),
        (der.DERpp, "replayed", lambda self, theta, *_: 0 * theta.sum(), "never had a loss above 1e-12"),
    ],
    "er": [
        (er.ER, "after_step", lambda self, state, *_: state, EMPTY),
        (Memory, "tenants", nothing_stored, "samples of one class alone"),
    ],
    "ewc": [(ewc, "fisher", zeros, "EWC found no weight important (its fisher is all zero)")],
    "finetune": [],
    "hat": [
        (hat.HAT, "settled", gates(1.0), "every unit was in use after task 1"),
        (hat.HAT, "settled", gates(0.0), "no gate opened"),
    ],
    "imm": [(Gaussian, "absorb", lambda self, theta, F: Gaussian(theta, F), "never differed from the last task's")],
    "joint": [(joint.Joint, "visible", own_task, ALONE)],
    "lwf": [(lwf.LwF, "drift", lambda self, old, new, batch: kl(self, new, new, batch), "distillation never passed")],
    "mas": [(mas, "summed", zeros, "MAS found no weight important")],
    "packnet": [
        (packnet, "largest", lambda score, among, share: among, "no weight was free after task 1"),
        (packnet, "largest", lambda score, among, share: among & False, "a task kept no weight"),
    ],
    "scratch": [(cumulative.Cumulative, "visible", own_task, ALONE)],
    "separate": [(separate.Separate, "networks", one_for_all, "two tasks have one and the same network")],
    "si": [(si.SI, "after_move", lambda self, state, *_: state, "SI found no weight important")],
}
CASES = [(strategy, *case) for strategy, cases in BREAKS.items() for case in cases]


@pytest.fixture
def warnings_of(prepared_of, monkeypatch):
    """warnings_of("ewc") -> the warnings in the summary of a short run, and how it is shown."""
    monkeypatch.setattr(plots, "draw", lambda directory: None)

    def trained(strategy: str) -> tuple[str, Prepared]:
        prepared = prepared_of(f"strategy={strategy}", *SHORT)
        train.train_run(prepared, quiet=True)
        said = run_files.read_summary(prepared.directory / "summary.csv").iloc[0]["warnings"]
        return "" if pd.isna(said) else said, prepared

    return trained


def test_there_is_a_break_for_every_strategy():
    missing = set(STRATEGIES) - BREAKS.keys()
    assert not missing, f"add a line to BREAKS that says how to break {', '.join(missing)}"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_that_works_is_not_accused(warnings_of, strategy):
    assert warnings_of(strategy)[0] == ""


@pytest.mark.parametrize(("strategy", "where", "what", "by", "said"), CASES, ids=[f"{c[0]}-{c[2]}" for c in CASES])
def test_one_that_is_broken_says_so(warnings_of, monkeypatch, capsys, strategy, where, what, by, said):
    monkeypatch.setattr(where, what, by)
    warnings, prepared = warnings_of(strategy)
    assert said in warnings
    capsys.readouterr()
    show.show(prepared)
    format_value = [line for line in capsys.readouterr().out.splitlines() if line.startswith("WARNING: ")]
    assert any(said in line for line in format_value)
