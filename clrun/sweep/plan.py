"""Which runs of a sweep are trained together, and in how many processes."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from clrun.config.settings import Settings
from clrun.system import machine

if TYPE_CHECKING:
    from clrun.runs.prepared import Prepared


FILLED = 0.8  # of the card's free memory, the rest being for what libraries keep for themselves


def groups(runs: Sequence["Prepared"]) -> list[list["Prepared"]]:
    """The runs by what makes a stack: those of a list differ in values only (the seed, the learning rate, the
    strategy's strengths), and agree in all that is static, in their data and in the shapes of their tasks."""
    found: dict[str, list[Prepared]] = {}
    for one in runs:
        found.setdefault(repr(static(one)), []).append(one)
    return list(found.values())


def static(one: "Prepared") -> list[Any]:
    """What the runs of a stack must agree in."""
    from clrun.runs.targets import spelling

    settings = one.settings
    swept = {knob for knob in settings.knobs if spelling(knob) in one.strategy.Hyper._fields}
    apart = (settings.private - {"device"}) | swept | {"seed", "lr"}
    values = {key: value for key, value in settings.values.items() if key not in apart}
    shapes = [tuple(table.shape) for table in one.stream.tables]
    # evaluated every so many steps, by one clock: then all are at the same step of the same task
    lengths = [len(pool) for pool in one.stream.train] if settings["evaluate_every"] else None
    return [dict(settings.targets), values, one.images.fingerprint, shapes, len(one.stream.names), lengths]


def batches(runs: Sequence["Prepared"]) -> list[list["Prepared"]]:
    """The runs as they are trained: one by one, or in stacks as large as `stack` says of runs that are equally far."""
    from clrun.runs.train import regrouped

    parts = [part for group in groups(runs) for part in regrouped(group)]
    return [batch for part in parts for batch in cut(part, size(part))]


def cut(group: Sequence["Prepared"], largest: int) -> list[list["Prepared"]]:
    """Into as few pieces as that makes, of sizes as equal as can be."""
    pieces = -(-len(group) // largest)
    ends = [len(group) * i // pieces for i in range(pieces + 1)]
    return [list(group[start:end]) for start, end in pairwise(ends)]


def size(group: Sequence["Prepared"]) -> int:
    """Runs a stack."""
    from clrun.runs.build import may_be_filled_up, uninitialized_network

    one, asked = group[0], group[0].settings["stack"]
    if asked in ("off", 1) or (asked == "auto" and kind(one) != "cuda"):
        return 1
    network = uninitialized_network(one.settings, one.images.x.shape[1:], len(one.stream.names))
    if not may_be_filled_up(one.settings, network):
        return 1
    return min(len(group), fitting(one)) if asked == "auto" else asked


def fitting(one: "Prepared") -> int:
    """As many runs as there is room for on the card, at least one; where the estimate was too bold, a stack that runs
    out of memory is halved."""
    import torch

    from clrun.runs.prepare import bytes_of_run

    free, _ = torch.cuda.mem_get_info()
    images = one.images.x.numel()  # uint8, on the card once
    return max(1, int(FILLED * (free - images)) // bytes_of_run(one))


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
    return 1 if kind == "cuda" else max(1, machine.cores() // threads)


def kind(one: "Prepared") -> str:
    """ "cpu" or "cuda"."""
    from clrun.runs.build import resolve_device

    return resolve_device(one.settings["device"]).type
