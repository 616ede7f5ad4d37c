"""README.md, CONTRIBUTING.md and docs/: every command is accepted as written, links lead somewhere, examples run."""

import re
import shlex
import shutil
import sys
from itertools import product
from pathlib import Path

import pytest
from conftest import STRATEGIES
from helpers import summaries
from PIL import Image

from clrun.commands import check, export, predict, report, run, verify, watch
from clrun.config.catalog import HEADINGS, read
from clrun.report.runs import MEASURES
from clrun.system.paths import CONF

ROOT = CONF.parent
README = ROOT / "README.md"
GUIDES = ROOT / "docs" / "guides"
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [page for page in (README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *DOCS) if page.is_file()]
EXAMPLES = {
    "decay": "strategy",
    "rehearse": "strategy",
    "strided": "network",
    "waves": "data",
}  # of the pages your-own-*.md: the blocks after the names of these files
needs_checkout = pytest.mark.skipif(not README.is_file(), reason="README.md lies in a checkout alone")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.S)


def block_of(page: Path, file: str) -> str:
    """The first block after the name of a file."""
    text = page.read_text(encoding="utf-8")
    found = re.search(r"```(?:python|yaml)\n(.*?)```", text[text.index(f"{file}`") :], re.S)
    assert found is not None
    return found[1]


def named(page: Path) -> str:
    """Its path in the checkout."""
    return page.relative_to(ROOT).as_posix()


def commands(name: str) -> list[tuple[str, str]]:
    """(page, command) of every line that types this command."""
    lines = [(named(page), line) for page in PAGES for block in blocks(page, "bash") for line in block.splitlines()]
    return [(page, line) for page, line in lines if f"{line} ".startswith(f"{name} ")]


def first_pages(name: str) -> dict[str, str]:
    """{command: the first page that types it}"""
    return {command: page for page, command in reversed(commands(name))}


def with_few_seeds(command: str) -> str:
    """The command with two seeds in place of five or twenty: they change nothing in whether it is accepted."""
    return re.sub(
        r"seed=range\((?:(\d+),)?(\d+)\)",
        lambda found: f"seed=range({(first := int(found[1] or 0))},{min(int(found[2]), first + 2)})",
        command,
    )


def words(command: str) -> list[str]:
    """The arguments of a command, as the shell splits them."""
    return shlex.split(command, comments=True)[1:]


@pytest.fixture
def workshop(tmp_path, monkeypatch):
    """A folder with what the pages expect of the user: PICTURES, ANIMALS in two domains, FIVE and TEN classes, and
    the examples in my/."""
    for part in ("train", "test"):
        for name in ("cat", "dog", "deer"):
            (tmp_path / "PICTURES" / part / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / "PICTURES" / part / name / "0.png")
    for domain in ("photo", "sketch"):
        shutil.copytree(tmp_path / "PICTURES", tmp_path / "ANIMALS" / domain)
    for folder in ("FIRST_RUN", *(f"image_folder-split.classes=_a_-seed={seed}-0" for seed in range(5))):
        (tmp_path / "outputs/runs/er" / folder).mkdir(parents=True)  # of runs that others go on from
        (tmp_path / "outputs/runs/er" / folder / "network.safetensors").touch()
    shutil.copytree(tmp_path / "PICTURES", tmp_path / "FIVE")
    for part, name in product(("train", "test"), ("bird", "ship")):
        shutil.copytree(tmp_path / "PICTURES" / part / "cat", tmp_path / "FIVE" / part / name)
    for part, number in product(("train", "test"), range(10)):
        shutil.copytree(tmp_path / "PICTURES" / part / "cat", tmp_path / "TEN" / part / f"class {number}")
    for name, group in EXAMPLES.items():
        page = GUIDES / f"your-own-{group}.md"
        folder = tmp_path / "my" / {"network": "model", "data": "dataset"}.get(group, group)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.yaml").write_text(block_of(page, f"{name}.yaml"))
        (tmp_path / f"{name}.py").write_text(block_of(page, f"{name}.py"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CLRUN_DATA_DIR", raising=False)
    yield tmp_path
    for name in EXAMPLES:
        sys.modules.pop(name, None)


def answer(monkeypatch, command: str) -> int:
    monkeypatch.setattr(sys, "argv", shlex.split(command, comments=True))
    with pytest.raises(SystemExit) as end:
        run.cli()
    return end.value.code


def cases() -> list:
    """Return the page and the text of every command; those that sweep over dozens of strategies take ten seconds."""
    marks = lambda command: pytest.mark.slow if command.count(",") > 20 else ()  # noqa: E731
    return [pytest.param(page, command, marks=marks(command)) for command, page in first_pages("clrun").items()]


@needs_checkout
@pytest.mark.parametrize(("page", "command"), cases())
def test_every_command_is_accepted(workshop, monkeypatch, capfd, page, command):
    asked, command = words(command), with_few_seeds(command)
    only_shows = {"--help", "--cite", "--version", "--cfg", "-sc", "--hydra-help"} & set(asked)
    assert answer(monkeypatch, command if only_shows else f"{command.partition(' #')[0]} --check") in (0, None)
    assert only_shows or "Checked: " in capfd.readouterr().out


@needs_checkout
@pytest.mark.parametrize(("page", "command"), commands("clrun-report"))
def test_every_report_is_accepted(page, command):
    asked = report.parser().parse_args(words(command))
    assert asked.measure in MEASURES
    assert asked.sort is None or asked.sort in {*MEASURES, *read().all_keys()}


@needs_checkout
@pytest.mark.parametrize(("page", "command"), commands("clrun-verify"))
def test_every_verification_is_accepted(page, command):
    """Every row that is named is in the table, and `refuse` raises no UsageError."""
    arguments = verify.parser().parse_args(words(command))
    assert arguments.list or set(arguments.rows) <= {*verify.rows()}
    if not arguments.list:
        verify.refuse(arguments, verify.rows())


@needs_checkout
@pytest.mark.parametrize(("page", "command"), commands("clrun-predict"))
def test_every_prediction_is_accepted(page, command):
    asked = predict.parser().parse_args(words(command))
    assert asked.run.as_posix().startswith("outputs/runs/")


@needs_checkout
@pytest.mark.parametrize(("page", "command"), commands("clrun-watch"))
def test_every_look_is_accepted(page, command):
    assert watch.parser().parse_args(words(command)).folder == Path("outputs")


@needs_checkout
@pytest.mark.parametrize(("page", "command"), commands("clrun-export"))
def test_every_export_is_accepted(page, command):
    asked = export.parser().parse_args(words(command))
    assert asked.run.as_posix().startswith("outputs/runs/")


@needs_checkout
def test_every_command_is_shown():
    """So none of the tests above is empty; searches are tested in tests/tune."""
    others = ("report", "tune", "verify", "predict", "export", "check", "watch")
    for name in ("clrun", *(f"clrun-{other}" for other in others)):
        assert commands(name)


@needs_checkout
@pytest.mark.parametrize("name", [name for name, group in EXAMPLES.items() if group == "strategy"])
def test_the_example_strategies_keep_their_promises(workshop, capfd, name):
    typed = (f"strategy={name}", "scenario=class", "tasks=2", "iterations=5", "batch_size=16")
    check.command(["--config-dir", "my", *typed])
    words = [line.split()[1] for line in capfd.readouterr().out.splitlines()]
    none = 1 if name == "rehearse" else 0  # it states no neutral values
    assert sorted(words) == ["none"] * none + ["ok"] * (8 - none)


@needs_checkout
@pytest.mark.parametrize(("page", "command"), commands("clrun-check"))
def test_every_check_is_accepted(page, command):
    assert any(text.startswith("strategy=") for text in check.parser().parse_args(words(command)).overrides)


@needs_checkout
def test_the_example_module_runs(workshop, monkeypatch):
    page = GUIDES / "your-own-module.md"
    (workshop / "mynets.py").write_text(blocks(page, "python")[0])
    first = blocks(page, "bash")[0].splitlines()[0].partition(" #")[0]
    assert answer(monkeypatch, f"{first} iterations=3") == 0
    assert len(summaries("ewc", outputs=workshop / "outputs")) == 1
    sys.modules.pop("mynets", None)


@needs_checkout
def test_the_example_strategy_runs(workshop, monkeypatch):
    assert answer(monkeypatch, "clrun --config-dir my strategy=decay lambda=0.1 iterations=3") == 0
    assert len(summaries("decay", outputs=workshop / "outputs")) == 1


@needs_checkout
def test_the_example_data_set_runs(workshop, monkeypatch):
    assert answer(monkeypatch, "clrun --config-dir my dataset=waves dataset.count=40 tasks=2 iterations=3") == 0
    assert len(list(workshop.glob("outputs/runs/ewc/waves-*/summary.csv"))) == 1


@needs_checkout
def test_the_example_of_two_data_sets_of_pytorch_runs(workshop, monkeypatch):
    page = GUIDES / "your-own-data.md"
    (workshop / "photos.py").write_text(block_of(page, "photos.py"))
    (command,) = [line for _, line in commands("clrun") if "photos.load" in line]
    assert answer(monkeypatch, f"{command} iterations=3") == 0
    assert len(list(workshop.glob("outputs/runs/ewc/torch-*/summary.csv"))) == 1
    sys.modules.pop("photos", None)


@needs_checkout
@pytest.mark.parametrize("strategy", ["finetune", "ewc", "hat"])
def test_the_example_network_runs(workshop, monkeypatch, strategy):
    command = f"clrun --config-dir my model=strided model.width=2 strategy={strategy} iterations=3"
    assert answer(monkeypatch, command) == 0
    assert len(summaries(strategy, outputs=workshop / "outputs")) == 1


@needs_checkout
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_has_its_row(strategy):
    """In the table of the guide, as its yaml describes it, with all of its knobs; and its name in the README."""
    option = read().options["strategy"][strategy]
    start = re.escape(f"| `{strategy}` | {option.about} |")
    guide = (GUIDES / "choosing-a-strategy.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^{start}.*$", guide, re.M)
    for knob in option.knobs:
        assert f"`{knob}`" in row
    assert f"`{strategy}`" in README.read_text(encoding="utf-8")


@needs_checkout
def test_every_policy_of_a_memory_names_the_strategies_that_take_it():
    guide = (GUIDES / "choosing-a-strategy.md").read_text(encoding="utf-8")
    table = guide.partition("| `memory_policy` |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \| [^|]* \| ([^|]*) \|$", table, re.M)
    written = {policy: set(re.findall(r"`(\w+)`", cell)) for policy, cell in rows}
    taken: dict[str, set[str]] = {}
    for strategy, option in read().options["strategy"].items():
        for policy in option.knobs["memory_policy"].choices if "memory_policy" in option.knobs else ():
            taken.setdefault(policy, set()).add(strategy)
    assert written == taken


@needs_checkout
def test_the_table_of_the_readme_has_the_strategies_in_the_groups_of_the_help():
    text = README.read_text(encoding="utf-8").partition("## All strategies on Split MNIST")[2].partition("\n## ")[0]
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")][2:]
    columns = [row[4 * block].strip() for block in range(3) for row in rows]
    groups: list[set[str]] = []
    for cell in filter(None, columns):
        if cell.startswith("**"):
            groups.append(set())
        else:
            groups[-1].add(cell.strip("`"))
    ours = [{name for name, option in read().options["strategy"].items() if option.kind == kind} for kind in HEADINGS]
    assert groups == ours


@needs_checkout
def test_the_table_of_the_readme_is_that_of_the_results():
    """Its accuracies are those of the page, whose table says more."""
    readme = README.read_text(encoding="utf-8").partition("## All strategies on Split MNIST")[2]
    page = (ROOT / "docs" / "results" / "strategies-compared.md").read_text(encoding="utf-8")
    page = page.partition("## Split MNIST, all strategies")[2].partition("\n## ")[0]
    for strategy in STRATEGIES:
        (here,) = re.findall(rf"\| `{strategy}` \| ([^|]*) \| ([^|]*) \|", readme)
        (there,) = re.findall(rf"^\| `{strategy}` \| ([^|]*) \| [^|]* \| ([^|]*) \|", page, re.M)
        assert here == there, strategy


def anchors(page: Path) -> set[str]:
    """What a link to a heading of the page may name."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}


@needs_checkout
@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", page.read_text(encoding="utf-8")):
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), f"{target}#{anchor}"


@needs_checkout
@pytest.mark.parametrize("page", PAGES, ids=named)
def test_no_page_holds_the_marks_of_a_conflict(page):
    assert not re.search(r"^(<{7}|={7}|>{7})( |$)", page.read_text(encoding="utf-8"), re.M)


@needs_checkout
def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for page in DOCS:
        if page.name != "index.md":
            assert f"({page.relative_to(ROOT / 'docs').as_posix()})" in index


@needs_checkout
def test_the_glossary_explains_its_own_terms():
    """One sentence per term, in alphabetical order; a term in italics is a row of its own."""
    text = (ROOT / "docs" / "concepts" / "glossary.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([^|]+) \| ([^|]+\.) \|$", text, re.M))
    assert len(rows) > 40
    assert list(rows) == sorted(rows, key=str.lower)
    for term, meaning in rows.items():
        assert ". " not in meaning, f"{term}: more than one sentence"
        for word in re.findall(r"\*([^*]+)\*", meaning):
            assert {word, word.removesuffix("s")} & {row.lower() for row in rows} | {word} & {*rows}, f"{term}: {word}"


@needs_checkout
def test_the_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) < 130
