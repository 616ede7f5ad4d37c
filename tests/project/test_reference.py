"""docs/reference: every part of its pages is generated, and what the generators state by hand is true."""

import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import STRATEGIES

from clrun.config.catalog import read
from clrun.results.columns import FILES
from clrun.system.paths import CONF

ROOT = CONF.parent
if not (ROOT / "scripts" / "mkdocs_hook.py").is_file():
    pytest.skip("an installed package has no scripts/", allow_module_level=True)

PAGES = sorted((ROOT / "docs" / "reference").glob("*.md"))


@pytest.fixture
def generated(monkeypatch) -> dict[str, str]:
    """The pages by name, as they are on the site."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from mkdocs_hook import filled

    return {page.stem: filled(page.read_text(encoding="utf-8")) for page in PAGES}


@pytest.fixture
def health(monkeypatch):
    """What the documentation states about health.csv."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from reference import health

    return health


def section(page: str, title: str) -> str:
    """The text below a heading of the second level, up to the next."""
    (text,) = re.findall(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", page, re.M | re.S)
    return text


def test_every_mark_is_filled(generated):
    for name, text in generated.items():
        assert "<!-- generate" not in text, name


def test_every_key_is_listed(generated):
    catalog = read()
    for key, spec in catalog.root.items():
        assert f"| `{key}` |" in generated["keys"], key
        assert spec.about.split()[0] in generated["keys"]
    for group in ("dataset", "split", "features", "model", "optimizer", "cluster"):
        for name in catalog.options[group]:
            assert f"`{group}={name}`" in generated["keys"]
            for key in catalog.knobs(group, name):
                assert f"| `{key}` |" in generated["keys"], key
    for name in catalog.experiments:
        assert f"`+experiment={name}`" in generated["keys"]


def test_every_command_has_a_section(generated):
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    scripts = re.findall(r'^(clrun\S*) = "clrun\.commands', text, re.M)
    assert len(scripts) == 8
    for script in scripts:
        assert "| argument | meaning |" in section(generated["command-line"], script)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_has_a_section(generated, strategy):
    option, text = read().options["strategy"][strategy], section(generated["strategies"], strategy)
    for knob in option.knobs:
        assert f"| `{knob}` |" in text
    for scenario in option.warns:
        assert f"`scenario={scenario}`" in text
    assert ("task_id_at_test=true" in text) == option.needs_task_id
    assert (ROOT / f"{option.target.rpartition('.')[0].replace('.', '/')}.py").is_file()


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if read().options["strategy"][name].knobs])
def test_every_method_shows_its_paper_and_its_equation(generated, strategy):
    text = section(generated["strategies"], strategy)
    assert re.search(r"\b(19|20)\d\d\b", text)
    assert "```text\n" in text


def test_every_file_has_a_section(generated):
    for file, columns in FILES.items():
        text = section(generated["files"], file)
        for column in columns:
            assert f"| `{column}` |" in text, f"{file}: {column}"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_columns_of_health_are_those_that_a_run_writes(empty_folder, clrun, health, strategy):
    code, _, err = clrun(f"strategy={strategy}", "tasks=2", "iterations=2", "plots=false", "device=cpu")
    assert code == 0, err
    (path,) = Path.cwd().glob("outputs/runs/*/*/health.csv")
    written = list(pd.read_csv(path).columns)
    added = [column for column in written if column not in FILES["health.csv"]]
    assert sorted(added) == sorted(health.COLUMNS[strategy])


def test_every_column_of_health_has_a_meaning(health):
    assert {column for columns in health.COLUMNS.values() for column in columns} == set(health.MEANINGS)


def test_the_pages_need_no_torch():
    code = "import sys; sys.path.insert(0, 'scripts'); import mkdocs_hook as h; [g() for g in h.generators().values()]"
    code += "; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_api_page_shows_the_comments_of_fields():
    griffe = pytest.importorskip("griffe", reason="of the extra docs")
    extension = str(ROOT / "scripts" / "reference" / "field_comments.py")
    code = griffe.load("clrun", search_paths=[ROOT], extensions=griffe.load_extensions(extension))
    assert code["strategy.Batch"].members["x"].docstring.value.startswith("(B, C, H, W)")
    assert code["engine.state.TrainState.theta"].docstring.value == "(P,)"
