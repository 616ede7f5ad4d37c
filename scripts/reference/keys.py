"""The tables of docs/reference/keys.md, from what the YAML files in conf/ state."""

from collections.abc import Mapping
from pathlib import Path

from clrun.config import help
from clrun.config.catalog import CLUSTER, GROUPS, Catalog, KeySpec, Option
from clrun.system.text import format_value
from clrun.tune.question import SEARCH_KEYS
from reference.markdown import code, plain, table

HEADER = ("key", "default", "value", "meaning", "in the identity")

# what each group selects
GROUP_TITLES = {
    "dataset": "The data set",
    "split": "How the data become tasks",
    "features": "Features of a frozen network",
    "model": "The network",
    "optimizer": "The optimizer",
    "strategy": "The strategy",
    CLUSTER: "The cluster",
}


def run_keys(catalog: Catalog) -> str:
    """Return the table of the keys that every run takes."""
    return key_table(catalog.root)


def groups(catalog: Catalog) -> str:
    """Return a section for each group but the strategies, which have a page of their own."""
    return "\n\n".join(group_section(catalog, group) for group in (*GROUPS, CLUSTER) if group != "strategy")


def group_section(catalog: Catalog, group: str) -> str:
    """Return the section of a group: its options, and the keys of each."""
    default = catalog.defaults.get(group)
    chosen = f"The default is `{default}`." if default else "By default, no option is chosen."
    heading = f"### {GROUP_TITLES[group]}: `{group}`\n\n{chosen}"
    return "\n\n".join([heading, *(option_part(catalog, group, name) for name in catalog.options[group])])


def option_part(catalog: Catalog, group: str, name: str) -> str:
    """Return one option of a group: what it is, and its keys."""
    option, keys = catalog.options[group][name], catalog.knobs(group, name)
    about = f"**`{group}={name}`**: {plain(option.about)}.{own_defaults(option)}"
    return f"{about}\n\n{key_table(keys, identity=group != CLUSTER)}" if keys else f"{about} It has no keys."


def own_defaults(option: Option) -> str:
    """Return the values that an option gives to keys of the run."""
    epochs, rate = (getattr(option, field, None) for field in ("epochs", "lr"))
    sentences = {"epochs": epochs, "lr": rate}
    stated = [f"{key}={format_value(value)}" for key, value in sentences.items() if value is not None]
    return f" It sets `{stated[0]}` unless another value is typed." if stated else ""


def key_table(keys: Mapping[str, KeySpec], identity: bool = True) -> str:
    """Return a table with one row per key. identity: whether the table says which keys are part of the identity."""
    rows = [row(key, spec) for key, spec in keys.items()]
    width = len(HEADER) if identity else len(HEADER) - 1
    return table(HEADER[:width], [cells[:width] for cells in rows])


def row(key: str, spec: KeySpec) -> tuple[str, ...]:
    """Return the cells of one key."""
    null = ", or null" if spec.default is None else ""
    value = f"{spec.expects()}{null}"
    return code(key), code(format_value(spec.default)), value, plain(spec.about), "yes" if spec.identity else "no"


def search_keys() -> str:
    """Return the table of the keys that `clrun-tune` takes in addition."""
    return key_table(SEARCH_KEYS, identity=False)


def experiments(catalog: Catalog) -> str:
    """Return the table of the experiments: collections of settings that are typed as +experiment=NAME."""
    return table(("experiment", "what it is"), [experiment(*item) for item in catalog.experiments.items()])


def experiment(name: str, path: Path) -> tuple[str, str]:
    """Return the cells of one experiment."""
    return code(f"+experiment={name}"), plain(help.remark(path))
