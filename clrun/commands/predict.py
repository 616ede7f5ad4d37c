"""The command `clrun-predict RUN_DIR FILE ...`: the final network of a run classifies pictures, or rows.

The network is in the run's network.safetensors (key keep_checkpoint); the run's data set is not needed. FILE is a
picture, or a folder of which all pictures are taken; or new rows for a run on arrays (.npz or .safetensors with an
array x) or on a table (.csv, .tsv or .parquet with its columns). The output is a CSV: file, class, probability (softmax
over the outputs that may answer), and the number of the row, from 1.
"""

import argparse
import csv
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from clrun import __version__
from clrun.commands import console
from clrun.config.catalog import GROUPS, NO_FEATURES, parse, with_folder
from clrun.config.check_values import check
from clrun.config.settings import Settings
from clrun.system.errors import UsageError
from clrun.system.messages import announce

if TYPE_CHECKING:
    from torch import Tensor

    from clrun.data.new_rows import Wanted
    from clrun.runs.answering import Answering, AnsweringPictures
    from clrun.runs.checkpoint import Checkpoint
    from clrun.runs.network_file import DeployedNetwork
    from clrun.runs.prepared import Prepared

# The file of a run's network: `clrun.runs.network_file.NAME`, which is not imported for refusals.
NETWORK = "network.safetensors"

# Endings of files that hold rows: `clrun.data.new_rows.SUFFIXES`, which is not imported for refusals.
ROWS = (".csv", ".tsv", ".parquet", ".npz", ".safetensors")

# Samples that are read and classified at once.
AT_ONCE = 256
AT_ONCE_BY_FEATURES = 16  # where they go through a frozen network: see clrun/models/frozen.py


def main() -> NoReturn:
    """Run the console script `clrun-predict`."""
    console.end_with(lambda _: command(sys.argv[1:]))


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    flags = console.Parser(
        prog="clrun-predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--version", action="version", version=f"clrun {__version__}")
    flags.add_argument("run", type=Path, metavar="RUN_DIR", help="outputs/runs/<strategy>/<run>, or the file in it")
    flags.add_argument("files", nargs="+", metavar="FILE", help="pictures, folders of pictures, or files of rows")
    flags.add_argument("--task", type=int, help="number of the task, from 1, where the answer depends on it")
    flags.add_argument("--top", type=int, metavar="K", help="print the K likeliest classes of each sample, by rank")
    flags.add_argument("--data-dir", help="folder of the data set of a run without network.safetensors")
    flags.add_argument("--config-dir", type=Path, help="folder of the strategy of such a run, if it is your own")
    return flags


def command(argv: Sequence[str]) -> None:
    """Print the class of every picture or row. Raise UsageError if there is no network, or a file is neither."""
    arguments = parser().parse_args(list(argv))
    if arguments.top is not None and arguments.top < 1:
        raise UsageError(f"--top {arguments.top}: type how many classes to print, at least 1.")
    rows = of_rows(arguments.files)
    paths = arguments.files if rows else picture_files(arguments.files)
    network = network_of(arguments.run, arguments.config_dir, arguments.data_dir)
    task = chosen_task(network, arguments.task)
    samples = samples_of_rows(paths, network) if rows else samples_of_pictures(paths, network)
    answer = answerer(network, task)
    table = csv.writer(sys.stdout, lineterminator="\n")
    head = ["file", *(["row"] if rows else []), *([] if arguments.top is None else ["rank"]), "class", "probability"]
    for number, (place, answers) in enumerate(classify(network, answer, samples, arguments.top or 1)):
        if number == 0:  # where no sample can be read, nothing is printed
            table.writerow(head)
        for rank, (name, probability) in enumerate(answers, 1):
            table.writerow([*place, *([] if arguments.top is None else [rank]), name, f"{probability:.4f}"])


def of_rows(typed: Sequence[str]) -> bool:
    """Return whether the files hold rows. Raise UsageError where some do and others hold pictures."""
    rows = [path for path in typed if path.lower().endswith(ROWS)]
    others = [path for path in typed if path not in rows]
    if rows and others:
        raise UsageError(f"{rows[0]} holds rows and {others[0]} does not; name files of rows alone, or pictures alone.")
    return bool(rows)


def picture_files(typed: Sequence[str]) -> list[str]:
    """Return the files to classify: those that were typed, and all pictures in and below a folder, by name. Say how
    many other files were passed over. Raise UsageError for a folder without any picture."""
    from clrun.data.decoding import SUFFIXES

    found: list[str] = []
    for path in typed:
        inside = sorted(map(str, Path(path).rglob("*"))) if os.path.isdir(path) else [path]
        pictures = [file for file in inside if file == path or file.lower().endswith(SUFFIXES)]
        if not pictures:
            raise UsageError(f"{path}: there is no picture in this folder ({', '.join(SUFFIXES)}).")
        others = sum(os.path.isfile(file) for file in inside) - len(pictures)
        if others > 0:
            passed = "one other file was" if others == 1 else f"{others} other files were"
            announce(f"{path}: {len(pictures)} pictures; {passed} passed over.")
        found += pictures
    return found


def network_of(path: Path, config_dir: Path | None, data_dir: str | None) -> "DeployedNetwork":
    """Return the network of a run. Raise UsageError if there is none, or if it cannot be used.

    A run that has only a checkpoint, as earlier versions of clrun left them, is prepared again from its data.
    """
    file = path if path.is_file() else path / NETWORK
    if not file.is_file():
        return network_of_checkpoint(path, settings_of(path, config_dir, data_dir))
    from clrun.runs import network_file  # torch is imported from here on
    from clrun.runs.checkpoint import InvalidCheckpoint

    try:
        return network_file.read(file)
    except InvalidCheckpoint as error:
        raise UsageError(f"{file} cannot be used: {error}.") from None


def settings_of(directory: Path, config_dir: Path | None, data_dir: str | None) -> Settings:
    """Return the settings of the run in a directory, from its config.yaml. Raise UsageError if they cannot be used."""
    from omegaconf import OmegaConf

    config = config_of(directory)
    catalog = with_folder(config_dir)
    names = {group: config[group] if group == "strategy" else config[group]["name"] for group in GROUPS}
    unknown = [group for group in GROUPS if names[group] not in catalog.options[group]]
    if unknown:
        where = "clrun's" if config_dir is None else f"clrun's or of {config_dir}"
        raise UsageError(
            f"{directory}: {unknown[0]}={names[unknown[0]]} is none of {where}; name your own folder with "
            f"--config-dir DIR, where {unknown[0]}/{names[unknown[0]]}.yaml is."
        )
    config.pop("source", None)
    for key in ("init_source", "init_group", "init_stream"):
        config.pop(key, None)
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
    config = {"features": {"name": NO_FEATURES}} | parse(path)  # a run without features states none
    groups = [group for group in GROUPS if group != "strategy"]
    missing = [group for group in groups if not isinstance(config.get(group), dict) or "name" not in config[group]]
    missing += [group for group in groups if group not in missing and not isinstance(config[group]["name"], str)]
    missing += [key for key in ("strategy", "data_dir") if key not in config]
    missing += [] if isinstance(config.get("strategy"), str) else ["the name of a strategy"]
    if missing:
        raise UsageError(f"{path} does not say what a run's does ({missing[0]} is not there); was it written by clrun?")
    return config


def chosen_task(network: "DeployedNetwork", typed: int | None) -> int:
    """Return the number of the task, from 0.

    Raise UsageError if there is no such task, or if the answer depends on the task and none was typed.
    """
    settings, tasks = network.settings, network.tasks
    if typed is not None and not 1 <= typed <= tasks:
        raise UsageError(f"--task {typed}: the run has tasks 1 to {tasks}.")
    matters = settings["scenario"] == "task" or settings["split"] not in ("classes", "domains")
    if typed is None and (matters or settings.needs_task_id) and tasks > 1:
        raise UsageError(
            f"scenario={settings['scenario']} split={settings['split']} strategy={settings['strategy']}: the answer "
            f"depends on the task; say which one of 1 to {tasks} the samples belong to, as in --task 1."
        )
    return (typed or 1) - 1


Place = tuple[str, ...] | tuple[str, int]  # what a sample is called: the file, and the number of the row


def answerer(network: "DeployedNetwork", task: int) -> "Answering | AnsweringPictures":
    """Return the module that answers. Raise UsageError where the network cannot be used."""
    from clrun.runs.answering import answering, report_edits
    from clrun.runs.checkpoint import InvalidCheckpoint

    try:
        report_edits(network)
        return answering(network, task)
    except InvalidCheckpoint as error:
        raise UsageError(f"the network of run {network.identity} cannot be used: {error}.") from None


def classify(
    network: "DeployedNetwork",
    answer: "Answering | AnsweringPictures",
    samples: "Iterable[tuple[list[Place], Tensor]]",
    top: int,
) -> Iterator[tuple[Place, list[tuple[str, float]]]]:
    """Yield the place of every sample with its `top` likeliest (class, probability). Raise UsageError."""
    import torch

    names = [network.names[output] for output in answer.answers]
    for places, x in samples:
        with torch.no_grad():
            likeliest = answer(x).softmax(-1).topk(min(top, len(names)))
        for place, values, outputs in zip(places, likeliest.values.tolist(), likeliest.indices.tolist(), strict=True):
            yield place, [(names[o], p) for o, p in zip(outputs, values, strict=True)]


def at_once_of(network: "DeployedNetwork") -> int:
    """Return how many samples are read and classified at once."""
    return AT_ONCE if network.features is None else AT_ONCE_BY_FEATURES


def samples_of_pictures(paths: Sequence[str], network: "DeployedNetwork") -> "Iterator[tuple[list[Place], Tensor]]":
    """Yield pictures, some at a time, with their places."""
    at_once = at_once_of(network)
    for start in range(0, len(paths), at_once):
        some = paths[start : start + at_once]
        yield [(path,) for path in some], pictures(some, network)


def samples_of_rows(paths: Sequence[str], network: "DeployedNetwork") -> "list[tuple[list[Place], Tensor]]":
    """Return the rows of all files, some at a time, with their places: a mistake in one is said before any answer."""
    import torch

    from clrun.data import new_rows

    wanted, found = wanted_rows(network), list[tuple[list[Place], "Tensor"]]()
    for path in paths:
        x = torch.from_numpy(new_rows.read(path, wanted))
        for start in range(0, len(x), at_once_of(network)):
            some = x[start : start + at_once_of(network)]
            found.append(([(path, start + i + 1) for i in range(len(some))], some))
    return found


def wanted_rows(network: "DeployedNetwork") -> "Wanted":
    """Return what the samples of a network are. Raise UsageError where a run on a table keeps no columns."""
    from clrun.data.new_rows import Wanted

    settings = network.settings
    if settings["dataset"] == "table" and not network.columns:
        raise UsageError(
            f"the network of run {network.identity} was kept by an earlier version of clrun, without the columns of "
            "its table; type the run's command again with rerun=true."
        )
    typed = (settings.get(f"dataset.{key}", None) for key in ("missing", "separator", "decimal"))
    stated = (value or default for value, default in zip(typed, ("refuse", "comma", "point"), strict=True))
    return Wanted(network.shape_of_new, network.takes_floats, network.columns, *stated)


def network_of_checkpoint(directory: Path, settings: Settings) -> "DeployedNetwork":
    """Return the network of a run from its last checkpoint. Raise UsageError if there is none, or if it diverged."""
    from clrun.results import run_files
    from clrun.results.outcome import RunStatus

    finished = run_files.finished(directory)
    if finished and run_files.read_summary(directory / "summary.csv").at[0, "status"] == RunStatus.DIVERGED:
        raise UsageError(f"{directory}: this run diverged, so there is no network to answer with; name another run.")
    import torch

    from clrun.runs import checkpoint, checkpointer, prepare
    from clrun.runs.answering import deployed
    from clrun.runs.build import build

    saved = None
    if (directory / checkpoint.NAME).is_file():
        prepared = prepare.prepare(settings)
        saved = final_checkpoint(prepared, directory)
    if saved is None:
        raise UsageError(
            f"{directory} has no network: it is not finished, its network is larger than 20 MB, or it was trained with "
            "keep_checkpoint=false; type the run's command again with rerun=true keep_checkpoint=true."
        )
    stack = build([prepared], device=torch.device("cpu"))  # where new samples are answered
    return deployed(stack, checkpointer.restore_run(stack, [saved]), 0, prepared)


def final_checkpoint(prepared: "Prepared", directory: Path) -> "Checkpoint | None":
    """Return the checkpoint of a finished run; None if it has not come to its end. Raise UsageError if it is damaged
    or belongs to other data."""
    from clrun.runs import checkpoint
    from clrun.runs.changed_pictures import since

    try:
        saved = checkpoint.read(directory, prepared.id)
    except checkpoint.InvalidCheckpoint as error:
        changes = ", ".join(since(prepared, directory))
        changed = f" The pictures have changed since: {changes}." if changes else ""
        raise UsageError(f"{directory / checkpoint.NAME} cannot be used: {error}.{changed}") from None
    return None if saved is None or saved.position.stage < len(prepared.stream.train) else saved


def pictures(paths: Sequence[str], network: "DeployedNetwork") -> "Tensor":
    """Return pictures (N, C, H, W) uint8 as the network takes them: resized, cropped and made grey as the data set's
    are. Raise UsageError for a file that is no picture, and where the network takes other samples than square pictures.
    """
    import numpy as np
    import torch
    from PIL import Image

    from clrun.data.decoding import Whites, decode
    from clrun.data.samples import refuse_unless_pictures

    instead = "name new rows in a file, .csv or .npz, or a run that was trained on pictures"
    shape = network.shape_of_new
    refuse_unless_pictures(shape, f"{paths[0]} is no file of rows: clrun-predict", instead)
    channels, height, width = shape
    if network.takes_floats:
        raise UsageError(
            "the run's data set has floats, and files have pictures; name a run that learnt pictures, or new samples "
            "in a file, new.npz with an array x."
        )
    if height != width:
        raise UsageError(
            f"the run's pictures are of {width} x {height} pixels; only square ones can be read from files."
        )
    whites = None if network.white is None else Whites(*network.white)
    decoded = [decode(path, height, whites) for path in paths]
    if channels == 1:
        decoded = [np.asarray(Image.fromarray(x.transpose(1, 2, 0)).convert("L"))[None] for x in decoded]
    return torch.from_numpy(np.stack(decoded))


if __name__ == "__main__":
    main()
