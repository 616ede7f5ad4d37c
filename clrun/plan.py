"""Which runs of a sweep are trained together, and in how many processes."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from clrun import workers
from clrun.config import Settings
from clrun.workers import cores

if TYPE_CHECKING:
    from clrun.prepare import Prepared


def groups(runs: Sequence["Prepared"]) -> list[list["Prepared"]]:
    """The runs by what makes a stack: those of a list differ in values only (the seed, the learning rate, the
    strategy's strengths), and agree in all that is static, in their data and in the shapes of their tasks."""
    found: dict[str, list[Prepared]] = {}
    for one in runs:
        found.setdefault(repr(static(one)), []).append(one)
    return list(found.values())


def static(one: "Prepared") -> list[Any]:
    """What the runs of a stack must agree in."""
    from clrun.prepare import spelling

    settings = one.settings
    swept = {knob for knob in settings.knobs if spelling(knob) in one.strategy.Hyper._fields}
    apart = (settings.private - {"device"}) | swept | {"seed", "lr"}
    values = {key: value for key, value in settings.values.items() if key not in apart}
    shapes = [tuple(table.shape) for table in one.hand.deal]
    return [dict(settings.targets), values, one.images.fingerprint, shapes, len(one.hand.names)]


def batches(runs: Sequence["Prepared"]) -> list[list["Prepared"]]:
    """The runs as they are trained: one by one, or in stacks as large as `stack` says of runs that are equally far."""
    from clrun.run import regrouped

    parts = [part for group in groups(runs) for part in regrouped(group)]
    return [batch for part in parts for batch in cut(part, size(part))]


def cut(group: Sequence["Prepared"], largest: int) -> list[list["Prepared"]]:
    """Into as few pieces as that makes, of sizes as equal as can be."""
    pieces = -(-len(group) // largest)
    ends = [len(group) * i // pieces for i in range(pieces + 1)]
    return [list(group[start:end]) for start, end in pairwise(ends)]


def size(group: Sequence["Prepared"]) -> int:
    """Runs a stack."""
    asked = group[0].settings["stack"]
    if asked == "auto":
        return len(group) if kind(group[0]) == "cuda" else 1
    return 1 if asked == "off" else asked


def processes(batches: Sequence[Sequence["Prepared"]]) -> int:
    """Workers for these batches; 1 is this process, 0 is none for no batches."""
    if not batches:
        return 0
    threads = max(batch[0].settings["threads"] for batch in batches)
    return min(wanted(batches[0][0].settings, threads, kind(batches[0][0])), len(batches))


def wanted(settings: Settings, threads: int, kind: str) -> int:
    """Workers, if there is enough to do."""
    if settings["workers"] != "auto":
        return settings["workers"]
    return 1 if kind == "cuda" else max(1, cores() // threads)


def warm_up(settings: Sequence[Settings]) -> None:
    """Let workers begin to import, while this process does, where it looks as if there will be some."""
    several = len({repr(one.values) for one in settings}) > 1 and cores() > 1
    if several and settings[0]["workers"] != 1 and settings[0]["device"] != "cuda":
        workers.warm_up()


def kind(one: "Prepared") -> str:
    """ "cpu" or "cuda"."""
    from clrun.prepare import resolve_device

    return resolve_device(one.settings["device"]).type
