"""A sink: what takes the curves, pictures, settings and summary of one run, and keeps them elsewhere."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from clrun.loggers.points import Point
from clrun.system.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The module of the library that a logger needs; the extra of clrun has the logger's name.
LIBRARIES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}


@dataclass(frozen=True)
class Identity:
    """What a sink is told of a run when it is opened."""

    run: str
    group: str
    name: str  # for people
    outputs: Path
    place: str  # of the run's folder below outputs/runs
    settings: Mapping[str, str]  # every key with its value, as it is typed


class Sink(Protocol):
    """What takes what is logged of one run. Any exception of its methods ends it, and harms nothing else."""

    key: str  # by which a later process finds what was logged before

    def points(self, points: Sequence[Point]) -> None:
        """Log points of curves."""

    def picture(self, name: str, figure: "Figure", task: int) -> None:
        """Log a figure as it is after a task."""

    def end(self, status: str, summary: Mapping[str, float]) -> None:
        """Log how the run has ended, and close."""

    def pause(self) -> None:
        """Close, since the run was interrupted: a later process goes on."""


# Opens a sink. The key is the one that an earlier process has noted; None for a run that begins.
Opener = Callable[[Identity, str | None], Sink]


def opener(name: str) -> Opener:
    """Return what opens the sinks of a logger, whose library is imported now."""
    found: Opener = import_module(f"clrun.loggers.to_{name}").opened
    return found


def refuse_missing(names: Sequence[str]) -> None:
    """Raise UsageError where the library of a logger is not installed. It is not imported."""
    for name in names:
        if find_spec(LIBRARIES[name]) is None:
            raise UsageError(
                f"log={name} needs the library {LIBRARIES[name]}, which is not installed here; type "
                f"pip install 'clrun[{name}]', or leave log out."
            )
