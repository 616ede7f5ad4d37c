"""The refusal of a batch of one sample where batch norm cannot normalise it, before anything is trained.

A unit, or a channel of which a sample has one value, then deviates from its mean by 0. Where a method draws what it
leaves out of a task, it shows in training alone: see `clrun.engine.schedule`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from clrun.config.settings import Settings
from clrun.data.sampler import EpochSampler
from clrun.data.samples import Samples
from clrun.data.tasks import TaskStream
from clrun.engine import host_hooks
from clrun.models import Network, normalises_one_sample
from clrun.runs.build import budget, largest_batch
from clrun.strategy import Strategy
from clrun.system.errors import UsageError
from clrun.system.text import format_value


def refuse_batch_of_one(
    method: Strategy, stream: TaskStream, network: Network, images: Samples, settings: Settings
) -> None:
    """Raise UsageError where a stage has a batch of one sample that the network's batch norms cannot normalise, or
    where past samples pass through the network one at a time. method: the strategy, which needs no network."""
    if not network.has_batch_norm or normalises_one_sample(network, images.x.shape[1:]):
        return
    why = f"of which a unit or channel of model={settings['model']} has one value, which batch norm cannot normalise"
    recalls_one = host_hooks.recalls_one(method)
    if recalls_one is not None:
        key, least = recalls_one
        raise UsageError(
            f"{key}={format_value(settings.knobs.get(key))}: strategy={settings['strategy']} passes one past sample "
            f"through the network at a time, {why}; type {key}={least} or more, or a network without batch norm."
        )
    stage = first_that_leaves_one(method, stream, images, settings)
    if stage is not None:
        raise UsageError(
            f"batch_size={format_value(settings['batch_size'])} leaves task {stage + 1} a batch of one sample, {why}; "
            "type another batch_size" + (", or drop_last=true." if largest_batch(settings) > 1 else ".")
        )


def first_that_leaves_one(method: Strategy, stream: TaskStream, images: Samples, settings: Settings) -> int | None:
    """Return the first stage whose samples leave a batch of one, as far as that is known before; None: no stage's."""
    rows = [stream.rows(task, len(images.y)) for task in range(len(stream.train))]
    classes = [classes_of(part, images) for part in rows]
    for stage in range(stream.learnt, len(rows)):
        pools = trained_pools(method, stage, rows, classes, stream.learnt) if method.takes_steps(stage) else []
        even = settings["scenario"] == "task" and len(pools) > 1 and settings["passes"] is None
        sampler = EpochSampler(pools, budget(settings, stage - stream.learnt), even, settings["seed"], "")
        if pools and sampler.leaves_one:
            return stage
    return None


def trained_pools(
    method: Strategy, stage: int, rows: Sequence[Tensor], classes: Sequence[Sequence[int]], learnt: int
) -> list[Tensor]:
    """Return tensors as long as those of the samples that a stage trains on; none where that is not known before.

    rows [task] (n,), and classes [task] the numbers of samples of each class of them. learnt: tasks of a run before,
    whose state says what its memory holds.
    """
    if type(method).trained_rows is Strategy.trained_rows:
        return [rows[task] for task in method.visible(stage)]
    trained = None if learnt > 0 else host_hooks.trained_samples(method, stage, classes)
    return [] if trained is None else [torch.arange(trained)]


def classes_of(rows: Tensor, images: Samples) -> list[int]:
    """Return the numbers of samples of each class of each task at rows (n,)."""
    task, label = rows // len(images.y), images.y[rows % len(images.y)]
    return (task * len(images.classes) + label).unique(return_counts=True)[1].tolist()
