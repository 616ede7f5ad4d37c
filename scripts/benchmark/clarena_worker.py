"""CLArena (clarena 1.1.0) as a process; see worker.py. Runs in the peer's environment.

Its own pipeline CLMainExperiment, from the configuration that its documentation describes: accuracy as the only metric,
Lightning's CSV logger, no progress bar, no checkpoint, no validation. It has neither domain-incremental streams nor
plain experience replay, and it evaluates the tasks seen so far.
"""

from collections.abc import Mapping
from typing import Any

from benchmark.worker import Answer, Clock, one_thread, serve


def run(spec: Mapping[str, Any]) -> Answer:
    """A whole run in an empty folder."""
    import logging
    import tempfile
    import warnings

    import torch
    from clarena.pipelines import CLMainExperiment
    from omegaconf import OmegaConf

    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    clock = Clock(torch.cuda.synchronize if spec["device"] == "cuda" else lambda: None)
    with tempfile.TemporaryDirectory(prefix="clarena-bench-") as folder, watched(clock):
        experiment = CLMainExperiment(OmegaConf.create(configuration(spec, folder)))
        with clock.phase("whole"):
            experiment.run()
        matrix = accuracies(f"{folder}/acc.csv", spec["tasks"])
    apart(clock.phases)
    told = f"lambda={spec['peer_lambda']['clarena']:g} of its own Fisher (squares of mean gradients of batches)"
    return {"matrix": matrix, "phases": clock.phases, "note": f"{told}; evaluates the tasks seen so far"}


def apart(phases: dict[str, list[float]]) -> None:
    """What happens inside fit() and test() is taken out of them, and reading the data, as everywhere, of the whole."""
    loads = {"training": phases.pop("load for fit"), "evaluation": phases.pop("load for test")}
    phases["load"] = [sum(parts) for parts in zip(*loads.values(), strict=True)]
    for i in (0, 1):
        phases["training"][i] -= phases["consolidation"][i] + loads["training"][i]
        phases["evaluation"][i] -= loads["evaluation"][i]
        phases["whole"][i] -= phases["load"][i]


def configuration(spec: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """The fields that it requires; `global_seed` must not be 0."""
    *before, last = spec["widths"]
    return {
        "pipeline": "CL_MAIN_EXPR", "expr_name": "bench", "cl_paradigm": "TIL", "train_tasks": spec["tasks"],
        "eval_after_tasks": spec["tasks"], "global_seed": spec["seed"] + 1, "output_dir": folder, "misc": {"none": 1},
        "cl_dataset": {
            "_target_": "clarena.cl_datasets.SplitMNIST", "root": spec["data_dir"], "validation_percentage": 0.0,
            "class_split": {t: list(group) for t, group in enumerate(spec["groups"], 1)}, "batch_size": spec["batch"],
            "num_workers": 0,
        },
        "backbone": {
            "_target_": "clarena.backbones.CLMLP", "input_dim": 784, "hidden_dims": before, "output_dim": last,
        },
        "cl_algorithm": {
            "_target_": "clarena.cl_algorithms.EWC", "parameter_change_reg_factor": spec["peer_lambda"]["clarena"],
            "when_calculate_fisher_information": "train_end",
        },
        "optimizer": {"_target_": "torch.optim.Adam", "_partial_": True, "lr": spec["lr"]},
        "lr_scheduler": {  # without one it fails
            "_target_": "torch.optim.lr_scheduler.ConstantLR", "_partial_": True, "factor": 1.0,
        },
        "trainer": {
            "_target_": "lightning.Trainer", "max_epochs": spec["epochs"], "default_root_dir": folder, "devices": 1,
            "accelerator": "gpu" if spec["device"] == "cuda" else "cpu", "enable_progress_bar": False,
            "enable_model_summary": False, "enable_checkpointing": False, "num_sanity_val_steps": 0,
            "limit_val_batches": 0,
        },
        "metrics": [{"_target_": "clarena.metrics.CLAccuracy", "save_dir": folder}],
        "lightning_loggers": {"csv": {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": folder}},
        "callbacks": [{"_target_": "lightning.pytorch.callbacks.Timer"}],
    }  # fmt: skip


def watched(clock: Clock):
    """While it is open, Lightning's fit and test, EWC's Fisher and the reading of data are charged to the clock."""
    from contextlib import ExitStack
    from unittest.mock import patch

    from clarena.cl_algorithms import EWC
    from clarena.cl_datasets import SplitMNIST
    from lightning import Trainer

    read = SplitMNIST.setup

    def setup(dataset, stage):
        with clock.phase("load for fit" if stage == "fit" else "load for test"):  # stage is an enumeration
            read(dataset, stage)

    watching = ExitStack()
    watching.enter_context(patch.object(SplitMNIST, "setup", setup))
    for owner, method, phase in (
        (Trainer, "fit", "training"), (Trainer, "test", "evaluation"), (EWC, "on_train_end", "consolidation"),
    ):  # fmt: skip
        watching.enter_context(patch.object(owner, method, timed(clock, phase, getattr(owner, method))))
    return watching


def timed(clock: Clock, phase: str, method):
    """A function, so that it is still a method."""

    def inner(owner, *args, **keywords):
        with clock.phase(phase):
            method(owner, *args, **keywords)
        if phase == "training":
            clock.count(phase, owner.global_step)

    return inner


def accuracies(path: str, tasks: int) -> list[list[float]]:
    """Its ragged CSV as a matrix; 0 for what it has not evaluated."""
    with open(path) as file:
        lines = [line.strip().split(",") for line in file if line.strip()][1:]
    rows = [[float(cell) for cell in line[2:] if cell] for line in lines]
    return [row + [0.0] * (tasks - len(row)) for row in rows]


if __name__ == "__main__":
    one_thread()
    serve(run)
