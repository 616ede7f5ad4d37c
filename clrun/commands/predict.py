"""The command `clrun-predict RUN_DIR PICTURE ...`: the final network of a run classifies pictures.

The run must have kept its checkpoint (keep_checkpoint=true). Its data set is read again, because the checkpoint belongs
to that data and the tasks are made from it. The output is a CSV: file, class, probability (softmax over the outputs
that may answer).
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from clrun import __version__
from clrun.commands import console
from clrun.config.catalog import GROUPS, parse, with_folder
from clrun.config.check_values import check
from clrun.config.settings import Settings
from clrun.system.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from clrun.data.decoding import Whites
    from clrun.runs.checkpoint import Checkpoint
    from clrun.runs.prepared import Prepared


def main() -> NoReturn:
    """Run the console script `clrun-predict`."""
    console.end_with(lambda _: command(sys.argv[1:]))


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    flags = console.Parser(
        prog="clrun-predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--version", action="version", version=f"clrun {__version__}")
    flags.add_argument("run", type=Path, metavar="RUN_DIR", help="outputs/runs/<strategy>/<run>")
    flags.add_argument("pictures", nargs="+", metavar="PICTURE")
    flags.add_argument("--task", type=int, help="number of the task, from 1, where the answer depends on it")
    flags.add_argument("--data-dir", help="folder of the run's data set, if it is not where it was")
    flags.add_argument("--config-dir", type=Path, help="folder of your own strategy, if the run's is one")
    return flags


def command(argv: Sequence[str]) -> None:
    """Print the class of every picture. Raise UsageError if there is no network, or a file is no picture."""
    arguments = parser().parse_args(list(argv))
    settings = settings_of(arguments.run, arguments.config_dir, arguments.data_dir)
    from clrun.runs import prepare  # torch is imported from here on

    prepared = prepare.prepare(settings)
    task = chosen_task(prepared, arguments.task)
    answers = classify(prepared, arguments.run, arguments.pictures, task)
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(["file", "class", "probability"])
    table.writerows([path, name, f"{p:.4f}"] for path, (name, p) in zip(arguments.pictures, answers, strict=True))


def settings_of(directory: Path, config_dir: Path | None, data_dir: str | None) -> Settings:
    """Return the settings of the run in a directory, from its config.yaml. Raise UsageError if they cannot be used."""
    from omegaconf import OmegaConf

    config = config_of(directory)
    catalog = with_folder(config_dir)
    if config["strategy"] not in catalog.options["strategy"]:
        raise UsageError(
            f"{directory}: strategy={config['strategy']} is none of clrun's; name your own folder with --config-dir."
        )
    config.pop("source", None)
    config |= {"strategy": {"name": config["strategy"]}, "device": "auto", "data_dir": data_dir or config["data_dir"]}
    if data_dir is not None and "root" in config["dataset"]:
        config["dataset"]["root"] = data_dir
    for group in GROUPS:
        for key in ("source", "weights_source"):  # they are read from the code and the files that are there now
            config[group].pop(key, None)
        config[group] = catalog.stated.get(f"{group}/{config[group]['name']}", {}) | config[group]
    try:
        return check(OmegaConf.create(config | {"knobs": catalog.stated["knobs"]}), catalog=catalog)
    except UsageError as error:
        raise UsageError(f"{directory / 'config.yaml'}: {error}") from None


def config_of(directory: Path) -> dict[str, Any]:
    """Return the content of a run's config.yaml. Raise UsageError if there is none, or if it is not that of a run."""
    path = directory / "config.yaml"
    if not path.is_file():
        raise UsageError(f"{directory} is not the directory of a run: there is no config.yaml in it.")
    config = parse(path)
    groups = [group for group in GROUPS if group != "strategy"]
    missing = [group for group in groups if not isinstance(config.get(group), dict) or "name" not in config[group]]
    missing += [group for group in groups if group not in missing and not isinstance(config[group]["name"], str)]
    missing += [key for key in ("strategy", "data_dir") if key not in config]
    missing += [] if isinstance(config.get("strategy"), str) else ["the name of a strategy"]
    if missing:
        raise UsageError(f"{path} does not say what a run's does ({missing[0]} is not there); was it written by clrun?")
    return config


def chosen_task(prepared: "Prepared", typed: int | None) -> int:
    """Return the number of the task, from 0.

    Raise UsageError if there is no such task, or if the answer depends on the task and none was typed.
    """
    settings, tasks = prepared.settings, len(prepared.stream.test)
    if typed is not None and not 1 <= typed <= tasks:
        raise UsageError(f"--task {typed}: the run has tasks 1 to {tasks}.")
    matters = settings["scenario"] == "task" or settings["split"] != "classes" or settings.needs_task_id
    if typed is None and matters and tasks > 1:
        raise UsageError(
            f"scenario={settings['scenario']} split={settings['split']} strategy={settings['strategy']}: the answer "
            f"depends on the task; say which one of 1 to {tasks} the pictures belong to, as in --task 1."
        )
    return (typed or 1) - 1


def classify(prepared: "Prepared", directory: Path, paths: Sequence[str], task: int) -> list[tuple[str, float]]:
    """Return (class, probability) of every picture. Raise UsageError."""
    import torch

    from clrun.engine.evaluation import deployed_logits
    from clrun.runs import checkpointer
    from clrun.runs.build import build

    saved = final_checkpoint(prepared, directory)
    stack = build([prepared])
    state = checkpointer.restore_run(stack, [saved])
    data, device = stack.strategy.data, stack.device
    whites = None if prepared.images.folder is None else prepared.images.folder.whites
    x = pictures(paths, tuple(data.images.shape[1:]), prepared.settings["dataset.pad"], whites)
    # the pictures take the place of the data set's images: picture i in task t is row i + n * t
    data = replace(data, images=x.to(device), labels=torch.zeros(len(x), dtype=torch.long, device=device))
    rows = torch.arange(len(x), device=device) + len(x) * task
    seen = torch.tensor(data.tasks - 1, device=device)
    logits, _ = deployed_logits(replace(stack.strategy, data=data), state, stack.hp, stack.tables, rows, seen)
    probability, output = logits.softmax(-1).max(-1)
    return [(prepared.stream.names[o], p) for o, p in zip(output.tolist(), probability.tolist(), strict=True)]


def final_checkpoint(prepared: "Prepared", directory: Path) -> "Checkpoint":
    """Return the checkpoint of a finished run. Raise UsageError if there is none, or if the run diverged."""
    from clrun.results import run_files
    from clrun.results.outcome import RunStatus
    from clrun.runs import checkpoint
    from clrun.runs.changed_pictures import since

    try:
        saved = checkpoint.read(directory, prepared.id)
    except checkpoint.InvalidCheckpoint as error:
        changes = ", ".join(since(prepared, directory))
        changed = f" The pictures have changed since: {changes}." if changes else ""
        raise UsageError(f"{directory / checkpoint.NAME} cannot be used: {error}.{changed}") from None
    finished = run_files.finished(directory)
    if finished and run_files.read_summary(directory / "summary.csv").at[0, "status"] == RunStatus.DIVERGED:
        raise UsageError(f"{directory}: this run diverged, so there is no network to answer with; name another run.")
    if saved is None or saved.position.stage < len(prepared.stream.train):
        raise UsageError(
            f"{directory} has no final checkpoint: type the run's command again with rerun=true keep_checkpoint=true."
        )
    return saved


def pictures(paths: Sequence[str], shape: tuple[int, ...], pad: int, whites: "Whites | None" = None) -> "Tensor":
    """Return pictures of the data set's shape (C, H, W) as (N, C, H, W) uint8.

    They are resized, cropped and padded as the data set's images are, and grey where those are. whites: what becomes
    white in pictures of more than 8 bits. Raise UsageError for a file that is no picture, and where images are not
    square.
    """
    import numpy as np
    import torch
    from PIL import Image

    from clrun.data.decoding import decode
    from clrun.data.samples import refuse_unless_pictures

    refuse_unless_pictures(shape, "clrun-predict", "name a run that was trained on pictures")
    channels, height, width = shape
    if height != width:
        raise UsageError(
            f"the run's pictures are of {width} x {height} pixels; only square ones can be read from files."
        )
    decoded = [decode(path, height - 2 * pad, whites) for path in paths]
    if channels == 1:
        decoded = [np.asarray(Image.fromarray(x.transpose(1, 2, 0)).convert("L"))[None] for x in decoded]
    return torch.nn.functional.pad(torch.from_numpy(np.stack(decoded)), (pad, pad, pad, pad))


if __name__ == "__main__":
    main()
