"""Which tasks of a long stream are shown, where a table or a picture has no room for all. The CSV files have all."""

ALL_TASKS = 40  # up to so many, all are shown
SOME_TASKS = 12  # of more, so many


def shown_tasks(tasks: int) -> list[int]:
    """Return the numbers, from 1, of the tasks that are shown: all, or some at equal distances, the first and the last
    among them."""
    if tasks <= ALL_TASKS:
        return list(range(1, tasks + 1))
    return [1 + round(i * (tasks - 1) / (SOME_TASKS - 1)) for i in range(SOME_TASKS)]


def remark(tasks: int) -> str:
    """Return '12 of 800 tasks', or '' where all are shown."""
    shown = len(shown_tasks(tasks))
    return f"{shown} of {tasks} tasks" if shown < tasks else ""
