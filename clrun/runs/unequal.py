"""The warning that the tasks of a class-incremental run differ in size, so that two definitions of accuracy part."""

from clrun.runs.prepared import Prepared

# Ratio of the largest number of test samples of a task to the smallest from which tasks count as unequal; the classes
# of common data sets differ by less.
UNEQUAL = 1.25


def unequal_tasks(prepared: Prepared) -> list[str]:
    """Return the warning due before training, if the tasks of a class-incremental run differ in their number of classes
    or, by a factor of UNEQUAL or more, of test samples; else nothing."""
    settings, pools = prepared.settings, prepared.stream.test
    if settings["scenario"] != "class" or settings["split"] not in ("classes", "domains"):
        return []
    pools = [pool for pool in pools if len(pool)]  # where classes come back, a task may have none of its own
    samples = [len(pool) for pool in pools]
    classes = [len(prepared.images.y[pool].unique()) for pool in pools]
    if min(classes) == max(classes) and max(samples) < UNEQUAL * min(samples):
        return []
    return [
        f"the tasks differ in size ({span(classes, 'classes')}, {span(samples, 'test samples')} a task): "
        "average_accuracy is the mean over the tasks; what papers report for such a stream, the accuracy over all test "
        "samples, is overall_accuracy, and overall_incremental_accuracy over the stages"
    ]


def span(counts: list[int], what: str) -> str:
    """Return '2 classes', or '2 to 6 classes' where the counts differ."""
    return f"{min(counts)} {what}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)} {what}"
