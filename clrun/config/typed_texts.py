"""What is typed, in the form that Hydra takes: the names of classes in quotes, the former name of a key as the new one.

Hydra's grammar reads 1.0, 1e3, 2021_05, true and null as values of other types, and takes neither R&B nor x(1) nor a=b
as a text. So each name of a class is put into quotes before Hydra sees it, and keeps the text that was typed. So is the
folder of a run, whose name has = in it.
"""

import re
from collections.abc import Mapping
from typing import Any

from clrun.data.split import quoted_name, read_lists, typed_lists

CLASSES = "split.classes"
ORIGIN = "init_from"

# What dataset.test may be besides the name of a column: shares with commas between them, which are another key's.
PART, SHARE = "dataset.test", "dataset.test_fraction"
SHARES = r"0?\.\d+(,0?\.\d+)*"

# One or more paths with commas between them, which are not in quotes and call no function of Hydra's. References to
# other keys, such as ${seed}, are replaced within quotes too.
PATHS = r"(?:[^'\"\[\](){}$]|\$\{[\w.]+\})+"

# Keys that had another name in the last release: former name -> name.
RENAMED = {"pictures": "plots"}

# What other tools call these keys. In clrun, `name` within a group is the option itself, such as model=torchvision.
ALSO_TYPED = {"model.name": "model.arch", "features.name": "features.arch", "dataset.name": "dataset.set"}


def as_typed(text: str) -> str:
    """Return an override with the name that its key has now, and with every name of split.classes, and every path of
    init_from, in quotes."""
    typed, equals, value = text.partition("=")
    sign = typed[: len(typed) - len(typed.lstrip("+~"))]
    key = (RENAMED | ALSO_TYPED).get(typed[len(sign) :], typed[len(sign) :])
    key = SHARE if key == PART and re.fullmatch(SHARES, value) else key
    lists = read_lists(value) if key == CLASSES else None
    if lists is not None:
        value = ",".join(typed_lists(each, quoted_name) for each in lists)
    if key == ORIGIN and value != "null" and re.fullmatch(PATHS, value):
        value = ",".join(map(quoted_name, value.split(",")))
    return f"{sign}{key}{equals}{value}"


def with_current_keys(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration in which a key with its former name, as in an older yaml, has the name that it has now."""
    current = {key: value for key, value in tree.items() if key not in RENAMED}
    former = {RENAMED[key]: value for key, value in tree.items() if key in RENAMED and value is not None}
    return former | {key: value for key, value in current.items() if key not in former or value is not None}
