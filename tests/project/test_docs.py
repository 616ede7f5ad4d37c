"""What README.md and docs/ show: every command is accepted as written, every strategy named, the example runs."""

import re
import shlex
import sys
from pathlib import Path

import pytest
from conftest import STRATEGIES
from PIL import Image

from clrun.commands import run
from clrun.config.catalog import read
from clrun.runs import prepare
from clrun.system.paths import CONF

ROOT = CONF.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
needs_checkout = pytest.mark.skipif(not PAGES[0].is_file(), reason="README.md lies in a checkout alone")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.S)


def commands() -> list[tuple[str, str]]:
    """(page, command) of every line that starts with clrun."""
    lines = [(page.name, line) for page in PAGES for block in blocks(page, "bash") for line in block.splitlines()]
    return [(page, line) for page, line in lines if line.startswith("clrun ")]


class ReachedTheData(Exception):
    """The command was composed and checked; what comes next is loading."""


@pytest.fixture
def workshop(tmp_path, monkeypatch):
    """A folder with the user's things that the pages speak of: PICTURES, and the strategy in my/."""
    for part in ("train", "test"):
        for name in ("cat", "dog", "deer"):
            (tmp_path / "PICTURES" / part / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / "PICTURES" / part / name / "0.png")
    (tmp_path / "my" / "strategy").mkdir(parents=True)
    page = ROOT / "docs" / "own_strategy.md"
    (tmp_path / "my" / "strategy" / "decay.yaml").write_text(blocks(page, "yaml")[0])
    (tmp_path / "decay.py").write_text(blocks(page, "python")[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CLRUN_DATA_DIR", raising=False)
    yield tmp_path
    sys.modules.pop("decay", None)


def answer(monkeypatch, command: str) -> int:
    monkeypatch.setattr(sys, "argv", shlex.split(command, comments=True))
    with pytest.raises(SystemExit) as end:
        run.cli()
    return end.value.code


@needs_checkout
@pytest.mark.parametrize(("page", "command"), commands())
def test_every_command_is_accepted(workshop, monkeypatch, capfd, page, command):
    def reached(settings):
        raise ReachedTheData

    monkeypatch.setattr(prepare, "prepare", reached)
    assert answer(monkeypatch, command) == 1
    assert "ReachedTheData" in capfd.readouterr().err


@needs_checkout
def test_the_example_strategy_runs(workshop, monkeypatch):
    assert answer(monkeypatch, "clrun --config-dir my strategy=decay lambda=0.1 iterations=3") == 0
    assert len(list(workshop.glob("outputs/runs/decay/*/summary.csv"))) == 1


@needs_checkout
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_has_its_row(strategy):
    """In the README's table, as its yaml describes it, with all of its knobs."""
    option = read().options["strategy"][strategy]
    start = re.escape(f"| `{strategy}` | {option.about} |")
    (row,) = re.findall(rf"^{start}.*$", PAGES[0].read_text(encoding="utf-8"), re.M)
    for knob in option.knobs:
        assert f"`{knob}`" in row


@needs_checkout
def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
