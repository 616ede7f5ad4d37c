"""The assignment of classes to tasks, in pure Python, so that a split is refused before torch is imported."""

import difflib
import re
import shlex
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Sequence

from clrun.data.values import Values
from clrun.system.arithmetic import ceil_div
from clrun.system.errors import UsageError
from clrun.system.text import format_value


def assign_classes(names: Sequence[str], settings: Values, learnt: Collection[str] = ()) -> list[list[int]] | None:
    """Return the class numbers of each task: those of the lists in `split.classes`, or the classes in order, cut into
    tasks of equal size or of those sizes that are typed.

    learnt: the classes that an earlier run has learnt, from which this one goes on, and which are cut into no tasks.
    None for permuted and rotated splits, in which all tasks have all classes. The order of classes that are not listed
    is the data set's here; `clrun.data.tasks` draws it from the seed. Raise UsageError where the sizes do not add up to
    the number of classes, for an unknown or repeated class, and for a task that is too small or too large for the
    scenario.
    """
    if settings["split"] != "classes":
        return None
    lists = settings["split.classes"]
    if settings.get("split.slots", None) is not None:
        refuse_slots(len(names), settings["tasks"], settings["split.slots"])
    if circling(settings):
        refuse_circle(len(names), settings["split.circle"])
    if settings.get("split.disjoint", None) is not None:
        refuse_disjoint(len(names), settings["split.disjoint"])
    if drawn_freely(settings):
        return None
    if lists is None:
        new = [k for k, name in enumerate(names) if name not in learnt]
        if learnt and not new:
            raise UsageError(
                "init_from: that run has learnt all classes of these data; type which ones come again, as in "
                f"{shlex.quote(f'split.classes={typed_lists([names[:2]])}')}."
            )
        tasks = [[new[k] for k in task] for task in cut(sizes_of_tasks([names[k] for k in new], settings))]
    else:
        tasks = [[class_number(given, names) for given in task] for task in lists]
    refuse_repeated(tasks, names)
    refuse_small(tasks, names, settings["scenario"], bool(learnt))
    refuse_unequal(tasks, settings["scenario"])
    return tasks


def returning(settings: Values) -> bool:
    """Return whether classes come back."""
    return circling(settings) or any(settings.get(key, None) is not None for key in ("split.slots", "split.recurrence"))


def circling(settings: Values) -> bool:
    """Return whether pairs of neighbouring classes come in rounds, and their pictures turn."""
    return settings.get("split.circle", None) is not None


def drawn_freely(settings: Values) -> bool:
    """Return whether the classes of each task, and how many there are, are drawn with the images."""
    return returning(settings) or settings.get("split.stochastic", None) is True


def sizes_of_tasks(names: Sequence[str], settings: Values) -> list[int]:
    """Return the number of classes of each task, where the classes are not listed. Raise UsageError where they do not
    add up to the number of classes."""
    sizes, step = settings.get("split.sizes", None), settings.get("split.step", None)
    if sizes is not None:
        return checked_sizes(sizes, len(names))
    if step is not None:
        return stepped_sizes(len(names), settings["split.first"], step)
    return even_sizes(names, settings["tasks"], settings["scenario"])


def cut(sizes: Sequence[int]) -> list[list[int]]:
    """Return the numbers 0, 1, 2 ... in order, cut into parts of these sizes."""
    starts = [sum(sizes[:t]) for t in range(len(sizes))]
    return [list(range(start, start + size)) for start, size in zip(starts, sizes, strict=True)]


def even_sizes(names: Sequence[str], tasks: int, scenario: str) -> list[int]:
    """Return the number of classes of each of so many equal tasks. Raise UsageError where that is impossible."""
    if len(names) % tasks:
        fitting = [str(n) for n in range(1, len(names) + 1) if len(names) % n == 0]
        unequal = unequal_example(names, tasks)
        legal = scenario != "domain" and tasks <= (len(names) if scenario == "class" else len(names) // 2)
        ways = []
        if legal and tasks <= 20:
            ways.append(shlex.quote(f"split.sizes=[{','.join(map(str, nearly_even(len(names), tasks)))}]"))
        if legal and unequal:
            ways.append(f"{shlex.quote(f'split.classes={unequal}')}, which fixes the order, too")
        otherwise = f", or deal unequally: {' or '.join(ways)}" if ways else ""
        raise UsageError(
            f"tasks={tasks}: {len(names)} classes do not divide into {tasks} equal tasks; "
            f"type tasks={listed(fitting, 'or')}{otherwise}."
        )
    return [len(names) // tasks] * tasks


def stepped_sizes(classes: int, first: int | None, step: int) -> list[int]:
    """Return the number of classes of each task: `first` (by default `step`) in the first, `step` in each other one.

    This is the protocol B50-inc10 of the literature with first=50 and step=10, and B0-inc10 with step=10 alone. Raise
    UsageError where they do not add up to the number of classes.
    """
    begin = step if first is None else first
    if begin > classes:
        raise UsageError(f"split.first={begin}: there are {classes} classes; type a smaller number.")
    later, rest = divmod(classes - begin, step)
    if rest:
        fitting = [str(n) for n in range(1, classes - begin + 1) if (classes - begin) % n == 0]
        sizes = shlex.quote(f"split.sizes=[{','.join(map(str, [begin, *[step] * later, rest]))}]")
        raise UsageError(
            f"split.step={step}: after {begin} of {classes} classes, {classes - begin} are left, which do not divide "
            f"into steps of {step}; type split.step={listed(fitting, 'or')}, or {sizes}."
        )
    return [begin] + [step] * later


def checked_sizes(sizes: Sequence[int], classes: int) -> list[int]:
    """Return the sizes. Raise UsageError where they do not add up to the number of classes."""
    if sum(sizes) != classes:
        raise UsageError(
            f"split.sizes={list(sizes)}: together {sum(sizes)} classes, and there are {classes}; change a number, or "
            "list the classes in split.classes, which may leave some out."
        )
    return list(sizes)


def nearly_even(classes: int, tasks: int) -> list[int]:
    """Return the numbers of classes of so many tasks, which differ by one at most."""
    size, remainder = divmod(classes, tasks)
    return [size + 1] * remainder + [size] * (tasks - remainder)


def unequal_example(names: Sequence[str], tasks: int) -> str:
    """Return a nearly even split to type, such as [[0,1,2,3],[4,5,6],[7,8,9]].

    "" where there are too many classes to print, or fewer than tasks.
    """
    classes = len(names)
    typed = list(map(str, range(classes))) if positions_allowed(names) else names
    if classes > 20 or tasks > classes:
        return ""
    sizes = nearly_even(classes, tasks)
    starts = [sum(sizes[:t]) for t in range(tasks)]
    return typed_lists([typed[a : a + n] for a, n in zip(starts, sizes, strict=True)])


def class_number(given: str | int, names: Sequence[str]) -> int:
    """Return the number of a class that is given by name or number. Raise UsageError for an unknown class.

    A text that is the name of a class means that class, whatever it looks like: 3 is the digit "3". Another whole
    number is the position of a class, from 0, but only where no class has a number as its name.
    """
    text = unicodedata.normalize("NFC", str(given))
    if text in names:
        return list(names).index(text)
    if positions_allowed(names) and re.fullmatch(r"-?[0-9]{1,9}", text):
        if 0 <= int(text) < len(names):
            return int(text)
        raise UsageError(
            f"split.classes: there is no class {text}; the numbers are 0 to {len(names) - 1}, and the classes are "
            f"{shortened(list(map(typed_name, names)))}."
        )
    equal = [name for name in names if is_number(name) and is_number(text) and float(name) == float(text)]
    near = equal or difflib.get_close_matches(text, names, 1)
    meant = f"; did you mean {typed_name(near[0])}? " if near else ". "
    raise UsageError(
        f"split.classes: there is no class {typed_name(text)}{meant}The classes are "
        f"{shortened(list(map(typed_name, names)))}{typing_rule(names)}."
    )


def positions_allowed(names: Sequence[str]) -> bool:
    """Return whether a number may stand for the position of a class: not where a class has a number as its name."""
    return not any(map(is_number, names))


def is_number(name: str) -> bool:
    """Return whether a class name reads as a number, such as 7, 007, -1, 1.0, 1e3 or 2021_05."""
    try:
        float(name)
    except ValueError:
        return False
    return any(map(str.isdigit, name))  # not nan and inf, which are words here


# ---------------------------------------------------------------- lists of classes as they are typed


def typed_name(name: str) -> str:
    """Return a class name as it is typed in split.classes: in quotes where brackets, commas, quotes or spaces would
    be taken for something else."""
    bare = name == name.strip() and not re.search(r"[\[\],]|\$\{|^['\"]", name)
    return name if bare and name else quoted_name(name)


def quoted_name(name: str) -> str:
    """Return a class name in quotes, as Hydra's grammar reads them: a backslash before each quote within."""
    escaped = re.sub(r'(\\*)("|$)', lambda found: found[1] * 2 + (r"\"" if found[2] else ""), name)
    return f'"{escaped}"'


def typed_lists(lists: Sequence[Sequence[str]], spelt: Callable[[str], str] = typed_name) -> str:
    """Return lists of class names as the value of split.classes, such as [[cat,dog],[deer]].

    spelt: returns a name as it is typed.
    """
    tasks = [f"[{','.join(map(spelt, names))}]" for names in lists]
    return f"[{','.join(tasks)}]"


def typing_rule(names: Sequence[str]) -> str:
    """Return how names are typed that need quotes; "" where none of these does."""
    quoted = [name for name in names if typed_name(name) != name]
    if not quoted:
        return ""
    example = shlex.quote(f"split.classes={typed_lists([quoted[:1]])}")
    return f"; a name with brackets, commas, or spaces at an end is typed in quotes within quotes, as {example}"


def read_lists(value: str) -> list[list[list[str]]] | None:
    """Return what is typed after split.classes=: one or more lists of lists of class names, separated by commas.

    A name is all that stands between commas and brackets, as it is typed, without the spaces around it: 007, 1e3,
    R&B and x(1) are names. A name in quotes may hold commas, brackets and spaces; a backslash comes before a quote
    within it. None where the value has another form.
    """
    texts = re.findall(TOKEN, value)
    if "".join(texts) != value or "${" in value:
        return None
    tokens = [text.strip() for text in texts if text.strip()]
    shape = "".join(token if token in "[]," else "n" for token in tokens)
    if not re.fullmatch(SHAPE, shape):
        return None
    lists: list[list[list[str]]] = []
    depth = 0
    for token in tokens:
        depth += {"[": 1, "]": -1}.get(token, 0)
        if token == "[":
            lists += [[]] if depth == 1 else []
            lists[-1] += [[]] if depth == 2 else []
        elif token not in ("]", ","):
            lists[-1][-1].append(unquoted(token))
    return lists


# A name in quotes, a bracket or comma, or a bare name, which does not start with a quote.
TOKEN = r"""\s*(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')\s*(?=[\],])|[\[\],]|\s*[^\s\[\],'"][^\[\],]*|\s+"""

# Lists of lists of names, in which n is a name.
SHAPE = r"LIST(?:,LIST)*".replace("LIST", r"\[INNER(?:,INNER)*\]").replace("INNER", r"\[n(?:,n)*\]")


def unquoted(token: str) -> str:
    """Return a name without the quotes around it, backslashes before a quote removed."""
    if token[0] not in "'\"":
        return token
    return re.sub(rf"(\\+)({token[0]}|$)", lambda found: found[1][: len(found[1]) // 2] + found[2], token[1:-1])


# ---------------------------------------------------------------- refusals


def refuse_repeated(tasks: Sequence[Sequence[int]], names: Sequence[str]) -> None:
    """Raise UsageError for a class that is listed twice."""
    repeated = [names[k] for k, n in Counter(k for task in tasks for k in task).items() if n > 1]
    if repeated:
        raise UsageError(
            f"split.classes: {listed(repeated, 'and')} cannot be listed twice: each class belongs to one task; "
            f"name another class in one of the places, or leave it out."
        )


def refuse_contradicting_sizes(settings: Values) -> None:
    """Raise UsageError where two keys say how many classes each task has."""
    keys = ("split.classes", "split.sizes", "split.step")
    typed = [key for key in keys if settings.get(key, None) is not None]
    if len(typed) > 1:
        raise UsageError(f"{typed[0]} and {typed[1]} both say which classes each task has; leave one of them out.")
    if settings.get("split.first", None) is not None and "split.step" not in typed:
        raise UsageError(
            "split.first is the number of classes of the first task; type split.step too, that of every other task."
        )


def refuse_slots(classes: int, tasks: int, slots: int) -> None:
    """Raise UsageError where a task would have a class twice, or a class would come in no task."""
    if slots > classes:
        raise UsageError(f"split.slots={slots}: there are {classes} classes; type a smaller number.")
    if slots * tasks < classes:
        needed = ceil_div(classes, tasks)
        raise UsageError(
            f"split.slots={slots}: {tasks} tasks of {slots} classes leave some of {classes} out; type split.slots="
            f"{needed} or more, or more tasks."
        )


def refuse_circle(classes: int, count: int) -> None:
    """Raise UsageError where a circle would be of more classes than there are."""
    if count > classes:
        raise UsageError(f"split.circle={count}: there are {classes} classes; type a smaller number.")


def refuse_disjoint(classes: int, share: float) -> None:
    """Raise UsageError where the share of the classes that are not blurred is none of them, or all."""
    kept = round(share * classes)
    if kept == 0:
        raise UsageError(
            f"split.disjoint={format_value(share)}: of {classes} classes that is none; type "
            f"split.disjoint={format_value(round(1 / classes, 4))} for one, or leave split.disjoint out."
        )
    if kept == classes:
        raise UsageError(
            f"split.disjoint={format_value(share)}: of {classes} classes that is every one, so that none is blurred; "
            "type a smaller share, or leave split.blurry out."
        )


def refuse_small(tasks: Sequence[Sequence[int]], names: Sequence[str], scenario: str, goes_on: bool = False) -> None:
    """Raise UsageError where only one output may answer, so that a network has nothing to learn. goes_on: whether an
    earlier run has learnt other classes."""
    if sum(map(len, tasks)) < 2 and not goes_on:
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
            f"give each task equally many, or type scenario=task or scenario=class."
        )


def listed(items: Sequence[object], last: str) -> str:
    """Return items as a phrase, such as "1, 2 or 5" with `last` "or"."""
    return f" {last} ".join(filter(None, [", ".join(map(str, items[:-1])), str(items[-1])]))


def shortened(names: Sequence[str], most: int = 20) -> str:
    """Return the first names as a phrase, and how many there are in all."""
    return ", ".join(names[:most]) + (f" ... ({len(names)} in all)" if len(names) > most else "")
