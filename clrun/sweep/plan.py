"""Which runs of a sweep are trained together, and in how many processes."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from clrun.config.settings import Settings
from clrun.system import machine
from clrun.system.arithmetic import ceil_div
from clrun.system.cards import CARDS, Cards

if TYPE_CHECKING:
    from clrun.runs.prepared import Prepared

FILLED = 0.8  # share of the card's free memory that a stack may take; the rest is for what libraries keep


# ---------------------------------------------------------------- the machine


def device_type(prepared: "Prepared") -> str:
    """Return the kind of device that a run is trained on: "cpu" or "cuda"."""
    from clrun.runs.build import resolve_device

    return resolve_device(prepared.settings["device"]).type


def cards_of(settings: Settings, cards: Cards = CARDS) -> list[int]:
    """Return the numbers of the cards that a sweep on CUDA uses: the one that the key `device` names, or all."""
    _, _, number = settings["device"].partition(":")
    return [int(number)] if number else list(range(cards.count()))


def runs_that_fit(prepared: "Prepared", workers: int = 1, cards: Cards = CARDS) -> int:
    """Return how many runs like this a stack may have, at least 1, so that this many workers have room at the same
    time: those that share a card divide its memory. Where that is too many, a stack that runs out of memory is halved.
    """
    from clrun.runs.memory import memory_need

    used = cards_of(prepared.settings, cards)[:workers]
    free = min(cards.free_bytes(card) for card in used)
    room = int(FILLED * free) // ceil_div(workers, len(used))
    return max(1, memory_need(prepared).runs_within(room))


# ---------------------------------------------------------------- stacks


def stacks(
    runs: Sequence["Prepared"], device_type: Callable[["Prepared"], str] = device_type, cards: Cards = CARDS
) -> list[list["Prepared"]]:
    """Return the runs as they are trained: one by one, or in stacks as large as the key `stack` says, of runs whose
    checkpoints are at one position. On CUDA no stack has more than a worker's share of all runs."""
    from clrun.runs.train import by_position

    parts = [part for alike in stackable(runs) for part in by_position(alike)]
    return [stack for part in parts for stack in cut(part, stack_size(part, len(runs), device_type, cards))]


def stackable(runs: Sequence["Prepared"]) -> list[list["Prepared"]]:
    """Return the runs in lists of which each could be one stack.

    The runs of a list differ in values only (the seed, the learning rate, the strategy's strengths), and agree in all
    that is static, in their data and in the shapes of their tasks.
    """
    by_static_part: dict[str, list[Prepared]] = {}
    for run in runs:
        by_static_part.setdefault(repr(static_part(run)), []).append(run)
    return list(by_static_part.values())


def static_part(prepared: "Prepared") -> list[Any]:
    """Return what the runs of a stack must agree in."""
    from clrun.runs.targets import python_name

    settings = prepared.settings
    strengths = {knob for knob in settings.knobs if python_name(knob) in prepared.strategy.Hyper._fields}
    free = (settings.outside_identity - {"device"}) | strengths | {"seed", "lr"}
    values = {key: value for key, value in settings.values.items() if key not in free}
    shapes = [tuple(table.shape) for table in prepared.stream.tables]
    # a stack counts steps for all its runs, so those evaluated every few steps must be at the same step of a task
    lengths = prepared.stream.sizes if settings["evaluate_every"] else None
    return [
        dict(settings.targets), values, prepared.images.fingerprint, shapes, len(prepared.stream.names), lengths,
        prepared.fixed,
    ]  # fmt: skip


def cut(runs: Sequence["Prepared"], largest: int) -> list[list["Prepared"]]:
    """Return runs in as few pieces as possible, none above `largest`, of sizes as equal as possible."""
    pieces = ceil_div(len(runs), largest)
    ends = [len(runs) * i // pieces for i in range(pieces + 1)]
    return [list(runs[start:end]) for start, end in pairwise(ends)]


def stack_size(
    runs: Sequence["Prepared"],
    total: int,
    device_type: Callable[["Prepared"], str] = device_type,
    cards: Cards = CARDS,
) -> int:
    """Return how many of these runs, which differ in values only, are trained as one stack at most.

    total: the number of all runs of the sweep, these and others.
    """
    first, stack = runs[0], runs[0].settings["stack"]
    if stack in ("off", 1):
        return 1
    if stack != "auto":
        return stack
    kind = device_type(first)
    if kind != "cuda":
        return 1
    workers = min(total, wanted(first.settings, first.settings["threads"], kind, cards=cards))
    return min(len(runs), ceil_div(total, workers), runs_that_fit(first, workers, cards))


# ---------------------------------------------------------------- processes


def processes(
    stacks: Sequence[Sequence["Prepared"]],
    device_type: Callable[["Prepared"], str] = device_type,
    cores: int | None = None,
    cards: Cards = CARDS,
) -> int:
    """Return the number of worker processes for these stacks; 1 is this process, 0 is none for no stacks.

    cores: CPU cores to use; by default those that this process may use.
    """
    if not stacks:
        return 0
    first, threads = stacks[0][0], max(stack[0].settings["threads"] for stack in stacks)
    return min(wanted(first.settings, threads, device_type(first), cores, cards), len(stacks))


def wanted(settings: Settings, threads: int, device: str, cores: int | None = None, cards: Cards = CARDS) -> int:
    """Return the number of workers, if there is enough to do. threads: of a worker; device: "cpu" or "cuda"."""
    if settings["workers"] != "auto":
        return settings["workers"]
    if device == "cuda":
        return max(1, len(cards_of(settings, cards)))
    return max(1, (cores or machine.cores()) // threads)


def worker_cards(
    stacks: Sequence[Sequence["Prepared"]],
    device_type: Callable[["Prepared"], str] = device_type,
    cards: Cards = CARDS,
) -> list[int]:
    """Return the cards that the workers of these stacks take in turn; none where there is nothing to divide: on a CPU,
    with one card, and where the key `device` names one."""
    if not stacks or device_type(stacks[0][0]) != "cuda":
        return []
    used = cards_of(stacks[0][0].settings, cards)
    return used if len(used) > 1 else []
