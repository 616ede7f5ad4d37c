"""The order of clrun's packages: imports run downward only, and no module imports itself on any way around."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import clrun

PACKAGE = Path(clrun.__file__).parent

# A package may import those of the levels below its own, and nothing else of clrun.
LEVELS = (
    ("system", "optimizers"),
    ("data", "models", "results"),
    ("strategy", "config", "terminal"),
    ("engine", "strategies", "report"),
    ("runs",),
    ("sweep",),
    ("tune",),
    ("commands",),
)
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}

# Entry points and the former paths of moved modules: they only hand on, so they may import anything.
DOORS = ("__main__", "report.__main__", "cli", "errors", "fisher", "memory", "stream")


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
    if package not in ("strategy", "models", "config"):  # the faces; and the late import of config.compose
        assert len(tree.body) == 1
