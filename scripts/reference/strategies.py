"""The sections of docs/reference/strategies.md, from the YAML file, the module and the class of each strategy.

The modules are read as text, not imported, so that no page needs torch.
"""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

from clrun.config.catalog import Catalog, StrategyOption
from clrun.system.paths import PACKAGE
from clrun.system.text import format_value
from reference import health
from reference.keys import key_table
from reference.markdown import code, from_docstring, plain, table

# in the order of the guide: what is compared with first, then the families of methods
ORDER = (
    *("finetune", "joint", "cumulative", "scratch", "separate"),
    *("er", "mir", "er_ace", "der", "derpp", "fdr", "agem", "gem", "gdumb", "icarl", "wa", "bic", "dgr"),
    *("ewc", "si", "mas", "imm", "lwf", "amn", "packnet", "hat"),
    *("ncm", "slda", "fecam", "ranpac"),  # heads in closed form, without gradients
    *("l2_init", "shrink_perturb", "upgd", "cbp"),  # against the loss of plasticity
    *("rwalk",),  # penalties on the weights, merging of weights
    *("xdg",),  # parts of the network per task
    *("gpm",),  # projection of steps
    *("generative_classifier",),  # a generative model for each class
)


def sections(catalog: Catalog) -> str:
    """Return one section per strategy. A strategy that ORDER does not name comes last."""
    options = catalog.options["strategy"]
    names = [*(name for name in ORDER if name in options), *(name for name in options if name not in ORDER)]
    return "\n\n".join(section(catalog, name) for name in names)


def section(catalog: Catalog, name: str) -> str:
    """Return the section of one strategy."""
    option, keys = catalog.options["strategy"][name], catalog.knobs("strategy", name)
    assert isinstance(option, StrategyOption)
    settings = key_table(keys) if keys else "This strategy has no keys of its own."
    parts = [f"## {name}", f"{capitalized(plain(option.about))}.", *texts(option.target), *remarks(option)]
    return "\n\n".join([*parts, "**Keys**", settings, *health_part(name), f"The code is in `{source(option.target)}`."])


def capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]


def source(target: str) -> str:
    """Return the file of the class that a YAML file names as `_target_`, as a path in the checkout."""
    return f"{target.rpartition('.')[0].replace('.', '/')}.py"


def texts(target: str) -> Iterator[str]:
    """Yield the docstring of the module of a strategy, and what its class says about its state."""
    tree = ast.parse((PACKAGE.parent / Path(source(target))).read_text(encoding="utf-8"))
    yield from_docstring(ast.get_docstring(tree) or "")
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    summary, _, rest = (ast.get_docstring(classes[target.rpartition(".")[2]]) or "").partition("\n\n")
    if rest or summary:
        yield from_docstring(rest or summary)  # a first line that more follows repeats the name of the method


def remarks(option: StrategyOption) -> Iterator[str]:
    """Yield what a user must know before choosing a strategy: task numbers, scenarios, and when it does nothing."""
    if option.needs_task_id:
        yield (
            "This strategy needs the task number at test time. It is refused in other scenarios than `task`, unless "
            "`task_id_at_test=true` is typed."
        )
    for scenario, reason in option.refuses.items():
        yield f"clrun refuses it with `scenario={scenario}`: {plain(reason)}."
    for scenario, warning in option.warns.items():
        yield f"clrun warns in `scenario={scenario}`: {plain(warning)}."
    if option.neutral:
        yield f"With {neutral(option.neutral)} it equals `finetune`."


def neutral(knobs: Mapping[str, float]) -> str:
    """Return the values at which a strategy equals plain training."""
    return " and ".join(code(f"{knob}={format_value(value)}") for knob, value in knobs.items())


def health_part(name: str) -> Iterator[str]:
    """Yield the columns that a strategy adds to health.csv."""
    columns = health.COLUMNS.get(name, ())
    if columns:
        yield "**Columns of `health.csv`**"
        yield table(("column", "meaning"), [(code(column), health.MEANINGS[column]) for column in columns])
