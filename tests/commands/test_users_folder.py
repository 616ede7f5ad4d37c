"""A folder of the user's own (--config-dir): strategies, networks, optimizers and experiments in it."""

import sys
from pathlib import Path

import pytest
from helpers import summaries

from clrun.commands import predict
from clrun.report.rows import rows_of
from clrun.report.runs import read
from clrun.results.run_files import read_summary
from clrun.runs import prepare
from clrun.system.errors import UsageError

SHORT = ("iterations=2", "model.widths=[8]", "device=cpu", "workers=1")  # a sweep trains in this process


pytestmark = pytest.mark.usefixtures("empty_folder")


def test_a_users_strategy_works_fixed_and_swept(clrun, my_folder):
    assert clrun("--config-dir", "my", "strategy=mine", "myknob=3", *SHORT)[0] == 0
    (summary,) = summaries("mine")
    assert read_summary(summary)[["myknob", "gamma"]].values.tolist() == [[3.0, 7.0]]
    code, out, _ = clrun("-cd", "my", "-m", "strategy=ewc,mine", "myknob=5", *SHORT)
    assert code == 0 and "myknob (strategy=ewc)" in out
    assert clrun("-m", "strategy=ewc,mine", "myknob=5,6", "--config-dir=my", *SHORT)[0] == 0
    assert len(summaries("ewc")) == 1 and len(summaries("mine")) == 3


def test_an_edited_strategy_is_another_run_on_the_same_stream(clrun, my_folder):
    mine = Path("mine_of_the_user.py").read_text()
    for text, count in ((mine, 1), (mine, 1), (mine + "    # edited\n", 2)):
        Path("mine_of_the_user.py").write_text(text)
        assert clrun("-cd", "my", "strategy=mine", *SHORT)[0] == 0 and len(summaries("mine")) == count
    one, other = (read_summary(path).iloc[0] for path in summaries("mine"))
    assert one["source"] != other["source"] and one["stream"] == other["stream"]
    assert clrun("-cd", "my", "-m", "strategy=mine,ewc", *SHORT)[0] == 0 and len(summaries("mine")) == 2
    assert "source" not in read_summary(summaries("ewc")[0])
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
    (path,) = summaries("finetune")
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
    before = set(Path().rglob("*"))
    code, _, err = clrun("--config-dir", "my", *line.split())
    assert code == 2 and said in err and set(Path().rglob("*")) == before


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
    assert sorted(read_summary(path)["iterations"].fillna(0).item() for path in summaries("mine")) == [0, 2]
    assert "A short one" in clrun("-cd", "my", "--help", "experiment")[1]
    assert "+experiment=short" in clrun("-cd", "my", "experiment=short")[2]
