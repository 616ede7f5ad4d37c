"""Characters drawn from matplotlib's fonts, and streams whose domains have classes of their own."""

import numpy as np
import pytest
import torch
from helpers import summaries
from test_arrays import ONE_BUDGET, parts, with_places, write
from test_bad_input import refused, written

from clrun.config.check_keys import last_of_each
from clrun.data import alphabets

pytestmark = pytest.mark.usefixtures("empty_folder")

TYPED = ("dataset=alphabets", "dataset.characters=3", "dataset.samples=4", "dataset.test_samples=2", *ONE_BUDGET)


@pytest.fixture(scope="module")
def all_scripts():
    """Two characters of every script, ten pictures each for training and two for testing."""
    return alphabets.read(list(alphabets.SCRIPTS), 2, 10, 2)


def test_what_is_drawn(all_scripts):
    made, scripts = all_scripts, len(alphabets.SCRIPTS)
    assert made.x.shape == (2 * scripts * 12, 1, 28, 28) and made.x.dtype == np.uint8
    assert made.train == 2 * scripts * 10 and len(set(made.classes)) == len(made.classes) == 2 * scripts
    assert np.bincount(made.y).tolist() == [12] * (2 * scripts) and list(made.domains) == list(alphabets.SCRIPTS)
    assert np.array_equal(made.domain, made.y // 2)
    assert len({picture.tobytes() for picture in made.x}) == len(made.x)  # none twice, in any part
    ink = made.x.reshape(len(made.x), -1) > 127
    assert (ink.sum(1) > 5).all() and (ink.sum(1) < 300).all()
    border = np.ones((28, 28), bool)
    border[1:-1, 1:-1] = False
    assert (made.x[:, 0][:, border] > 127).mean() < 0.001  # nothing is cut off


def test_pictures_of_a_character_depend_on_nothing_else(all_scripts):
    alone = alphabets.read(["lao"], 2, 5, 1)
    first = all_scripts.classes.index("lao_ko")
    assert alone.classes[0] == "lao_ko"
    assert np.array_equal(alone.x[:5], all_scripts.x[first * 10 : first * 10 + 5])


def test_letters_that_look_the_same_are_in_the_earlier_script_alone():
    def names(*scripts):
        return [alphabets.class_name(s.name, c) for s in alphabets.chosen_characters(scripts, 20) for c in s.characters]

    both, other = names("latin", "cyrillic"), names("cyrillic", "latin")
    assert "latin_capital_a" in both and "cyrillic_capital_a" not in both and "cyrillic_capital_be" in both
    assert "cyrillic_capital_a" in other and "latin_capital_a" not in other and "latin_capital_d" in other
    assert "greek_capital_alpha" in names("greek")


@pytest.mark.parametrize("script", alphabets.SCRIPTS)
def test_every_script_can_be_typed(script):
    whole = alphabets.whole_script(script)
    assert len(whole.characters) >= 20 and whole.faces[0] == "DejaVuSans" and len(whole.faces) >= 2
    looks = {alphabets.plain(c, whole.faces[-1]).tobytes() for c in whole.characters}
    assert len(looks) > len(whole.characters) * 0.97  # no boxes in place of characters
    names = [alphabets.class_name(script, c) for c in whole.characters]
    assert len(set(names)) == len(names) and all(name.isascii() and name.isidentifier() for name in names)


@pytest.mark.parametrize("scenario", ["task", "class"])
def test_each_task_is_a_script(clrun, prepared_of, scenario):
    scripts = "dataset.scripts=[greek,lao,nko]"
    run = prepared_of(*TYPED, scripts, "split=domains", f"scenario={scenario}")
    assert run.settings["tasks"] == 3 and len(run.stream.names) == 9
    by_class = prepared_of(*TYPED, scripts, "tasks=3", "split.order=fixed", f"scenario={scenario}").stream
    for made, other in zip(run.stream.tables, by_class.tables, strict=True):
        assert torch.equal(made, other)
    assert all(map(torch.equal, run.stream.train, by_class.train)) and run.stream.names == by_class.names
    code, _, err = clrun(*TYPED, scripts, "split=domains", f"scenario={scenario}", "strategy=er")
    assert code == 0, err
    code, _, err = clrun(*TYPED, "split.classes=[[lao_ko,lao_kho_sung],[nko_a,nko_ee]]", "dataset.scripts=[lao,nko]")
    assert code == 0, err
    assert len(summaries()) == 2


def test_domains_with_other_numbers_of_classes(clrun, prepared_of):
    found = with_places()
    for part in ("train", "test"):  # a third class, in the lab alone
        found[f"y_{part}"] = np.where(
            (found[f"task_{part}"] == "lab") & (np.arange(96) % 4 == 0), 2, found[f"y_{part}"]
        )
    typed = ("dataset=arrays", write(found), "split=domains", *ONE_BUDGET)
    run = prepared_of(*typed, "scenario=class")
    assert run.stream.names == ["0", "1", "0", "1", "2", "0", "1"]
    assert run.stream.tables.active[1, 0].tolist() == [True] * 5 + [False] * 2
    for seed in range(4):
        drawn = prepared_of(*typed, "scenario=task", "split.order=seed", f"seed={seed}").stream
        for pool, label in zip(drawn.train, drawn.tables.label, strict=True):
            classes = torch.from_numpy(found["y_train"])[pool].unique()
            outputs = label[classes]
            assert len(outputs.unique()) == len(classes)
            assert [drawn.names[k] for k in outputs] == list(map(str, classes.tolist()))
    code, _, err = clrun(*typed, "scenario=task", "split.order=seed", "-m", "seed=0,1,2")
    assert code == 0, err
    before = written()
    refused(
        clrun(*typed, "scenario=domain"), "domain hill has no training sample of class 2; with scenario=dom", before
    )


# ---------------------------------------------------------------- what is refused

WRONG = {
    "no script": (("dataset.scripts=[]",), "dataset.scripts=[] names no script; name some of latin, greek"),
    "unknown": (
        ("dataset.scripts=[latin,grek]",),
        "there is no script grek; did you mean greek? The scripts are latin",
    ),
    "klingon": (("dataset.scripts=[klingon]",), "there is no script klingon. The scripts are latin"),
    "capital": (("dataset.scripts=[Latin]",), "there is no script Latin; did you mean latin?"),
    "twice": (("dataset.scripts=[lao,greek,lao]",), "dataset.scripts names lao twice; name it once"),
    "a text": (("dataset.scripts=lao",), "must be a list of texts, such as [a,b]"),
    "a number": (("dataset.scripts=[3]",), "there is no script 3"),
    "many": (("dataset.characters=28", "dataset.scripts=[lao]"), "lao has 27 characters; type dataset.characters=27"),
    "many of two": (
        ("dataset.characters=40", "dataset.scripts=[latin,greek]"),
        "greek has 34 characters, beside 15 that look as one before them; type dataset.characters=34 or less",
    ),
    "none": (("dataset.characters=0",), "dataset.characters=0: must be a whole number"),
    "a half": (("dataset.characters=2.5",), "must be a whole number"),
    "beyond": (("dataset.characters=401",), "at most 400"),
    "no samples": (("dataset.samples=0",), "must be a whole number, at least 1"),
    "no test": (("dataset.test_samples=0",), "must be a whole number, at least 1"),
    "a word": (("dataset.samples=many",), "must be a whole number"),
    "memory": (
        ("dataset.samples=100000", "dataset.characters=400", f"dataset.scripts=[{','.join(alphabets.SCRIPTS)}]"),
        "smaller ones",
    ),
    "one class": (
        ("dataset.characters=1", "split=domains", "scenario=task"),
        "the domain latin has the one class latin_",
    ),
    "shared outputs": (
        ("split=domains", "scenario=domain"),
        "domain latin has no training sample of class greek_capital",
    ),
    "tasks": (("tasks=7",), "15 classes do not divide into 7 equal tasks"),
    "no such class": (("split.classes=[[greek_alpha],[lao_ko]]", "scenario=class"), "there is no class greek_alpha"),
    "another key": (("dataset.root=x",), "dataset.root"),
}


@pytest.mark.parametrize("typed, said", WRONG.values(), ids=WRONG)
def test_wrong_alphabets(clrun, typed, said):
    before = written()
    refused(clrun(*last_of_each([*TYPED, *typed])), said, before)


def test_a_domain_with_one_class_in_arrays(clrun):
    place = np.where(np.arange(24) % 4 == 0, "sea", "lab")
    file = write(parts(task_train=place, task_test=place[:8]))
    before = written()
    refused(clrun("dataset=arrays", file, "split=domains", "scenario=task", *ONE_BUDGET), "the one class 0", before)
