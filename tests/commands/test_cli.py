"""The command line: what it answers, what it refuses, and what it leaves behind."""

import io
import re
import sys
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from clrun.commands import predict
from clrun.config import catalog, help
from clrun.report.rows import rows_of
from clrun.report.runs import read
from clrun.results.run_files import read_summary
from clrun.runs import prepare
from clrun.system.errors import UsageError
from clrun.system.paths import CONF

SHORT = ("iterations=2", "model.widths=[8]", "device=cpu", "workers=1")  # a sweep trains in this process


pytestmark = pytest.mark.usefixtures("empty_folder")


def written() -> set[Path]:
    return set(Path().rglob("*"))


def runs(strategy: str = "*", outputs: str = "outputs") -> list[Path]:
    return sorted(Path(outputs).glob(f"runs/{strategy}/*/summary.csv"))


# ---------------------------------------------------------------- single runs


def test_a_run_is_not_trained_twice(clrun):
    assert clrun("strategy=ewc", "lambda=100", *SHORT)[0] == 0
    assert set(map(str, Path().iterdir())) == {"outputs"}  # no .hydra, no multirun.yaml, no log
    before = runs()[0].stat().st_mtime_ns
    code, out, _ = clrun("strategy=ewc", "lambda=1e2", *SHORT)
    assert code == 0 and "Done already, on cpu" in out and "forgetting" in out
    assert [path.stat().st_mtime_ns for path in runs()] == [before]
    assert clrun("strategy=ewc", "lambda=100.0", "rerun=true", *SHORT)[0] == 0
    assert runs()[0].stat().st_mtime_ns > before and len(runs()) == 1


def test_tasks_that_are_learnt_together_are_one_line(clrun):
    _, _, err = clrun("strategy=joint", *SHORT)
    lines = [line for line in err.splitlines() if "learnt in" in line]
    assert len(lines) == 1 and lines[0].startswith("joint seed=0: 5 tasks together learnt in ")
    assert lines[0].split(": ")[-1].count(".") == 5, "the accuracy of every task"


CRASH = "raise ZeroDivisionError('on purpose')"


def test_a_crash_is_a_traceback_and_code_1(clrun, faulty):
    code, _, err = clrun(*faulty(CRASH), *SHORT)
    assert code == 1 and "Traceback" in err and "ZeroDivisionError: on purpose" in err
    (failed,) = Path().rglob("failed.txt")
    assert failed.parent.name in err.replace("\n", "") and "on purpose" in failed.read_text()


def test_ctrl_c_is_130(clrun, faulty):
    mine = faulty("raise KeyboardInterrupt")
    assert clrun(*mine, *SHORT)[0] == 130
    assert clrun(*mine, "-m", "seed=0,1", *SHORT)[0] == 130


def test_sigterm_is_143_and_leaves_no_temporary_folder(clrun, monkeypatch, tmp_path, faulty):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    mine = faulty("os.kill(os.getpid(), signal.SIGTERM)")
    for line in (("-m", "seed=0,1"), ()):
        code, _, err = clrun(*mine, *line, f"outputs=outputs{len(line)}", *SHORT)
        saved, *others = err.splitlines()
        assert saved.startswith("clrun: saved after task 0 and 2 steps of task 1 ")
        assert code == 143 and others == ["clrun: terminated; the same command again continues."]
    assert list((tmp_path / "temporary").iterdir()) == []


# ---------------------------------------------------------------- sweeps


def test_a_sweep_runs_equal_jobs_once_and_ends_in_a_table(clrun):
    code, out, _ = clrun("-m", "strategy=finetune,ewc", "lambda=1,1.0,10", *SHORT)
    assert code == 0 and len(runs("finetune")) == 1 and len(runs("ewc")) == 2
    assert "Left out where it is not taken: lambda (strategy=finetune)." in out
    assert "3 runs, of 6 jobs: 3 to train" in out
    table = out[out.index("accuracy and forgetting in percent") :]
    for path in runs():
        assert f" {100 * read_summary(path)['average_accuracy'].item():.1f} " in table
    assert set(map(str, Path().iterdir())) == {"outputs"}
    assert len(pd.read_csv("outputs/results.csv")) == 3


def test_a_sweep_over_seeds_ends_in_means(clrun):
    """A row a run, then a row for each of what differs beside the seed, in percent; every line names its strategy."""
    code, out, _ = clrun("-m", "strategy=finetune,ewc", "lambda=1", "seed=range(2)", *SHORT)
    assert code == 0 and re.findall(r"^\[\d/4\] (\w+)/\S+: done$", out, re.M) == ["finetune"] * 2 + ["ewc"] * 2
    means = out[out.index("mean ± standard deviation in percent") :]
    for strategy in ("finetune", "ewc"):
        found = pd.concat([read_summary(path) for path in runs(strategy)])["average_accuracy"]
        assert f"{100 * found.mean():.1f} ± {100 * found.std():.1f}" in means


def test_a_wider_sweep_trains_only_what_is_new(clrun):
    clrun("strategy=ewc", "lambda=1", *SHORT)
    code, out, _ = clrun("-m", "strategy=ewc", "lambda=1,10", "seed=range(2)", *SHORT)
    assert code == 0 and "4 runs: 3 to train, 1 done already" in out and len(runs()) == 4
    assert "0 to train, 4 done" in clrun("-m", "strategy=ewc", "lambda=10,1", "seed=0,1", *SHORT)[1]


def test_a_crashed_run_leaves_the_others_alone(clrun, faulty):
    typed = (*faulty(CRASH), "-m", "fault=0,1,2", *SHORT)
    code, out, err = clrun(*typed)
    assert code == 1 and len(runs()) == 2
    assert "1 of 3 runs crashed" in err and "ZeroDivisionError: on purpose" in err and "failed.txt" in err
    assert "accuracy and forgetting in percent" in out
    Path("repaired").touch()
    code, out, _ = clrun(*typed)
    assert code == 0 and "1 to train, 2 done already" in out and not list(Path().rglob("failed.txt"))


def test_hydras_own_launcher_works_too(clrun):
    assert clrun("-m", "seed=0,1", "hydra/launcher=basic", *SHORT)[0] == 0
    assert len(runs()) == 2


# ---------------------------------------------------------------- the user's own folder

MINE = """
from typing import NamedTuple
from torch import Tensor
from clrun.strategies.finetune import Finetune

class Mine(Finetune):
    class Hyper(NamedTuple):
        myknob: Tensor
        gamma: Tensor
"""
STATED = """
name: mine
about: a strategy of mine
_target_: mine_of_the_user.Mine
knobs:
  myknob: {default: 1.0, type: float, min: 0, about: a knob of mine}
  gamma: {default: 7.0, type: float, max: 9, about: shares its name with a knob of ewc}
"""


@pytest.fixture
def my_folder():
    Path("my/strategy").mkdir(parents=True)
    Path("my/strategy/mine.yaml").write_text(STATED)
    Path("mine_of_the_user.py").write_text(MINE)
    yield
    sys.modules.pop("mine_of_the_user", None)


def test_a_users_strategy_works_fixed_and_swept(clrun, my_folder):
    assert clrun("--config-dir", "my", "strategy=mine", "myknob=3", *SHORT)[0] == 0
    (summary,) = runs("mine")
    assert read_summary(summary)[["myknob", "gamma"]].values.tolist() == [[3.0, 7.0]]
    code, out, _ = clrun("-cd", "my", "-m", "strategy=ewc,mine", "myknob=5", *SHORT)
    assert code == 0 and "myknob (strategy=ewc)" in out
    assert clrun("-m", "strategy=ewc,mine", "myknob=5,6", "--config-dir=my", *SHORT)[0] == 0
    assert len(runs("ewc")) == 1 and len(runs("mine")) == 3


def test_an_edited_strategy_is_another_run_on_the_same_stream(clrun, my_folder):
    for text, count in ((MINE, 1), (MINE, 1), (MINE + "    # edited\n", 2)):
        Path("mine_of_the_user.py").write_text(text)
        assert clrun("-cd", "my", "strategy=mine", *SHORT)[0] == 0 and len(runs("mine")) == count
    one, other = (read_summary(path).iloc[0] for path in runs("mine"))
    assert one["source"] != other["source"] and one["stream"] == other["stream"]
    assert clrun("-cd", "my", "-m", "strategy=mine,ewc", *SHORT)[0] == 0 and len(runs("mine")) == 2
    assert "source" not in read_summary(runs("ewc")[0])
    labels = {row.label for row in rows_of(read(Path("outputs")))}
    assert labels == {"ewc", f"mine source={one['source']}", f"mine source={other['source']}"}


NETS = """
from clrun.models import MLP
from clrun.optimizers import SGD

class Tiny(MLP):
    pass

class Slow(SGD):
    pass
"""
TINY = """
name: tiny
about: a network of mine
_target_: nets_of_the_user.Tiny
knobs:
  widths: {default: [5], type: ints, min: 1, about: units a layer}
"""
SLOW = """
name: slow
about: an optimiser of mine
_target_: nets_of_the_user.Slow
lr: 0.01
knobs:
  reset: {default: false, type: bool, about: a fresh state for every task}
  momentum: {default: 0.0, type: float, min: 0, below: 1, about: of the gradient}
  nesterov: {default: false, type: bool, about: look ahead}
  weight_decay: {default: 0.0, type: float, min: 0, about: pull to zero}
"""


def test_a_network_and_an_optimizer_of_the_users(clrun):
    for group, name, text in (("model", "tiny", TINY), ("optimizer", "slow", SLOW)):
        Path("my", group).mkdir(parents=True)
        Path("my", group, f"{name}.yaml").write_text(text)
    Path("nets_of_the_user.py").write_text(NETS)
    mine = ("-cd", "my", "strategy=finetune", "model=tiny", "optimizer=slow", "iterations=2")
    code, _, err = clrun(*mine, "keep_checkpoint=true")
    assert code == 0, err
    (path,) = runs("finetune")
    summary = read_summary(path).iloc[0]
    assert summary["model.source"] == summary["optimizer.source"] and len(summary["model.source"]) == 8
    again = prepare.prepare(predict.settings_of(path.parent, Path("my"), None))
    assert again.directory == path.parent, "clrun-predict finds it"
    Path("nets_of_the_user.py").write_text(NETS + "# edited\n")
    with pytest.raises(UsageError, match="was edited after the command had begun"):
        prepare.prepare(again.settings)
    sys.modules.pop("nets_of_the_user")


@pytest.mark.parametrize(
    "line, said",
    [
        ("strategy=mine myknob=-1", "myknob=-1: must be a finite number, at least 0; e.g. myknob=1"),
        ("strategy=mine gamma=9.5", "at most 9"),
        ("strategy=ewc gamma=9", "at most 1"),
        ("strategy=ewc myknob=1", "strategy=ewc takes no myknob (mine does)"),
        ("strategy=finetune gamma=1", ", mine do)"),
        ("strategy=mime", "did you mean mine?"),
    ],
)
def test_a_users_strategy_is_checked_like_ours(clrun, my_folder, line, said):
    before = written()
    code, _, err = clrun("--config-dir", "my", *line.split())
    assert code == 2 and said in err and written() == before


def test_a_broken_yaml_of_the_users_is_one_paragraph(clrun, my_folder):
    Path("my/strategy/mine.yaml").write_text("name: [")
    for arguments in (["strategy=ewc"], ["--help"]):
        code, _, err = clrun("--config-dir", "my", *arguments)
        assert code == 2 and "mine.yaml is not valid YAML" in err and err.count("\n") == 1


def test_a_users_experiment(clrun, my_folder):
    Path("my/experiment").mkdir()
    text = "# @package _global_\n# A short one.\ndefaults:\n  - override /strategy: mine\nmyknob: 2\nepochs: 1\n"
    Path("my/experiment/short.yaml").write_text(text)
    assert clrun("-cd", "my", "+experiment=short", "model.widths=[8]")[0] == 0
    assert clrun("-cd", "my", "+experiment=short", *SHORT)[0] == 0
    assert sorted(read_summary(path)["iterations"].fillna(0).item() for path in runs("mine")) == [0, 2]
    assert "A short one" in clrun("-cd", "my", "--help", "experiment")[1]
    assert "+experiment=short" in clrun("-cd", "my", "experiment=short")[2]


# ---------------------------------------------------------------- help and completion


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


def test_flags_may_stand_anywhere(clrun):
    assert clrun("seed=0,1", "-m", *SHORT)[0] == 0
    assert len(runs()) == 2


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


# ---------------------------------------------------------------- without training


@pytest.mark.parametrize("sweep", [(), ("-m",)])
def test_pictures_are_left_out_and_drawn_later_without_training(clrun, sweep):
    assert clrun(*sweep, "plots=false", *SHORT)[0] == 0
    (summary,) = Path("outputs").rglob("summary.csv")
    written = summary.stat().st_mtime_ns
    assert not list(Path("outputs").rglob("*.png"))
    assert clrun(*sweep, *SHORT)[0] == 0
    drawn = sorted(path.name for path in summary.parent.glob("*.png"))
    assert drawn == ["accuracy_matrix.png", "accuracy_over_tasks.png", "confusion.png"]
    assert summary.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (("dataset=cifar10",), "1 run has"),
        (("-m", "dataset=cifar10,mnist", "seed=1,1,2"), "4 runs, of 6 jobs, have"),
    ],
)
def test_check_loads_no_data_and_writes_nothing(clrun, tmp_path, typed, said):
    code, out, _ = clrun("--check", f"data_dir={tmp_path}", *typed)
    assert code == 0 and f"Checked: {said} legal settings." in out
    assert not Path("outputs").exists()


@pytest.mark.parametrize(
    "typed",
    [
        ("lambda=-1",),
        ("-m", "lambda=1,-1"),
        ("--cfg", "job"),
        ("strategy=joint", "epochs=[1,2,3,4,5]"),
        ("-m", "stream=online", "scenario=class", "strategy=finetune,gdumb"),
    ],
)
def test_check_refuses(clrun, typed):
    code, _, err = clrun("--check", *typed)
    assert code == 2 and err.startswith("clrun: ")
