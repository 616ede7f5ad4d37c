"""What is measured: each workload as overrides for clrun, and the same as plain numbers for the others."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from clrun.config import composition
from clrun.config.settings import Settings
from clrun.data import split

EWC = ("strategy=ewc", "lambda=1000")
SPLIT = ("dataset=mnist", "dataset.normalize=false", "split=classes", "split.order=fixed", "tasks=5")
PERMUTED = ("dataset=mnist", "dataset.normalize=false", "split=permuted", "tasks=10", "scenario=domain")
ADAM = ("optimizer=adam", "lr=0.001", "batch_size=128", "epochs=1")
WIDE, NARROW = "model.widths=[400,400]", "model.widths=[100,100]"


@dataclass(frozen=True)
class Workload:
    """pictures: (training, test) that are kept of MNIST, the first ones; None: all. kind: which data it needs."""

    name: str
    about: str
    overrides: tuple[str, ...]
    kind: str = "mnist"
    pictures: tuple[int, int] | None = None
    peer_lambda: Mapping[str, float] = field(default_factory=dict)  # of the peer's own Fisher
    peers: tuple[str, ...] = ()


LAMBDAS = {"avalanche": 1e5, "clarena": 1e6}  # of the square of a batch's mean gradient, which is far smaller
PEERS = ("avalanche", "avalanche-tensors", "clarena")

W1 = Workload(
    "W1", "EWC on Split MNIST, task-incremental, 784-400-400", (*SPLIT, "scenario=task", *EWC, *ADAM, WIDE),
    peer_lambda=LAMBDAS, peers=PEERS,
)  # fmt: skip
SINGLE = {
    "W0": Workload(
        "W0", "the default run: EWC on scikit-learn's digits, 64-100-100, batch 32, 100 epochs",
        ("split.order=fixed",), kind="digits",
    ),
    "W1": W1,
    "W1-100": Workload(
        "W1-100", "W1 with 784-100-100", (*SPLIT, "scenario=task", *EWC, *ADAM, NARROW),
    ),
    "W2": Workload(
        "W2", "EWC on Permuted MNIST, 10 tasks, domain-incremental, 784-400-400, the first 6,000 and 1,000 pictures",
        (*PERMUTED, "strategy=ewc", "lambda=10", *ADAM, WIDE), pictures=(6000, 1000),
        peer_lambda={"avalanche": 1e4}, peers=("avalanche", "avalanche-tensors"),
    ),
    "W3": Workload(
        "W3", "experience replay, 500 samples, on Split MNIST, class-incremental, 784-400-400",
        (*SPLIT, "scenario=class", "strategy=er", "memory_size=500", *ADAM, WIDE),
        peers=("avalanche", "avalanche-tensors"),
    ),
    "W5": Workload(
        "W5", "EWC with clrun's cnn (two 3 x 3 convolutions of 16 and 32 channels, 128 hidden units) on drawn pictures "
        "of 32 x 32 x 3, 5 tasks of 2 classes, 3,000 and 600 pictures",
        ("dataset=image_folder", "dataset.size=32", "dataset.normalize=false", "split=classes", "split.order=fixed",
         "tasks=5", "scenario=task", *EWC, *ADAM, "model=cnn", "model.width=16"),
        kind="pictures", pictures=(3000, 600), peer_lambda=LAMBDAS, peers=("avalanche-tensors",),
    ),
}  # fmt: skip
RESNET = Workload(
    "resnet",
    "ResNet-18 with batch norm on drawn pictures of 32 x 32 x 3, 5 tasks of 2 classes, 3,000 and 600 pictures",
    ("dataset=image_folder", "dataset.size=32", "dataset.normalize=false", "split=classes", "split.order=fixed",
     "tasks=5", "scenario=task", "strategy=finetune", *ADAM, "model=resnet18", "model.width=64", "model.norm=batch"),
    kind="pictures", pictures=(3000, 600),
)  # fmt: skip
WIDTHS = (100, 200, 400, 800, 1600)


def of_width(width: int) -> Workload:
    """W6: how time grows with parameters."""
    overrides = (*SPLIT, "scenario=task", *EWC, *ADAM, f"model.widths=[{width},{width}]")
    return Workload(f"W6 width {width}", f"W1 with 784-{width}-{width}", overrides, pictures=(3000, 500))


SWEEP = Workload(
    "W4", "a sweep of W1 over 4 lambdas x 8 seeds, the first 6,000 and 1,000 pictures, start-up included",
    W1.overrides, pictures=(6000, 1000), peer_lambda=LAMBDAS, peers=PEERS,
)  # fmt: skip
SWEEP_LAMBDAS, SWEEP_SEEDS = (10.0, 100.0, 1000.0, 10000.0), range(8)


def permuted(tasks: int) -> Workload:
    """W6: how time and memory grow with tasks."""
    overrides = (*PERMUTED[:3], f"tasks={tasks}", "scenario=domain", *EWC, "fisher_samples=256", *ADAM, WIDE)
    return Workload(f"W6 {tasks} tasks", f"EWC on {tasks} tasks of Permuted MNIST", overrides, pictures=(2560, 100))


def settings_of(workload: Workload, places: Mapping[str, str], seed: int = 0, device: str = "cpu") -> Settings:
    """places: keys that say where the data lie."""
    where = [f"{key}={value}" for key, value in places.items()]
    return composition.compose(*workload.overrides, *where, f"seed={seed}", f"device={device}", "threads=1")


def overrides_of(workload: Workload, places: Mapping[str, str], seed: int, device: str) -> list[str]:
    where = [f"{key}={value}" for key, value in places.items()]
    return [*workload.overrides, *where, f"seed={seed}", f"device={device}", "threads=1"]


def spec_of(workload: Workload, settings: Settings, classes: list[str], file: str) -> dict[str, Any]:
    """What the floor and the peers are told: plain numbers, from clrun's own checked settings.

    file: an .npz with x (N, C, H, W) uint8, y (N,) int64 and train, the number of training pictures in front.
    """
    by_class = settings["split"] == "classes"
    values = settings.values
    return {
        "file": file,
        "data_dir": settings["data_dir"],
        "dataset": settings["dataset"],
        "split": settings["split"],
        "scenario": settings["scenario"],
        "tasks": settings["tasks"],
        "groups": split.assign_classes(classes, settings) if by_class else [list(range(len(classes)))],
        "normalize": settings["dataset.normalize"],
        "strategy": settings["strategy"],
        "lambda": values.get("lambda", 0.0),
        "peer_lambda": dict(workload.peer_lambda),
        "memory": values.get("memory_size", 0),
        "model": settings["model"],
        "widths": values.get("model.widths"),
        "width": values.get("model.width"),
        "lr": settings["lr"],
        "batch": settings["batch_size"],
        "epochs": settings["epochs"],
        "seed": settings["seed"],
        "device": settings["device"],
    }
