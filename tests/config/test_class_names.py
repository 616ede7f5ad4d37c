"""Class names on the command line: what is typed is what is meant, and what a refusal advises can be typed."""

import re
import shlex
import subprocess

import pytest
import yaml
from omegaconf import OmegaConf
from PIL import Image

from clrun.config.check_keys import parsed
from clrun.config.check_values import check
from clrun.config.composition import compose, compose_config
from clrun.config.typed_texts import as_typed
from clrun.data import split
from clrun.data.split import assign_classes
from clrun.results.run_files import write_config
from clrun.system.errors import UsageError
from clrun.system.yaml_numbers import Loader

SETTINGS = {"split": "classes", "split.classes": None, "scenario": "class"}

LIKE_NUMBERS = ["2021_05", "true", "1.0", "-1", "null", "1e3", "007", "0x1f", "inf", "1_000"]

ODD = [
    "M\u00fcller", "\u732b", "R&B", "a=b", "x(1)", "two words", "a,b", "c:d", "it's", 'say "hi"', "$HOME", "#1",
    "-dash",
    "b\\", 'b\\"', "[x]", " lead", "{k: v}", "a b]", "*.png", "~", "!", "%d", "'quoted'",
]  # fmt: skip


def folder_of(root, names):
    for name in names:
        (root / name).mkdir(parents=True)
        for k in range(2):
            Image.new("RGB", (8, 8), (40 * k, 9, 9)).save(root / name / f"{k}.png")
    return (f"dataset.root={root}", "dataset=image_folder", "dataset.test_fraction=0.5", "scenario=class")


def test_a_number_that_is_the_name_of_a_class_means_that_class(tmp_path):
    given = folder_of(tmp_path, [*map(str, range(12)), "other"])
    lists = compose(*given, "split.classes=[[10,11],[2,3]]")["split.classes"]
    assert lists == [["10", "11"], ["2", "3"]]
    with pytest.raises(UsageError, match=r"no class 12.*The classes are 0, 1, 10, 11, 2"):
        compose(*given, "split.classes=[[10,12],[2,3]]")


@pytest.mark.parametrize("name", LIKE_NUMBERS)
def test_a_name_keeps_the_text_that_was_typed(name, tmp_path):
    settings = compose(*folder_of(tmp_path / "pictures", [name, "dog", "cat"]), f"split.classes=[[{name},dog],[cat]]")
    assert settings["split.classes"] == [[name, "dog"], ["cat"]]
    write_config(tmp_path, settings.nested())
    read = yaml.load((tmp_path / "config.yaml").read_text(encoding="utf-8"), Loader)
    assert read["split"]["classes"] == [[name, "dog"], ["cat"]]


def test_positions_are_refused_where_a_class_has_a_number_as_its_name():
    def tasks(lists, names):
        return assign_classes(names, SETTINGS | {"split.classes": lists})

    assert tasks([["2", 0], ["1"]], ["ant", "bee", "cow"]) == [[2, 0], [1]]
    for name in ("3", "1.0", "2021_05", "-1", "1e3"):
        with pytest.raises(UsageError, match="there is no class 0"):
            tasks([["0", name]], ["ant", name])
    with pytest.raises(UsageError, match=r"no class 7; did you mean 007\?"):
        tasks([["7", "a"]], ["007", "a"])
    assert tasks([["nan", "0"]], ["inf", "nan"]) == [[1, 0]], "words"


def test_a_name_that_yaml_reads_as_another_value_is_refused_with_quotes():
    with pytest.raises(UsageError, match=r'in quotes: split.classes: \[\["true"\]\]'):
        check(OmegaConf.merge(compose_config([]), {"split": {"classes": [[True, "a"], ["b"]]}}))


@pytest.mark.parametrize("name", [*ODD, *LIKE_NUMBERS])
def test_what_a_refusal_advises_can_be_typed(name, tmp_path):
    given = folder_of(tmp_path / "pictures", ["ant", name])
    with pytest.raises(UsageError) as caught:
        compose(*given, "tasks=7")
    assert "do not divide" in str(caught.value)
    unequal = f"split.classes={split.unequal_example(['ant', name], 1)}" if split.is_number(name) else ""
    advised = unequal or f"split.classes={split.typed_lists([['ant', name]])}"
    shell = subprocess.run(["sh", "-c", f"printf %s {shlex.quote(advised)}"], capture_output=True, text=True)
    assert compose(*given, shell.stdout)["split.classes"] == [["ant", name]]


def test_names_that_need_quotes_are_shown_in_them(tmp_path):
    given = folder_of(tmp_path, ["a,b", "dog"])
    with pytest.raises(UsageError) as caught:
        compose(*given, "split.classes=[[cat,dog]]")
    (advised,) = re.findall(r"as (\S+=\S+)\.$", str(caught.value))
    typed = shlex.split(advised)[0].replace("]]", ",dog]]")
    assert compose(*given, typed)["split.classes"] == [["a,b", "dog"]]


def test_lists_of_classes_can_be_swept_and_other_forms_are_left_to_hydra():
    override = parsed("split.classes=[[R&B,x(1)],[1e3]],[[a,b],[c]]")
    assert override.is_sweep_override()
    values = [parsed(f"split.classes={text}").value() for text in override.sweep_string_iterator()]
    assert values == [[["R&B", "x(1)"], ["1e3"]], [["a", "b"], ["c"]]]
    for text in (
        "split.classes=null",
        "split.classes=[[${seed}]]",
        "split.classes=choice([[1]],[[2]])",
        "lambda=[[1]]",
    ):
        assert as_typed(text) == text
    with pytest.raises(UsageError, match="in brackets of their own"):
        parsed("split.classes=[R&B,a]")


def test_both_unicode_forms_of_a_name_are_one(tmp_path):
    assert assign_classes(["M\u00fcller", "x"], SETTINGS | {"split.classes": [["Mu\u0308ller", "x"]]}) == [[0, 1]]
