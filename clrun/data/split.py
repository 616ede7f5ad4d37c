"""The assignment of classes to tasks, in pure Python, so that a split is refused before torch is imported."""

import difflib
from collections import Counter
from collections.abc import Sequence

from clrun.data.values import Values
from clrun.system.errors import UsageError


def assign_classes(names: Sequence[str], settings: Values) -> list[list[int]] | None:
    """Return the class numbers of each task: those of the lists in `split.classes`, or an even split in order.

    None for permuted and rotated splits, in which all tasks have all classes. The order of an even split is the data
    set's here; `clrun.data.tasks` draws it from the seed. Raise UsageError where the tasks do not divide the classes,
    for an unknown or repeated class, and for a task that is too small or too large for the scenario.
    """
    if settings["split"] != "classes":
        return None
    lists = settings["split.classes"]
    if lists is None:
        tasks = even(names, settings["tasks"])
    else:
        tasks = [[class_number(given, names) for given in task] for task in lists]
    refuse_repeated(tasks, names)
    refuse_small(tasks, names, settings["scenario"])
    refuse_unequal(tasks, settings["scenario"])
    return tasks


def even(names: Sequence[str], tasks: int) -> list[list[int]]:
    """Return the class numbers in order, cut into equal parts. Raise UsageError where that is impossible."""
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
    """Return a nearly even split to type, such as [[0,1,2,3],[4,5,6],[7,8,9]].

    "" where there are too many classes to print, or fewer than tasks.
    """
    classes = len(names)
    typed = list(map(int, names)) if numbered(names) else list(range(classes))
    if classes > 20 or tasks > classes:
        return ""
    size, remainder = divmod(classes, tasks)
    sizes = [size + 1] * remainder + [size] * (tasks - remainder)
    starts = [sum(sizes[:t]) for t in range(tasks)]
    return str([typed[a : a + n] for a, n in zip(starts, sizes, strict=True)]).replace(" ", "")


def class_number(given: str | int, names: Sequence[str]) -> int:
    """Return the number of a class that is given by name or number. Raise UsageError for an unknown class.

    Where all names are numbers, as with digits, a number means the class of that name.
    """
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
    """Return whether all class names are numbers."""
    return all(name.isdecimal() for name in names)


def refuse_repeated(tasks: Sequence[Sequence[int]], names: Sequence[str]) -> None:
    """Raise UsageError for a class that is listed twice."""
    repeated = [names[k] for k, n in Counter(k for task in tasks for k in task).items() if n > 1]
    if repeated:
        raise UsageError(
            f"split.classes: {listed(repeated, 'and')} cannot be listed twice: each class belongs to one task; "
            f"name another class in one of the places, or leave it out."
        )


def refuse_small(tasks: Sequence[Sequence[int]], names: Sequence[str], scenario: str) -> None:
    """Raise UsageError where only one output may answer, so that a network has nothing to learn."""
    if sum(map(len, tasks)) < 2:
        raise UsageError("split.classes: one class leaves nothing to tell apart; list two or more.")
    single = next((task for task in tasks if len(task) == 1), None)
    if single is not None and scenario != "class":
        raise UsageError(
            f"scenario={scenario}: a task of the one class {names[single[0]]} has nothing to tell apart; "
            f"give every task two classes or more, or type scenario=class."
        )


def refuse_unequal(tasks: Sequence[Sequence[int]], scenario: str) -> None:
    """Raise UsageError where tasks that share their outputs have different numbers of classes."""
    sizes = [len(task) for task in tasks]
    if scenario == "domain" and len(set(sizes)) > 1:
        raise UsageError(
            f"scenario=domain: tasks share their outputs, so they need equally many classes, "
            f"not {listed(sizes, 'and')}; "
            f"list equally many in split.classes, or type scenario=task or scenario=class."
        )


def listed(items: Sequence[object], last: str) -> str:
    """Return items as a phrase, such as "1, 2 or 5" with `last` "or"."""
    return f" {last} ".join(filter(None, [", ".join(map(str, items[:-1])), str(items[-1])]))


def shortened(names: Sequence[str], most: int = 20) -> str:
    """Return the first names as a phrase, and how many there are in all."""
    return ", ".join(names[:most]) + (f" ... ({len(names)} in all)" if len(names) > most else "")
