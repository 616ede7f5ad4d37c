"""What `clrun --help`, `--version` and the completion of a shell say."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from clrun.config import catalog, help
from clrun.system.paths import CONF

pytestmark = pytest.mark.usefixtures("empty_folder")


def test_help_is_one_screen(clrun, my_folder):
    """At the width of a pipe and of 80 columns."""
    code, out, _ = clrun("--config-dir", "my", "--help")
    known = catalog.read((CONF, Path("my").resolve()))
    assert code == 0 and len(out.splitlines()) <= 50 and max(map(len, out.splitlines())) <= 160
    for group, options in known.options.items():
        assert re.search(rf"\n  {group}=\S+ +{len(options)}: {next(iter(options))}", out)
    assert "…" not in out, "nothing is cut in a pipe"
    assert all(re.search(rf"\b{name}\b", out) for name in known.options["strategy"])
    narrow = io.StringIO()
    help.show(known, Console(file=narrow, width=80, highlight=False))
    assert len(narrow.getvalue().splitlines()) <= 45 and max(map(len, narrow.getvalue().splitlines())) <= 80
    assert "…" not in narrow.getvalue().partition("What there is")[0], "no example is cut"


def test_help_of_a_group_has_a_line_for_each_option(clrun, my_folder):
    known = catalog.read((CONF, Path("my").resolve()))
    for group, options in known.options.items():
        lines = [line.strip() for line in clrun("--config-dir", "my", "--help", group)[1].splitlines()]
        assert len(lines) <= len(options) + 3
        for name, option in options.items():
            assert any(re.match(rf"{re.escape(name)}  +{re.escape(option.about[:40])}", line) for line in lines)
    lines = clrun("--help", "keys")[1].splitlines()
    assert all(any(line.strip().startswith(f"{key}=") for line in lines) for key in known.root)
    assert len(lines) <= len(known.root) + 3


def test_help_of_an_experiment_says_what_it_sets(clrun):
    for word in ("split_mnist", "+experiment=split_mnist"):
        code, out, _ = clrun("--help", word)
        assert code == 0 and "van de Ven" in out and "iterations: 2000" in out
    assert "+experiment=split_mnist" in clrun("--help", "experiment")[1]


@pytest.mark.parametrize("word", sorted({name for names in catalog.read().options.values() for name in names}))
def test_help_of_an_option_has_all_of_its_keys(clrun, word):
    code, out, _ = clrun("--help", word)
    assert code == 0
    for group, options in catalog.read().options.items():
        for key, spec in catalog.read().knobs(group, word).items() if word in options else ():
            assert f"{key}=" in out and " ".join(spec.about.split()[:2]) in out


def test_help_of_a_key_says_who_takes_it(clrun, my_folder):
    code, out, _ = clrun("--help", "lambda")
    assert code == 0 and "lambda=400" in out and "strategy=ewc" in out and "strategy=lwf" in out
    assert "a key of every run" in clrun("--help", "batch_size")[1]
    assert "model=mlp" in clrun("--help", "model.widths")[1]
    assert "strategy=mine" in clrun("--config-dir", "my", "--help", "myknob")[1]
    out = clrun("--help", "ewc", "lambda")[1]
    assert "fisher_batch=128" in out and "strategy=lwf" in out


def test_help_of_a_wrong_word_names_the_nearest(clrun):
    assert "did you mean lambda" in clrun("--help", "lamda")[2]
    assert "did you mean ranpac?" in clrun("--help", "ranpack")[2]
    assert "did you mean packnet?" in clrun("--help", "strategy=packnett")[2]
    code, out, err = clrun("--help", "ewc", "split_mnits")
    assert (code, out) == (2, "") and "did you mean split_mnist" in err


def test_version(clrun):
    assert clrun("--version")[:2] == (0, "clrun 0.1.0\n")


@pytest.mark.parametrize(
    "line, offered",
    [
        ("clrun lam", {"lambda="}),
        ("clrun strategy=", {f"strategy={name}" for name in catalog.read().options["strategy"]}),
        ("clrun --config-dir my strategy=min", {"strategy=mine"}),
        ("clrun -m --config-dir=my myk", {"myknob="}),
        ("clrun model=cnn model.wi", {"model.width=", "model.widths="}),
    ],
)
def test_completion(clrun, my_folder, monkeypatch, line, offered):
    monkeypatch.setenv("COMP_LINE", line)
    code, out, _ = clrun("-sc", "query=bash")
    assert code == 0 and set(out.split()) == offered


def test_completion_can_be_installed(clrun):
    code, out, _ = clrun("-sc", "install=bash")
    assert code == 0 and "complete " in out
