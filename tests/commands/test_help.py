"""What `clrun --help`, `--version` and the completion of a shell say."""

import io
import itertools
import re
import tomllib
from pathlib import Path

import pytest
from rich.console import Console

from clrun.config import catalog, help, help_words
from clrun.system.paths import CONF

pytestmark = pytest.mark.usefixtures("empty_folder")


def lines_at(width: int, *words: str, folder: str = "my") -> list[str]:
    """The lines of the help, or of the help of words, on a console of this width."""
    console = Console(file=io.StringIO(), width=width, highlight=False)
    known = catalog.with_folder(folder)
    if words:
        help_words.show(known, words, console)
    else:
        help.show(known, console)
    return console.file.getvalue().splitlines()


def test_help_names_all_that_there_is_to_choose(clrun, my_folder):
    code, out, _ = clrun("--config-dir", "my", "--help")
    assert code == 0 and "mine" in out and all(f"\n  {example}" in out for example in help.EXAMPLES)
    for group, options in catalog.with_folder("my").options.items():
        first = "those above" if group == "strategy" else next(iter(options))
        assert re.search(rf"\n  {group}=\S+ +{len(options)}: {first}", out)
        assert all(re.search(rf"\b{re.escape(name)}\b", out) for name in options)


@pytest.mark.parametrize("width", [80, 120, 160])
def test_help_has_one_line_for_each_strategy(my_folder, width):
    """Below the headings of the kinds, in their order, and those of the user's last."""
    lines = lines_at(width)
    strategies = catalog.with_folder("my").options["strategy"]
    headings = [line for line in lines if line in (*catalog.HEADINGS.values(), help.OWN)]
    assert headings == [*catalog.HEADINGS.values(), help.OWN]
    for name, option in strategies.items():
        (number,) = [
            n for n, line in enumerate(lines) if re.match(rf"  {name}  +{re.escape(help.short(option))}$", line)
        ]
        heading = [line for line in lines[:number] if line in headings][-1]
        assert heading == (catalog.HEADINGS[option.kind] if option.kind else help.OWN)
    assert len(lines) <= len(strategies) + 80


@pytest.mark.parametrize("width", [30, 80, 160])
@pytest.mark.parametrize("word", [(), *((word,) for word in (*catalog.GROUPS, "experiment", "keys", "ewc", "lambda"))])
def test_no_line_of_the_help_is_cut_or_wider_than_the_terminal(my_folder, width, word):
    lines = lines_at(width, *word)
    assert max(map(len, lines)) <= width and not any("…" in line for line in lines)
    assert [line for line in lines if line != line.rstrip()] == [], "blanks at the end"


def test_each_of_our_strategies_states_what_help_says_of_it():
    """So that its line has at most 80 characters, whatever the longest name is."""
    for name, option in catalog.read().options["strategy"].items():
        assert option.short and option.kind, f"conf/strategy/{name}.yaml: add short: and kind:"
        assert len(option.short) <= help.SHORT and not option.short.endswith("."), name
    shorts = [option.short for option in catalog.read().options["strategy"].values()]
    assert len(set(shorts)) == len(shorts)
    longest = max(map(len, catalog.read().options["strategy"]))
    assert help.INDENT + longest + help.GAP + help.SHORT <= 80


@pytest.mark.parametrize(
    "about, short",
    [
        ("a pull (Ash 2020)", "a pull"),
        (
            "mine - it pulls on the weights of all the old - tasks",
            "mine - it pulls on the weights of all the old - tasks",
        ),
        ("mine - it pulls on the weights of all the older - tasks", "mine - it pulls on the weights of all the older"),
        ("x" * 60, "x" * 54),
        ("two\nlines", "two lines"),
    ],
)
def test_what_a_users_strategy_does_is_how_its_about_begins(about, short):
    stated = catalog.StrategyOption(name="mine", about=about, _target_="my.Mine")
    assert help.short(stated) == short and len(short) <= help.SHORT


def test_a_user_may_state_how_help_lists_a_strategy(clrun, my_folder):
    path = Path("my/strategy/mine.yaml")
    path.write_text(path.read_text() + "short: keeps to itself\nkind: replay\n")
    lines = clrun("--config-dir", "my", "--help")[1].splitlines()
    (number,) = [n for n, line in enumerate(lines) if re.match("  mine  +keeps to itself$", line)]
    replay = lines.index(catalog.HEADINGS["replay"])
    assert replay < number < lines.index(catalog.HEADINGS["parts"]) and help.OWN not in lines
    assert clrun("--config-dir", "my", "strategy=mine", "iterations=2", "model.widths=[8]")[0] == 0


def test_a_kind_that_there_is_not_is_refused(clrun, my_folder):
    path = Path("my/strategy/mine.yaml")
    path.write_text(path.read_text() + "kind: reply\n")
    code, out, err = clrun("--config-dir", "my", "--help")
    assert (code, out) == (2, "") and "mine.yaml: kind: there is no kind reply" in err and "replay" in err


def test_help_in_a_pipe_is_as_wide_as_COLUMNS_says(clrun, monkeypatch):
    for columns, widest in {"80": 80, "100": 100, "0": 160, "": 160, "wide": 160}.items():
        monkeypatch.setenv("COLUMNS", columns)
        assert widest - 20 < max(map(len, clrun("--help")[1].splitlines())) <= widest


def test_help_of_a_group_says_all_of_each_option(my_folder):
    known = catalog.with_folder("my")
    for group, options in known.options.items():
        lines = lines_at(80, group)
        for name, option in options.items():
            at = lines.index(f"  {name}")
            below = itertools.takewhile(lambda line: line.startswith(" " * help.BELOW), lines[at + 1 :])
            assert " ".join(line.strip() for line in below) == " ".join(help.headline(option).split())
    lines = lines_at(160, "keys")
    assert all(any(line.strip().startswith(f"{key}=") for line in lines) for key in known.root)


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


def test_help_of_a_value_is_that_of_the_keys_that_take_it(clrun):
    assert "average=null" in clrun("--help", "ema")[1]
    assert "measure=null" in clrun("--help", "plasticity")[1]
    out = clrun("--help", "reservoir")[1]
    assert "memory_policy=null" in out and "memory_policy=reservoir" in out and "strategy=er" in out
    assert clrun("--help", "linear")[1] == clrun("--help", "model=linear")[1]  # an option comes before a value
    assert clrun("--help", "strategy=ema")[0] == 2


def test_help_names_every_other_command(clrun):
    with (CONF.parent / "pyproject.toml").open("rb") as file:
        commands = tomllib.load(file)["project"]["scripts"]
    others = {f"clrun-{name}" for name in help.COMMANDS}
    assert {"clrun", *others} == set(commands)
    assert all(name in clrun("--help")[1] for name in others)


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
