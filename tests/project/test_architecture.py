"""The order of clrun's packages: imports run downward only and in no loop. What pages for developers name exists."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import clrun
from clrun.config import catalog

PACKAGE = Path(clrun.__file__).parent

# A package may import those of the levels below its own, and nothing else of clrun.
LEVELS = (
    ("system", "optimizers"),
    ("data", "models", "results"),
    ("strategy", "config", "terminal", "loggers"),
    ("engine", "strategies", "report"),
    ("runs",),
    ("sweep",),
    ("tune",),
    ("commands",),
    ("api",),
)
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}

# Entry points and the former paths of moved modules: they only hand on, so they may import anything.
DOORS = (
    "__main__", "report.__main__", "tune.__main__",
    "cli", "errors", "fisher", "memory", "predict", "stream", "verify",
)  # fmt: skip


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in PACKAGE.rglob("*.py")}


def imports(name: str) -> Iterator[str]:
    """The modules of clrun that a module imports anywhere in its file, in functions and for type checkers too."""
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "clrun":
            source = (node.module or "").partition(".")[2]
            for alias in node.names:
                target = f"{source}.{alias.name}".strip(".")
                yield target if target in MODULES else source


@pytest.mark.parametrize("name", [name for name in MODULES if name and name not in DOORS])
def test_imports_run_downward(name):
    package = name.partition(".")[0]
    assert package in LEVEL, f"{package} has no level: name it in LEVELS"
    for target in filter(None, imports(name)):
        other = target.partition(".")[0]
        assert other == package or LEVEL.get(other, len(LEVELS)) < LEVEL[package], f"{name} imports {target}"


def test_no_module_imports_itself_on_any_way_around():
    left = {name: {target for target in imports(name) if target} for name in MODULES}
    while free := {name for name, targets in left.items() if not targets & left.keys() - {name}}:
        left = {name: targets for name, targets in left.items() if name not in free}
    assert not left, f"a loop of imports among {', '.join(sorted(left))}"


@pytest.mark.parametrize("package", sorted({name.partition(".")[0] for name in MODULES if "." in name}))
def test_a_package_states_its_purpose(package):
    """In the docstring of its __init__, which holds nothing else but for the public faces."""
    tree = ast.parse((PACKAGE / package / "__init__.py").read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    if package not in ("strategy", "models", "data", "config"):  # the faces; and the late import of config.compose
        assert len(tree.body) == 1


# ---------------------------------------------------------------- what the pages for developers name

ROOT = PACKAGE.parent
PAGE = ROOT / "docs" / "development" / "architecture.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
needs_page = pytest.mark.skipif(not PAGE.is_file(), reason="docs/ lies in a checkout alone")
TEXT = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
ROWS = re.findall(r"^\| [^|]*\| `(clrun/[^`|]*\.py)` \| ([^|]*) \|$", TEXT, re.M)  # file, names
FOLDERS = r"(?:clrun|conf|docs|scripts|tests|\.ci)"

# CONTRIBUTING.md: the files of its example of a new strategy, which are not there, and words that are no names
EXAMPLE_FILES = {"clrun/strategies/freeze.py", "conf/strategy/freeze.yaml", "tests/strategies/test_freeze.py"}
OTHER_WORDS = {"freeze", "null", "run", "spec", "accuracy", "clrun", "mypy", "DeprecationWarning"}


def defined_in(tree: ast.AST) -> set[str]:
    """What a module defines: functions, classes, their methods as Class.method, and constants."""
    names = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names |= {node.name} | {f"{node.name}.{inner}" for inner in defined_in(node)}
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def defined_names() -> set[str]:
    """Every name that a module of clrun or tests/conftest.py defines, methods and fields without their class; and
    every key."""
    files = [*MODULES.values(), ROOT / "tests" / "conftest.py"]
    names = set().union(*(defined_in(ast.parse(path.read_text(encoding="utf-8"))) for path in files))
    return {name.rpartition(".")[2] for name in names} | set(catalog.read().all_keys())


def without_code(page: Path) -> str:
    """The prose of a page: its text without blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


@needs_page
@pytest.mark.parametrize(("file", "names"), sorted(set(ROWS)))
def test_what_the_page_names_is_there(file, names):
    known = defined_in(ast.parse((ROOT / file).read_text(encoding="utf-8")))
    named = re.findall(r"`([^`]*)`", names)
    assert named
    for name in named:
        assert name in known, f"{file} defines no {name}"


@needs_page
def test_the_page_shows_the_levels():
    shown = re.findall(r"^\| (\d) \| `(\w+)` \|", TEXT, re.M)
    assert {(int(level), package) for level, package in shown} == {(LEVEL[name] + 1, name) for name in LEVEL}
    assert len(ROWS) > 40


@needs_page
def test_the_page_counts_the_packages_and_names_the_former_paths():
    packages = [path for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()]
    assert len(packages) == 16
    assert "sixteen packages and the module `optimizers.py`" in " ".join(TEXT.split())
    for path in PACKAGE.glob("*.py"):
        assert path.name == "__init__.py" or f"`{path.name}`" in TEXT


@needs_page
@pytest.mark.parametrize("page", [PAGE, CONTRIBUTING], ids=["architecture", "contributing"])
def test_all_files_that_a_page_names_are_there(page):
    text = page.read_text(encoding="utf-8")
    typed = re.findall(rf"^[^#\n]*?\s({FOLDERS}/[\w/.-]+)", text, re.M)  # in commands
    named = {*re.findall(rf"`({FOLDERS}/[\w/.-]*)(?:`|::)", text), *typed}
    assert len(named) > 5
    for path in named - EXAMPLE_FILES:
        assert (ROOT / path).exists(), path


@needs_page
def test_all_names_in_contributing_are_defined():
    """In backticks: a name, or a name with (...) behind it or with a value, as in `later: true`."""
    named = set(re.findall(r"`([A-Za-z_]\w*)(?:\(\.\.\.\)|: \w+)?`", without_code(CONTRIBUTING)))
    assert {"UsageError", "FORMAT", "stack_of", "incompatibility", "later", "neutral"} <= named
    assert named - defined_names() - OTHER_WORDS == set()
