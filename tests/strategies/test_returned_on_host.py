"""What a method of a strategy that is ordinary Python must return: anything else is refused with the place of the
method, before a file is written that cannot be read."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import warnings_in

from clrun.runs import checkpoint, prepare, train
from clrun.strategies.finetune import Finetune
from clrun.system.errors import UsageError


class OnePhase(Finetune):
    phases = "train"


class NumberedShares(Finetune):
    shares = (1,)


class NoTasks(Finetune):
    def visible(self, stage):
        return stage


class NoSteps(Finetune):
    def takes_steps(self, stage):
        pass


class NoTrainables(Finetune):
    @classmethod
    def trainables(cls, network, tasks, knobs):
        return [torch.zeros(1)]


class NoDraws(Finetune):
    def draws(self):
        return {"gates": 1}


class TrueObjection(Finetune):
    @classmethod
    def incompatibility(cls, network, optimizer, knobs):
        return True


class NoRows(Finetune):
    def trained_rows(self, phase, state, own):
        pass


class RowsOfFloats(Finetune):
    def trained_rows(self, phase, state, own):
        return [rows.float() for rows in own]


class Legal(Finetune):
    """Values that are as good as those of the guide: NumPy's numbers, a set, 1 and 0, a generator."""

    def visible(self, stage):
        return {np.int64(stage)} if stage else tuple(np.unique([stage]))

    def takes_steps(self, stage):
        return (np.array([2, 3])[stage] > 1) if stage else 1

    def stored_samples(self, state):
        return np.int64(3)

    def unused_bytes(self, state):
        return np.int32(0)

    @classmethod
    def warnings(cls, health, knobs):
        yield from ("one thing", "another")


class CountInTensor(Finetune):
    def stored_samples(self, state):
        return torch.tensor(3)


class BytesInFloat(Finetune):
    def unused_bytes(self, state):
        return 0.5


class OneSentence(Finetune):
    @classmethod
    def warnings(cls, health, knobs):
        return "nothing was learnt"


class NoWarnings(Finetune):
    @classmethod
    def warnings(cls, health, knobs):
        pass


BEFORE = [
    (OnePhase, "OnePhase.phases is 'train'; let it be a tuple of names, such as ('train',)."),
    (NumberedShares, "NumberedShares.shares is (1,); let it be a tuple of names"),
    (NoTasks, "NoTasks.visible returned int 0; let it return the numbers of tasks, from 0, such as (stage,)"),
    (NoSteps, "NoSteps.takes_steps returned None; let it return True or False."),
    (NoTrainables, "trainables returned [tensor (1,)]; let it return a dictionary of tensors by name, {} for none."),
    (NoDraws, "NoDraws.draws returned {gates: int 1}; let it return a dictionary of tensors by name, {} for none."),
    (
        TrueObjection,
        "TrueObjection.incompatibility returned bool True; let it return a sentence, or None for no objection.",
    ),
]
LATER = [
    (NoRows, "NoRows.trained_rows returned None; let it return a list of tensors (n,) of row numbers, as `own` is."),
    (RowsOfFloats, "RowsOfFloats.trained_rows returned [tensor ("),
    (CountInTensor, "stored_samples returned tensor (); let it return a whole number, such as int(memory.held)."),
    (BytesInFloat, "unused_bytes returned float 0.5; let it return a whole number"),
    (
        OneSentence,
        "OneSentence.warnings returned str 'nothing was learnt'; let it return a list of sentences, [] for none.",
    ),
    (NoWarnings, "warnings returned None; let it return a list of sentences, [] for none."),
]


@pytest.mark.parametrize(("cls", "said"), BEFORE, ids=[cls.__name__ for cls, _ in BEFORE])
def test_what_is_known_before_training_is_refused_before_it(settings_of, monkeypatch, cls, said):
    monkeypatch.setattr(prepare, "strategy_class", lambda settings: cls)
    with pytest.raises(UsageError) as caught:
        prepared = prepare.prepare(settings_of("strategy=finetune", "tasks=2", "iterations=2"))
        train.train_run(prepared, quiet=True)
    assert said in str(caught.value)


@pytest.mark.parametrize(("cls", "said"), LATER, ids=[cls.__name__ for cls, _ in LATER])
def test_what_is_asked_later_is_refused_and_no_summary_is_written(prepared_of, cls, said):
    prepared = replace(prepared_of("strategy=finetune", "tasks=2", "iterations=2", "plots=false"), strategy=cls)
    with pytest.raises(UsageError) as caught:
        train.train_run(prepared, quiet=True)
    assert said in str(caught.value)
    assert not (prepared.directory / "summary.csv").exists()
    learnt = (prepared.directory / checkpoint.NAME).exists()  # written where a task has ended
    assert learnt == (cls in (OneSentence, NoWarnings)), "all but the warnings is asked for before any training"


def test_numbers_of_numpy_and_sentences_of_a_generator_are_as_good(prepared_of):
    typed = "strategy=finetune", "tasks=2", "iterations=2", "plots=false"
    plain = prepared_of(*typed)
    train.train_run(plain, quiet=True)
    matrix = (plain.directory / "accuracy_matrix.csv").read_bytes()
    shutil.rmtree(plain.directory)
    assert warnings_in(replace(plain, strategy=Legal)) == "one thing | another"
    assert (plain.directory / "accuracy_matrix.csv").read_bytes() == matrix
