"""Weights & Biases: runs of the project `clrun`, online or, with WANDB_MODE=offline, in outputs/wandb.

The variables of W&B say the rest: WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE, WANDB_DIR.
"""

import os
from collections.abc import Mapping, Sequence
from uuid import uuid4

import wandb
from matplotlib.figure import Figure

from clrun.loggers.pictures import pixels
from clrun.loggers.points import Point
from clrun.loggers.sink import Identity

PROJECT = "clrun"

CURVES = {"task": ("accuracy/*", "health/*", "costs/*", "pictures/*"), "step": ("accuracy_within_tasks/*",)}


class WeightsAndBiases:
    """A run of W&B's."""

    def __init__(self, identity: Identity, key: str | None) -> None:
        self.key = key or f"{identity.run}-{uuid4().hex[:6]}"  # a run that begins anew is another one there
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=self.key,
            name=identity.name,
            group=identity.group,
            config=dict(identity.settings),
            dir=os.environ.get("WANDB_DIR", str(identity.outputs)),
            resume="allow",
            reinit="create_new",  # those of a stack are open at once
            settings=wandb.Settings(silent=True, console="off"),
        )
        for axis, names in CURVES.items():
            self.run.define_metric(axis, hidden=True)
            for name in names:
                self.run.define_metric(name, step_metric=axis)

    def points(self, points: Sequence[Point]) -> None:
        lines: dict[tuple[str, int], dict[str, float]] = {}
        for point in points:
            lines.setdefault((point.axis, point.x), {point.axis: point.x})[point.name] = point.value
        for line in lines.values():
            self.run.log(line)

    def picture(self, name: str, figure: Figure, task: int) -> None:
        self.run.log({"task": task, f"pictures/{name}": wandb.Image(pixels(figure))})

    def end(self, status: str, summary: Mapping[str, float]) -> None:
        self.run.summary.update({**summary, "status": status})
        self.run.finish(exit_code=0 if status == "done" else 1)

    def pause(self) -> None:
        self.run.finish(exit_code=1)


def opened(identity: Identity, key: str | None) -> WeightsAndBiases:
    """Return the sink of a run."""
    return WeightsAndBiases(identity, key)
