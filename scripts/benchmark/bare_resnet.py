"""ResNet-18 for small pictures by torch.nn, and a loop over its steps that does nothing else."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmark.floor import Experiment, captured
from benchmark.worker import Clock

WARM = 3  # steps before the graph is captured
BLOCKS = ((1, 1, 1), (1, 1, 1), (1, 2, 2), (2, 2, 1), (2, 4, 2), (4, 4, 1), (4, 8, 2), (8, 8, 1))


class Block(nn.Module):
    """Two convolutions and what goes past them."""

    def __init__(self, a: int, b: int, stride: int):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(b, b, 3, 1, 1, bias=False), nn.BatchNorm2d(b))
        past = nn.Sequential(nn.Conv2d(a, b, 1, stride, bias=False), nn.BatchNorm2d(b))
        self.past = nn.Identity() if stride == 1 and a == b else past

    def forward(self, x: Tensor) -> Tensor:
        return (self.second(self.first(x)) + self.past(x)).relu()


def network(channels: int, width: int, outputs: int) -> nn.Module:
    stem = [nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    blocks = [Block(a * width, b * width, stride) for a, b, stride in BLOCKS]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, outputs))


def steps_of(spec: Mapping[str, Any], clock: Clock) -> int:
    """Train on all tasks and return the number of steps after the first WARM of each task, which alone are timed."""
    experiment = Experiment(spec)
    torch.manual_seed(spec["seed"])
    net = network(experiment.shape[0], spec["width"], experiment.outputs).to(spec["device"])
    cuda = spec["device"] == "cuda"
    adam = torch.optim.Adam(net.parameters(), lr=spec["lr"], fused=True, capturable=cuda)
    taken, size = 0, min(spec["batch"], min(len(task.train) for task in experiment.tasks))
    for task in experiment.tasks:
        order = task.train[torch.randperm(len(task.train), device=task.train.device)]
        batches = [rows for rows in order.repeat(WARM + 2).split(size) if len(rows) == size]
        static = batches[0].clone()

        def step(static: Tensor = static, task: Any = task) -> None:
            x, y = experiment.pictures(static, task), experiment.y.index_select(0, static)
            adam.zero_grad(set_to_none=False)
            F.cross_entropy(net(x)[:, task.lo : task.hi], y - task.lo).backward()
            adam.step()

        warm(step, cuda)
        replay = captured(step, spec["device"])
        with clock.phase("training"):
            for rows in batches:
                static.copy_(rows)
                replay()
        taken += len(batches)
    return taken


def warm(step: Any, cuda: bool) -> None:
    """Take WARM steps, on a stream of their own where a graph will be captured."""
    aside = torch.cuda.Stream() if cuda else None
    if aside is not None:
        aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM):
            step()
    if aside is not None:
        torch.cuda.current_stream().wait_stream(aside)
