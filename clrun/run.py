"""One run from its settings to its files: load, check, train, write."""

import errno
import importlib
import keyword
import resource
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clrun import checkpoint, lock, models, results, terminal
from clrun.config import Settings
from clrun.datasets import Images, load
from clrun.engine import Budget, Half, Report, Run, Stack, Trouble
from clrun.errors import RunsFailed, UsageError
from clrun.models import Net, Network, Statistics
from clrun.optimizers import Optimizer
from clrun.strategy import Strategy
from clrun.stream import Data, Hand, draw_hand, generator, place
from clrun.theta import Layout

AUTOCAST = {"float32": None, "tf32": None, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Prepared:
    """A run that could start: everything that can be refused has been looked at, nothing has been written."""

    settings: Settings
    images: Images
    hand: Hand
    strategy: type[Strategy]

    @property
    def id(self) -> str:
        return self.settings.identity(self.images.fingerprint)

    @property
    def directory(self) -> Path:
        return self.settings.directory(self.images.fingerprint)

    @property
    def finished(self) -> bool:
        return results.finished(self.directory)

    @property
    def chance(self) -> float:
        """Accuracy of guessing among the outputs that may answer at the end, mean over tasks."""
        return (1 / self.hand.deal.active[-1].sum(-1)).mean().item()


def prepare(settings: Settings) -> Prepared:
    """Load the data and look at everything that depends on it. Raises UsageError; writes nothing."""
    strategy = strategy_class(settings)
    images = loaded(tuple(data_settings(settings).items()))
    hand = draw_hand(images, settings)
    refuse_single(hand, settings)
    network = born(settings, images.x.shape[1:], len(hand.names))
    objection = strategy.objection(network, settings["optimizer.name"], settings.knobs)
    if objection is not None:
        raise UsageError(f"strategy={settings['strategy']}: {objection}")
    return Prepared(settings, images, hand, strategy)


def data_settings(settings: Settings) -> dict[str, Any]:
    """What the images depend on."""
    return {k: v for k, v in settings.values.items() if k in ("dataset", "data_dir") or k.startswith("dataset.")}


@lru_cache(maxsize=1)
def loaded(settings: tuple[tuple[str, Any], ...]) -> Images:
    """A sweep loads its data once."""
    return load(dict(settings))


def named_class(settings: Settings, group: str, kind: type) -> type:
    """The class that the yaml of a strategy, model or optimiser names. UsageError if there is none of that kind."""
    module, _, name = settings.targets[group].rpartition(".")
    chosen = settings.values.get(group, settings.values.get(f"{group}.name"))
    where = f"{group}={chosen}: its yaml says _target_: {settings.targets[group]}"
    if "" not in sys.path:  # it may lie beside the user's own files
        sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{where}, but there is no module {error.name}; is it spelt right and on PYTHONPATH?"
        ) from None
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise UsageError(f"{where}, which is not a subclass of {kind.__module__}.{kind.__name__}; name one that is.")
    return found


def strategy_class(settings: Settings) -> type[Strategy]:
    """The strategy's class. UsageError if there is none, or if it does not read its yaml's knobs."""
    found = named_class(settings, "strategy", Strategy)
    refuse_unclaimed(found, settings)
    return found


def spelling(knob: str) -> str:
    """A knob's name in Python: `lambda` is `lambda_`."""
    return f"{knob}_" if keyword.iskeyword(knob) else knob


def refuse_unclaimed(strategy: type[Strategy], settings: Settings) -> None:
    """A knob that neither Hyper nor a field reads would be silently without effect."""
    read = {*strategy.Hyper._fields, *(f.name for f in fields(strategy))}
    reserved = [knob for knob in settings.knobs if knob in (*results.HEAD, *results.TAIL, "stream")]
    if reserved:
        raise UsageError(
            f"strategy={settings['strategy']}: its yaml has a knob named {reserved[0]}, "
            "which is a column of summary.csv; give it another name."
        )
    idle = [knob for knob in settings.knobs if spelling(knob) not in read]
    unset = [name for name in strategy.Hyper._fields if name not in map(spelling, settings.knobs)]
    if idle or unset:
        raise UsageError(
            f"strategy={settings['strategy']}: the knobs of its yaml and the class {settings.target} do not match: "
            f"{', '.join(idle + unset)} must stand both in the yaml's knobs and in the class or its Hyper."
        )


def refuse_single(hand: Hand, settings: Settings) -> None:
    """Batch norm cannot normalise a batch of one."""
    if settings.values.get("model.norm") != "batch" or settings["drop_last"]:
        return
    for task, pool in enumerate(hand.train, 1):
        if len(pool) % settings["batch_size"] == 1:
            raise UsageError(
                f"model.norm=batch with batch_size={settings['batch_size']} leaves task {task} a last batch of one "
                "picture, which batch norm cannot normalise; type drop_last=true, or another batch_size."
            )


# ---------------------------------------------------------------- building


def resolve_device(asked: str) -> torch.device:
    return torch.device("cuda" if asked == "auto" and torch.cuda.is_available() else asked.replace("auto", "cpu"))


def born(settings: Settings, shape: Sequence[int], outputs: int, stage: int = 0) -> Network:
    """The run's network; a strategy that starts afresh gets another at every stage."""
    own = {k.removeprefix("model."): v for k, v in settings.values.items() if k.startswith("model.")}
    scheme = own.pop("init", "torch")
    seed = settings["seed"] if stage == 0 else generator(settings["seed"], f"birth {stage}").initial_seed()
    kind = named_class(settings, "model", Network)
    return models.born(seed, kind, scheme, inputs=shape, outputs=outputs, **own)


def birth(
    prepared: Prepared, layout: Layout, data: Data, dtype: torch.dtype
) -> Callable[[int], tuple[Tensor, Statistics]]:
    """stage -> theta (P,), statistics."""

    def fresh(stage: int) -> tuple[Tensor, Statistics]:
        network = born(prepared.settings, prepared.images.x.shape[1:], data.outputs, stage)
        pieces = network.parameters() | added(prepared, network, data.tasks)
        statistics = {name: v.to(dtype) for name, v in network.statistics().items()}
        return layout.flat(pieces).to(dtype), statistics

    return fresh


def added(prepared: Prepared, network: Network, tasks: int) -> dict[str, Tensor]:
    """What the strategy adds to theta, drawn from a generator of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(prepared.settings["seed"], "added").initial_seed())
        return prepared.strategy.trainables(network, tasks, prepared.settings.knobs)


def hyper(strategy: type[Strategy], settings: Sequence[Settings], device: torch.device, dtype: torch.dtype) -> Any:
    """Hyper with leaves (R,)."""
    knobs = [{spelling(k): v for k, v in s.knobs.items()} for s in settings]
    return strategy.Hyper(
        *(torch.tensor([float(k[f]) for k in knobs], dtype=dtype, device=device) for f in strategy.Hyper._fields)
    )


def build(stack: Sequence[Prepared], dtype: torch.dtype = torch.float32) -> Stack:
    """R prepared runs that differ in values only -> the engine's stack."""
    head, settings = stack[0], stack[0].settings
    device = resolve_device(settings["device"])
    tasks, outputs = head.hand.deal.active.shape[1:]
    data = place(head.images, settings, tasks, outputs, device, dtype)
    network = born(settings, head.images.x.shape[1:], outputs)
    pieces = network.parameters() | added(head, network, tasks)
    layout = Layout({name: tuple(v.shape) for name, v in pieces.items()})
    net = Net(network, layout, autocast=AUTOCAST[settings["precision"]])
    static = {spelling(k): v for k, v in settings.knobs.items() if spelling(k) not in head.strategy.Hyper._fields}
    return Stack(
        strategy=head.strategy(net, data, **static),
        optimizer=named_class(settings, "optimizer", Optimizer)(**optimizer_settings(settings)),
        budget=Budget(settings["epochs"], settings["iterations"], settings["batch_size"], settings["drop_last"]),
        even=settings["scenario"] == "task",
        reset=settings["optimizer.reset"],
        seeds=[p.settings["seed"] for p in stack],
        hands=[p.hand for p in stack],
        hp=hyper(head.strategy, [p.settings for p in stack], device, dtype),
        lr=torch.tensor([p.settings["lr"] for p in stack], dtype=dtype, device=device),
        births=[birth(p, layout, data, dtype) for p in stack],
        evaluate_every=settings["evaluate_every"],
        validate=settings["validation"] > 0,
    )


def optimizer_settings(settings: Settings) -> dict[str, Any]:
    """What its equation reads."""
    own = {k.removeprefix("optimizer."): v for k, v in settings.values.items() if k.startswith("optimizer.")}
    return {name: v for name, v in own.items() if name not in ("name", "reset")}


def prepare_torch(settings: Settings) -> None:
    """What PyTorch keeps for the whole process."""
    torch.set_num_threads(settings["threads"])
    if torch.are_deterministic_algorithms_enabled() != settings["deterministic"]:  # the call imports the compiler
        torch.use_deterministic_algorithms(settings["deterministic"])
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = settings["precision"] == "tf32"


# ---------------------------------------------------------------- training and telling


def train(prepared: Prepared, quiet: bool = False) -> str:
    """Train one run, or what is left of it, and write its files; "done" or "diverged".

    A crash leaves failed.txt and is raised again. UsageError if another process is training it.
    """
    (status,) = train_stack([prepared], quiet)
    if status == "held":
        raise UsageError(f"{prepared.directory} is being trained by another process; wait for it, or end that one.")
    return status


def train_stack(runs: Sequence[Prepared], quiet: bool = False, progress: terminal.Progress | None = None) -> list[str]:
    """Train runs that differ in values only as one stack; the status of each: "done", "diverged", or "held" where
    another process is training it (which is said).

    A run that was interrupted goes on from its checkpoint. Runs of one stack may have got to different places; they are
    then trained as several stacks, one after another, as `regrouped` says. A crash leaves failed.txt in all runs of
    its stack and is raised again: as RunsFailed where the disk is to blame. Ctrl-C and SystemExit (a signal) write
    checkpoints first.

    progress: who is told how it goes; by default the terminal, unless quiet.
    """
    progress = progress or terminal.Progress(terminal.make_console(stderr=True, quiet=quiet), len(runs[0].hand.train))
    statuses = dict.fromkeys((one.directory for one in runs), "held")
    with disk_trouble(runs[0]), lock.claimed(list(statuses)) as claim:
        for directory, owner in claim.others.items():
            announce(f"{directory.name}: {owner} is training it; left to that one.")
        mine = [one for one in runs if one.directory in claim.mine]
        for one in mine:  # what is damaged is set aside before the runs are told apart by it
            checkpoint.find(one.directory, one.id, announce)
        for group in regrouped(mine):
            statuses |= zip([one.directory for one in group], attempt(group, progress), strict=True)
    return [statuses[one.directory] for one in runs]


def announce(line: str) -> None:
    """To standard error, whatever else is quiet."""
    print(f"clrun: {line}", file=sys.stderr, flush=True)


def regrouped(runs: Sequence[Prepared]) -> list[list[Prepared]]:
    """The runs by how far their checkpoints are: each list can be trained as one stack. Changes nothing."""
    places = [reached(one) for one in runs]
    return [[runs[r] for r in group] for group in checkpoint.grouped(places)]


def reached(prepared: Prepared) -> checkpoint.Place:
    """How far the checkpoint of a run is; the beginning where there is none to continue from."""
    try:
        place = checkpoint.place(prepared.directory, prepared.id)
    except checkpoint.Unusable:
        return checkpoint.Place()
    return checkpoint.Place() if place is None or over(prepared, place) else place


def over(prepared: Prepared, place: checkpoint.Place) -> bool:
    """Whether a checkpoint is one that a finished run has kept, from which `rerun=true` does not continue."""
    return prepared.finished and place.stage == len(prepared.hand.train)


def attempt(runs: Sequence[Prepared], progress: terminal.Progress) -> list[str]:
    """Train a stack of runs that are at one place."""
    for prepared in runs:
        results.clear_failed(prepared.directory)
    try:
        return trained(runs, progress)
    except Exception as error:
        told = traceback.format_exc()
        for prepared in runs:
            leave_reason(prepared.directory, error, told)
        raise


def leave_reason(directory: Path, error: Exception, told: str) -> None:
    """failed.txt; where even that cannot be written, a note to the error."""
    try:
        results.write_failed(directory, f"{type(error).__name__}: {error}", told)
    except OSError as second:
        error.add_note(f"{directory / 'failed.txt'} could not be written: {second}")


@contextmanager
def disk_trouble(prepared: Prepared) -> Iterator[None]:
    """An error of the disk as one paragraph: RunsFailed where it is full, UsageError where it lets nobody write."""
    try:
        yield
    except OSError as error:
        where = f"outputs={prepared.settings['outputs']}: {error.filename or prepared.directory}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            text = f"{where} could not be written: {error.strerror}. What was there is as it was; make room and type "
            raise RunsFailed(f"{text}the same command again, which continues from the last checkpoint.") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG):
            text = f"{where} cannot be written: {error.strerror}."
            raise UsageError(f"{text} Type outputs=FOLDER, of a folder that you may write to.") from error
        raise


def trained(runs: Sequence[Prepared], progress: terminal.Progress) -> list[str]:
    """Train a stack of runs that are at one place, from there to their end."""
    began = perf_counter()
    prepare_torch(runs[0].settings)
    stack = build(runs)
    outcomes = [blank(prepared, stack) for prepared in runs]
    for prepared in runs:
        results.write_config(prepared.directory, prepared.settings.nested())
    keeper = checkpoint.Keeper(
        stack, outcomes, runs[0].settings["checkpoint_every"], announce, lambda: (perf_counter() - began) / len(runs)
    )
    run = lived(stack, runs, outcomes, progress, keeper)
    confusion = stack.confusion(run, stack.horizon(stack.strategy.data.tasks - 1)).numpy()
    for r, (prepared, outcome) in enumerate(zip(runs, outcomes, strict=True)):
        outcome.confusion = confusion[r]
        conclude(outcome, prepared, len(runs), stack.state_bytes(run), (perf_counter() - began) / len(runs))
        results.write_final(outcome)
        if not prepared.settings["keep_checkpoint"]:
            checkpoint.remove(prepared.directory)
    return [outcome.status for outcome in outcomes]


def lived(
    stack: Stack,
    runs: Sequence[Prepared],
    outcomes: Sequence[results.Outcome],
    progress: terminal.Progress,
    keeper: checkpoint.Keeper,
) -> Run:
    """Train a stack from where it is to its end; a checkpoint is also written when it is interrupted."""
    with progress:
        stack.advance = progress.advance
        stack.begin = lambda stage, steps: progress.task(stage + 1, steps)
        stack.rest = keeper.block
        try:
            return follow(stack, outcomes, progress, keeper, *started(stack, runs, outcomes))
        except (KeyboardInterrupt, SystemExit):
            keeper.rescue()
            raise


def started(
    stack: Stack, runs: Sequence[Prepared], outcomes: Sequence[results.Outcome]
) -> tuple[Run, int, Half | None]:
    """Where a stack is -> run, the next stage, what has been gathered of that one: from checkpoints, or the start."""
    if reached(runs[0]) != checkpoint.Place():
        try:
            return continued(stack, runs, outcomes)
        except checkpoint.Unusable as error:
            for prepared in runs:
                checkpoint.set_aside(prepared.directory, str(error), announce)
    run = stack.born()
    enter(stack.untrained(run), outcomes)
    return run, 0, None


def continued(
    stack: Stack, runs: Sequence[Prepared], outcomes: Sequence[results.Outcome]
) -> tuple[Run, int, Half | None]:
    """As `started`, from checkpoints of one place; the outcomes know again what they knew. Raises Unusable."""
    saved = [checkpoint.read(one.directory, one.id) for one in runs]
    run, half, place = checkpoint.revived(stack, saved), checkpoint.half_of(stack, saved), saved[0].place
    stack.step = place.step
    for prepared, outcome, one in zip(runs, outcomes, saved, strict=True):
        checkpoint.recall(outcome, one.notes)
        announce(f"{prepared.directory.name} continues after {place}.")
    return run, place.stage, half


def blank(prepared: Prepared, stack: Stack) -> results.Outcome:
    """An outcome in which nothing is measured yet."""
    settings, T, fingerprint = prepared.settings, len(prepared.hand.train), prepared.images.fingerprint
    unmeasured = np.full((T + 1, T), -1)
    validate = settings["validation"] > 0
    return results.Outcome(
        directory=prepared.directory,
        run=prepared.id,
        group=settings.group(fingerprint),
        stream=settings.stream(fingerprint),
        values=settings.values,
        class_names=prepared.hand.names,
        correct=unmeasured,
        counts=np.array([len(pool) for pool in prepared.hand.test]),
        validation_correct=unmeasured.copy() if validate else None,
        validation_counts=np.array([len(pool) for pool in prepared.hand.validation]) if validate else None,
        over_training=[] if settings["evaluate_every"] else None,
        health=[],
        costs=dict.fromkeys(("train_seconds", "consolidate_seconds", "eval_seconds", "wall_seconds", "samples"), 0.0),
        warnings=standing_warnings(settings),
        forward_transfer_defined=not (settings["scenario"] == "class" and settings["active"] == "seen"),
        forgetting_defined=any(stack.strategy.visible(stage) for stage in range(1, T)),
        task_classes=task_classes(prepared),
        device=str(stack.device),
    )


def task_classes(prepared: Prepared) -> list[list[str]] | None:
    """The classes of each task, where tasks differ by their classes."""
    if prepared.settings["split"] != "classes":
        return None
    labels, names = prepared.images.y, prepared.images.classes
    by_place = prepared.hand.deal.label
    return [
        [names[k] for k in sorted(labels[pool].unique().tolist(), key=by_place[task].tolist().__getitem__)]
        for task, pool in enumerate(prepared.hand.train)
    ]


def standing_warnings(settings: Settings) -> list[str]:
    """What is known before any training."""
    known = [settings.warns[settings["scenario"]]] if settings["scenario"] in settings.warns else []
    told = settings["task_id_at_test"] and settings["scenario"] != "task"
    return known + ["the task's number was given at test time (task_id_at_test=true)"] * told


def follow(
    stack: Stack,
    outcomes: Sequence[results.Outcome],
    progress: terminal.Progress,
    keeper: checkpoint.Keeper,
    run: Run,
    first: int,
    half: Half | None,
) -> Run:
    """Train stage after stage, writing what is known after each; stop when every run has diverged."""
    keeper.start(run, first, half)
    for stage in range(first, stack.strategy.data.tasks):
        if all(outcome.status == "diverged" for outcome in outcomes):
            break
        run, report = stack.learn(run, stage, half)
        half = None
        enter(report, outcomes)
        keeper.task(run, stage + 1)
        rows = [outcome.accuracy[stage + 1, : stage + 1] for outcome in outcomes if outcome.status != "diverged"]
        if rows:
            progress.end_task(stage + 1, np.mean(rows, 0))
    return run


def enter(report: Report, outcomes: Sequence[results.Outcome]) -> None:
    """What a stage was like for each run that is still alive, into its outcome and its files."""
    for r, outcome in enumerate(outcomes):
        if outcome.status == "diverged":
            continue
        if report.stage >= 0:
            outcome.health.append({"task": report.stage + 1} | report.health[r])
            name_trouble(outcome, report.trouble[r], report.stage + 1)
        charge(outcome, report)
        if outcome.status != "diverged":
            note(outcome, report, r)
        results.write_progress(outcome)


def name_trouble(outcome: results.Outcome, trouble: Trouble | None, task: int) -> None:
    """Mark a run in which something was no longer finite."""
    if trouble is None:
        return
    where = f"task {task} step {trouble.step}"
    if trouble.diverged:
        outcome.status, outcome.diverged_at = "diverged", where
        outcome.warnings.append(f"diverged at {where}: loss or parameters were no longer finite")
    else:
        outcome.warnings.append(f"this run stopped learning at {where}: the optimiser's state overflowed")


def note(outcome: results.Outcome, report: Report, r: int) -> None:
    """Enter what run r of a stage's report measured."""
    row = report.stage + 1
    outcome.correct[row] = report.correct[r].numpy()
    if outcome.validation_correct is not None:
        outcome.validation_correct[row] = report.validation[r].numpy()
    if outcome.over_training is not None:
        ends = dict(report.over_training) | {report.step: report.correct}
        outcome.over_training.extend(
            {"step": step, "stage": row, "eval_task": task + 1, "accuracy": right / outcome.counts[task]}
            for step, correct in ends.items()
            for task, right in enumerate(correct[r].tolist())
        )


def charge(outcome: results.Outcome, report: Report) -> None:
    """Add a stage's costs; in a stack a run's share."""
    runs = len(report.health)
    for what, seconds in report.seconds.items():
        outcome.costs[f"{what}_seconds"] += seconds / runs
    outcome.costs["samples"] += report.samples / runs


def conclude(outcome: results.Outcome, prepared: Prepared, runs: int, state_bytes: int, seconds: float) -> None:
    """Status, costs and complaints of a run that is over; of what its stack cost, its share.

    seconds: its share of this process's time; what an interrupted one has cost before is there already.
    """
    if outcome.status != "diverged":
        outcome.status = "done"
        outcome.warnings += prepared.strategy.complaints(outcome.health, prepared.settings.knobs)
    samples = outcome.costs.pop("samples")
    outcome.costs |= {
        "wall_seconds": outcome.costs["wall_seconds"] + seconds,
        "samples_per_second": samples / outcome.costs["train_seconds"] if outcome.costs["train_seconds"] > 0 else None,
        "peak_memory_mb": peak_memory() / 1e6 / runs,
        "state_mb": state_bytes / 1e6,
        "stack_size": runs,
        "threads": torch.get_num_threads(),
    }


def peak_memory() -> int:
    """Bytes: of the GPU where there is one in use, else the most that this process has held."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def show(prepared: Prepared) -> None:
    """Print the tables of a finished run."""
    settings = prepared.settings
    outputs = Path(settings["outputs"])
    results.collect(outputs)
    told = [k for k in settings.knobs if spelling(k) in prepared.strategy.Hyper._fields or k in settings.unusual]
    terminal.show(terminal.make_console(), prepared.directory, outputs, prepared.chance, told)
