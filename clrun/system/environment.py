"""Variables of the environment."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

from clrun.system.paths import PACKAGE


def color_system(variables: Mapping[str, str] = os.environ) -> Literal["auto"] | None:
    """Return what rich's Console takes as `color_system`: None, which is neither colour nor bold, where NO_COLOR is set
    and not empty (https://no-color.org), and else 'auto', what the terminal can do. rich alone leaves bold and dim."""
    return None if variables.get("NO_COLOR") else "auto"


def environment_of_clrun(**more: str) -> dict[str, str]:
    """Return the variables for a child process that imports this clrun, from a checkout, too. more: others to set.

    A checkout comes last on PYTHONPATH, so that it hides nothing of the user's.
    """
    here = "site-packages" not in PACKAGE.parts
    paths = [*filter(None, [os.environ.get("PYTHONPATH")]), *([str(PACKAGE.parent)] if here else [])]
    return dict(os.environ) | {"PYTHONPATH": os.pathsep.join(paths)} | more


@contextmanager
def variable_set(name: str, value: str) -> Iterator[None]:
    """Set a variable of the environment while the block runs. It changes the environment of the whole process."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def replace_environment(variables: Mapping[str, str]) -> None:
    """Make these the variables of the environment of the whole process, and no others."""
    for name in os.environ.keys() - variables.keys():
        del os.environ[name]
    os.environ.update(variables)
