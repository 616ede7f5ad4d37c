"""The methods of a strategy that are ordinary Python, as clrun calls them: what they return is checked here.

Those that are functions of tensors are in `hooks`.
"""

from collections.abc import Iterator, Sequence

from torch import Tensor

from clrun.models import Network
from clrun.strategy import HealthRows, Knobs, Strategy, Tree
from clrun.strategy.returned import (
    check_answer,
    check_count,
    check_rows,
    check_sentence,
    check_sentences,
    check_tasks,
    check_tensors,
    is_tuple_of,
)
from clrun.system.errors import UsageError


def refuse_wrong_plan(strategy: Strategy, tasks: int) -> None:
    """Raise UsageError where what says how so many tasks are trained is of another kind: `phases`, `shares`, `visible`
    or `takes_steps`. The strategy need not have a network."""
    for attribute in ("phases", "shares"):
        names = getattr(strategy, attribute)
        if not (isinstance(names, tuple) and all(isinstance(name, str) for name in names)):
            cls = type(strategy).__name__
            raise UsageError(f"{cls}.{attribute} is {names!r}; let it be a tuple of names, such as ('train',).")
    for stage in range(tasks):
        check_tasks(strategy.visible, strategy.visible(stage))
        check_answer(strategy.takes_steps, strategy.takes_steps(stage))


def recalls_one(strategy: Strategy) -> tuple[str, int] | None:
    """Return what `recalls_one` is. Raise UsageError where that is not None, or a setting and a number."""
    found = strategy.recalls_one
    if found is None or (is_tuple_of(found, 2) and isinstance(found[0], str) and isinstance(found[1], int)):
        return found
    cls = type(strategy).__name__
    raise UsageError(f"{cls}.recalls_one is {found!r}; let it be a setting and a number, such as ('replay_batch', 2).")


def trained_samples(strategy: Strategy, stage: int, classes: Sequence[Sequence[int]]) -> int | None:
    """Return what `trained_samples` returns. Raise UsageError where that is not None, or a whole number."""
    found = strategy.trained_samples(stage, classes)
    if found is not None:
        check_count(strategy.trained_samples, found)
    return None if found is None else int(found)


def trainables(strategy: type[Strategy], network: Network, tasks: int, knobs: Knobs) -> dict[str, Tensor]:
    """Return what `trainables` returns. Raise UsageError where that is not tensors by name."""
    added = strategy.trainables(network, tasks, knobs)
    check_tensors(strategy.trainables, added)
    return added


def draws(strategy: Strategy) -> dict[str, Tensor]:
    """Return what `draws` returns. Raise UsageError where that is not tensors by name."""
    drawn = strategy.draws()
    check_tensors(strategy.draws, drawn)
    return drawn


def trained_rows(strategy: Strategy, phase: str, state: Tree, own: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return what `trained_rows` returns. Raise UsageError where that is not tensors (n,) of rows."""
    rows = strategy.trained_rows(phase, state, own)
    check_rows(strategy.trained_rows, rows)
    return rows


def stored_samples(strategy: Strategy, state: Tree) -> int:
    """Return what `stored_samples` returns. Raise UsageError where that is no whole number."""
    stored = strategy.stored_samples(state)
    check_count(strategy.stored_samples, stored)
    return int(stored)


def unused_bytes(strategy: Strategy, state: Tree) -> int:
    """Return what `unused_bytes` returns. Raise UsageError where that is no whole number."""
    unused = strategy.unused_bytes(state)
    check_count(strategy.unused_bytes, unused)
    return int(unused)


def incompatibility(strategy: type[Strategy], network: Network, optimizer: str, knobs: Knobs) -> str | None:
    """Return what `incompatibility` returns. Raise UsageError where that is no sentence."""
    why = strategy.incompatibility(network, optimizer, knobs)
    check_sentence(strategy.incompatibility, why)
    return why


def warnings(strategy: type[Strategy], health: HealthRows, knobs: Knobs) -> list[str]:
    """Return what `warnings` returns. Raise UsageError where that is no list of sentences."""
    found = strategy.warnings(health, knobs)
    sentences = list(found) if isinstance(found, Iterator) else found  # such as a generator
    check_sentences(strategy.warnings, sentences)
    return list(sentences)
