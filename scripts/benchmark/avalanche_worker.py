"""Avalanche (avalanche-lib 0.6.0) as a process; see worker.py. Runs in the peer's environment.

Two variants: `avalanche` reads MNIST through Avalanche's own benchmarks, as its users do; `avalanche-tensors` has all
pictures as float tensors in memory, which is the best that its data loaders can be given. Metrics: accuracy alone, no
logger.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from benchmark.worker import Answer, Clock, one_thread, serve

EVALUATE = 1000  # test samples a pass


def run(spec: Mapping[str, Any]) -> Answer:
    """A whole run."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(spec["seed"])
    clock, matrix = Clock(torch.cuda.synchronize if spec["device"] == "cuda" else lambda: None), []
    with clock.phase("load"):
        stream = benchmark(spec)
    with clock.phase("whole"), consolidation_timed(clock):
        strategy = made(spec)
        for experience in stream.train_stream:
            with clock.phase("training"):
                strategy.train(experience, num_workers=0)
            clock.count("training", -(-len(experience.dataset) // spec["batch"]) * spec["epochs"])
            with clock.phase("evaluation"):
                measured = strategy.eval(stream.test_stream, num_workers=0)
            matrix.append([v for name, v in sorted(measured.items()) if name.startswith("Top1_Acc_Exp/")])
    for i in (0, 1):  # it happens inside train()
        clock.phases["training"][i] -= clock.phases.get("consolidation", (0, 0))[i]
    return {"matrix": matrix, "phases": clock.phases, "note": note(spec)}


def growth(spec: Mapping[str, Any]) -> Answer:
    """W6: the time of a step of task 2 and of the last, and what the process weighs; nothing is evaluated."""
    import resource
    import sys

    import torch

    torch.set_num_threads(1)
    torch.manual_seed(spec["seed"])
    clock, stream, strategy = Clock(), benchmark(spec), made(spec)
    with consolidation_timed(clock):
        for number, experience in enumerate(stream.train_stream, 1):
            name, before = f"step of task {number}", clock.phases.get("consolidation", [0, 0])[:2]
            with clock.phase(name):
                strategy.train(experience, num_workers=0)
            clock.count(name, -(-len(experience.dataset) // spec["batch"]))
            for i in (0, 1):
                clock.phases[name][i] -= clock.phases["consolidation"][i] - before[i]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    return {
        "phases": {f"step of task {n}": clock.phases[f"step of task {n}"] for n in (2, spec["tasks"])},
        "mb": memory,
    }


def note(spec: Mapping[str, Any]) -> str | None:
    if spec["strategy"] != "ewc":
        return "the memory is filled at a task's end, balanced over tasks"
    return f"lambda={spec['peer_lambda']['avalanche']:g} of its own Fisher (squares of mean gradients of batches)"


def consolidation_timed(clock: Clock):
    from unittest.mock import patch

    from avalanche.training.plugins import EWCPlugin

    plain = EWCPlugin.after_training_exp

    def after_training_exp(plugin, strategy, **kwargs):
        with clock.phase("consolidation"):
            plain(plugin, strategy, **kwargs)
        clock.count("consolidation", len(strategy.experience.dataset))

    return patch.object(EWCPlugin, "after_training_exp", after_training_exp)


# ---------------------------------------------------------------- data


def benchmark(spec: Mapping[str, Any]):
    """Avalanche's own where it has one."""
    if spec["variant"] == "avalanche-tensors":
        return of_tensors(spec)
    from avalanche.benchmarks.classic import PermutedMNIST, SplitMNIST

    plain = {"train_transform": None, "eval_transform": None, "dataset_root": spec["data_dir"]}
    if spec["split"] == "permuted":
        return PermutedMNIST(spec["tasks"], seed=spec["seed"], **plain)
    told = spec["scenario"] == "task"
    return SplitMNIST(
        spec["tasks"], return_task_id=told, class_ids_from_zero_in_each_exp=told, shuffle=False,
        fixed_class_order=[k for group in spec["groups"] for k in group], **plain,
    )  # fmt: skip


def of_tensors(spec: Mapping[str, Any]):
    """The same tasks, float32 in memory."""
    import numpy as np
    import torch
    from avalanche.benchmarks import tensors_benchmark

    with np.load(spec["file"]) as file:
        x, y, train = torch.from_numpy(file["x"]).float() / 255, torch.from_numpy(file["y"]), int(file["train"])
    parts: tuple[list, list] = ([], [])
    draw = torch.Generator().manual_seed(spec["seed"])
    for number in range(spec["tasks"]):
        for part, (px, py) in zip(parts, ((x[:train], y[:train]), (x[train:], y[train:])), strict=True):
            part.append(task(spec, number, px, py))
        if spec["split"] == "permuted":
            x = x.flatten(1)[:, torch.randperm(x[0].numel(), generator=draw)].view(x.shape)
    labels = list(range(spec["tasks"])) if spec["scenario"] == "task" else [0] * spec["tasks"]
    return tensors_benchmark(train_tensors=parts[0], test_tensors=parts[1], task_labels=labels)


def task(spec: Mapping[str, Any], number: int, x, y):
    """(x, y) of one task; labels within the task where the task is told."""
    import torch

    if spec["split"] == "permuted":
        return x, y
    group = spec["groups"][number]
    here = torch.isin(y, torch.tensor(group))
    first = group[0] if spec["scenario"] == "task" else 0
    return x[here], y[here] - first


# ---------------------------------------------------------------- network and strategy


def made(spec: Mapping[str, Any]):
    import torch
    from avalanche.evaluation.metrics import accuracy_metrics
    from avalanche.training.plugins import EvaluationPlugin
    from avalanche.training.supervised import EWC, Replay

    model = network(spec)
    common = {
        "model": model, "optimizer": torch.optim.Adam(model.parameters(), lr=spec["lr"]),
        "criterion": torch.nn.CrossEntropyLoss(), "train_mb_size": spec["batch"], "train_epochs": spec["epochs"],
        "eval_mb_size": EVALUATE, "device": spec["device"],
        "evaluator": EvaluationPlugin(accuracy_metrics(experience=True), loggers=[]),
    }  # fmt: skip
    if spec["strategy"] == "er":
        return Replay(mem_size=spec["memory"], **common)
    return EWC(ewc_lambda=spec["peer_lambda"]["avalanche"], **common)


def network(spec: Mapping[str, Any]):
    """The same layers; in the task scenario Avalanche's multi-head classifier."""
    from avalanche.models import MultiHeadClassifier, MultiTaskModule
    from torch import nn

    features, width = hidden(spec)
    if spec["scenario"] != "task":
        return nn.Sequential(features, nn.Linear(width, sum(map(len, spec["groups"]))))

    class MultiHead(MultiTaskModule):
        def __init__(self):
            super().__init__()
            self.features, self.classifier = features, MultiHeadClassifier(width, initial_out_features=2)

        def forward(self, x, task_labels):
            return self.classifier(self.features(x), task_labels)

    return MultiHead()


def hidden(spec: Mapping[str, Any]):
    """All layers but the last, and their width."""
    from torch import nn

    if spec["model"] == "mlp":
        sizes = [784, *spec["widths"]]
        pairs = [[nn.Linear(a, b), nn.ReLU()] for a, b in pairwise(sizes)]
        return nn.Sequential(nn.Flatten(), *(layer for pair in pairs for layer in pair)), sizes[-1]
    w = spec["width"]
    return nn.Sequential(
        nn.Conv2d(3, w, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(w, 2 * w, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(2 * w * 8 * 8, 8 * w), nn.ReLU(),
    ), 8 * w  # fmt: skip


if __name__ == "__main__":
    one_thread()
    serve(lambda spec: growth(spec) if spec.get("growth") else run(spec))
