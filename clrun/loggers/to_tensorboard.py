"""TensorBoard: event files in outputs/tensorboard/<strategy>/<run>, which `tensorboard --logdir` shows."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from clrun.loggers.pictures import pixels
from clrun.loggers.points import Point
from clrun.loggers.sink import Identity

EVENTS = "events.out.tfevents.*"  # the files of TensorBoard


class TensorBoard:
    """The event files of one run."""

    def __init__(self, identity: Identity, key: str | None) -> None:
        self.identity = identity
        folder = identity.outputs / "tensorboard" / identity.place
        self.key = str(folder)
        if key is None:
            remove_events(folder)
        self.writer = SummaryWriter(self.key)
        if key is None:
            lines = [f"| {name} | {value} |" for name, value in identity.settings.items()]
            self.writer.add_text("settings", "\n".join(["| key | value |", "|---|---|", *lines]))

    def points(self, points: Sequence[Point]) -> None:
        for point in points:
            self.writer.add_scalar(point.name, point.value, point.x)
        self.writer.flush()

    def picture(self, name: str, figure: Figure, task: int) -> None:
        self.writer.add_image(name, pixels(figure), task, dataformats="HWC")

    def end(self, status: str, summary: Mapping[str, float]) -> None:
        self.writer.add_text("status", status)
        for name, value in summary.items():
            self.writer.add_scalar(f"summary/{name}", value, 0)
        settings = {name: number_or_text(value) for name, value in self.identity.settings.items()}
        self.writer.add_hparams(settings, {f"summary/{name}": value for name, value in summary.items()}, run_name=".")
        self.writer.close()

    def pause(self) -> None:
        self.writer.close()


def opened(identity: Identity, key: str | None) -> TensorBoard:
    """Return the sink of a run."""
    return TensorBoard(identity, key)


def remove_events(folder: Path) -> None:
    """Remove the event files of a run that begins anew: TensorBoard would draw the old curves and the new as one."""
    for path in folder.glob(EVENTS):
        path.unlink()


def number_or_text(value: str) -> float | str:
    """Return a value that TensorBoard can sort: a number, where it is one."""
    try:
        return float(value)
    except ValueError:
        return value
