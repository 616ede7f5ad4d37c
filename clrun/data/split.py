"""Which classes go to which task. Pure Python."""

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from clrun.system.errors import UsageError


def assign_classes(names: Sequence[str], settings: Mapping[str, Any]) -> list[list[int]] | None:
    """Class numbers a task, in the order written: of the lists in `split.classes`, or evenly in the dataset's order.

    (The stream draws the order of an even deal from the seed.) None for permuted and rotated: all tasks have all
    classes. UsageError: tasks that do not divide the classes, an unknown or repeated class, a task too small or
    too large for the scenario.
    """
    if settings["split"] != "classes":
        return None
    lists = settings["split.classes"]
    tasks = even(names, settings["tasks"]) if lists is None else [[number(c, names) for c in task] for task in lists]
    refuse_repeated(tasks, names)
    refuse_small(tasks, names, settings["scenario"])
    refuse_unequal(tasks, settings["scenario"])
    return tasks


def even(names: Sequence[str], tasks: int) -> list[list[int]]:
    """The classes in order, cut into equal parts."""
    if len(names) % tasks:
        fitting = [str(n) for n in range(1, len(names) + 1) if len(names) % n == 0]
        unequal = unequal_example(names, tasks)
        otherwise = f", or deal unequally: 'split.classes={unequal}'" if unequal else ""
        raise UsageError(
            f"tasks={tasks}: {len(names)} classes do not divide into {tasks} equal tasks; "
            f"type tasks={listed(fitting, 'or')}{otherwise}."
        )
    size = len(names) // tasks
    return [list(range(start, start + size)) for start in range(0, len(names), size)]


def unequal_example(names: Sequence[str], tasks: int) -> str:
    """Such as [[0,1,2,3],[4,5,6],[7,8,9]]; "" where there are too many to print, or too few to go round."""
    classes = len(names)
    called = list(map(int, names)) if numbered(names) else list(range(classes))
    if classes > 20 or tasks > classes:
        return ""
    sizes = [classes // tasks + (t < classes % tasks) for t in range(tasks)]
    starts = [sum(sizes[:t]) for t in range(tasks)]
    return str([called[a : a + n] for a, n in zip(starts, sizes, strict=True)]).replace(" ", "")


def number(given: str | int, names: Sequence[str]) -> int:
    """The number of a class that is given by name or number; where all names are numbers, they are what is meant."""
    given = str(given) if numbered(names) else given
    if isinstance(given, int):
        if 0 <= given < len(names):
            return given
        raise UsageError(f"split.classes: there is no class {given}; the numbers are 0 to {len(names) - 1}.")
    if given in names:
        return list(names).index(given)
    near = difflib.get_close_matches(given, names, 1)
    meant = f"; did you mean {near[0]}? " if near else ". "
    raise UsageError(f"split.classes: there is no class {given}{meant}The classes are {shortened(names)}.")


def numbered(names: Sequence[str]) -> bool:
    return all(name.isdecimal() for name in names)


def refuse_repeated(tasks: Sequence[Sequence[int]], names: Sequence[str]) -> None:
    often = [names[k] for k, n in Counter(k for task in tasks for k in task).items() if n > 1]
    if often:
        raise UsageError(
            f"split.classes: {listed(often, 'and')} cannot be listed twice: each class belongs to one task; "
            f"name another class in one of the places, or leave it out."
        )


def refuse_small(tasks: Sequence[Sequence[int]], names: Sequence[str], scenario: str) -> None:
    """A network with one output that may answer has nothing to learn."""
    if sum(map(len, tasks)) < 2:
        raise UsageError("split.classes: one class leaves nothing to tell apart; list two or more.")
    single = next((task for task in tasks if len(task) == 1), None)
    if single is not None and scenario != "class":
        raise UsageError(
            f"scenario={scenario}: a task of the one class {names[single[0]]} has nothing to tell apart; "
            f"give every task two classes or more, or type scenario=class."
        )


def refuse_unequal(tasks: Sequence[Sequence[int]], scenario: str) -> None:
    sizes = [len(task) for task in tasks]
    if scenario == "domain" and len(set(sizes)) > 1:
        raise UsageError(
            f"scenario=domain: tasks share their outputs, so they need equally many classes, "
            f"not {listed(sizes, 'and')}; "
            f"list equally many in split.classes, or type scenario=task or scenario=class."
        )


def listed(items: Sequence[Any], last: str) -> str:
    """1, 2 or 5."""
    return f" {last} ".join(filter(None, [", ".join(map(str, items[:-1])), str(items[-1])]))


def shortened(names: Sequence[str], most: int = 20) -> str:
    return ", ".join(names[:most]) + (f" ... ({len(names)} in all)" if len(names) > most else "")
