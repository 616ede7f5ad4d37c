"""The command `clrun-export RUN_DIR --to KIND`: the network of a finished run, as a file that other programs read.

    onnx         a graph for ONNX Runtime, browsers, phones ...; needs pip install 'clrun[export]'
    torchscript  a graph for PyTorch's C++ library, or torch.jit.load
    state_dict   weights by name, as safetensors, for the same module in your own code

The graphs take samples as the data set has them, such as pictures of whole numbers from 0 to 255, and return the
probability of each class: normalising and the strategy's masks are in them. The names of the classes are in the
metadata of the file, and beside it in FILE.json.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from clrun import __version__
from clrun.commands import console
from clrun.commands.predict import chosen_task, network_of
from clrun.system.errors import UsageError

# Kind -> the name of the file in the folder of the run.
FILES = {"onnx": "network.onnx", "torchscript": "network.pt", "state_dict": "weights.safetensors"}


def main() -> NoReturn:
    """Run the console script `clrun-export`."""
    console.end_with(lambda _: command(sys.argv[1:]))


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    flags = console.Parser(
        prog="clrun-export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--version", action="version", version=f"clrun {__version__}")
    flags.add_argument("run", type=Path, metavar="RUN_DIR", help="outputs/runs/<strategy>/<run>, or the file in it")
    flags.add_argument("--to", required=True, choices=[*FILES], help="what is written")
    flags.add_argument("--out", type=Path, metavar="FILE", help="the file (default: one in the folder of the run)")
    flags.add_argument("--task", type=int, help="number of the task, from 1, where the answer depends on it")
    flags.add_argument(
        "--input", choices=["uint8", "float"], default="uint8",
        help="pictures of whole numbers from 0 to 255, or of floats from 0 to 1",
    )  # fmt: skip
    flags.add_argument("--data-dir", help="folder of the data set of a run without network.safetensors")
    flags.add_argument("--config-dir", type=Path, help="folder of the strategy of such a run, if it is your own")
    return flags


def command(argv: Sequence[str]) -> None:
    """Write the file and say what it takes and returns. Raise UsageError."""
    arguments = parser().parse_args(list(argv))
    folder = arguments.run if arguments.run.is_dir() else arguments.run.parent
    path = arguments.out or folder / FILES[arguments.to]
    if path.is_dir():
        raise UsageError(f"--out {path} is a folder; name a file in it, such as {path / FILES[arguments.to]}.")
    of_run = any((path.parent / name).is_file() for name in ("config.yaml", "network.safetensors"))
    if of_run and path.name not in FILES.values():
        raise UsageError(f"--out {path}: the files of a run are in this folder; name a file in another one.")
    if arguments.to == "state_dict" and (arguments.task is not None or arguments.input != "uint8"):
        raise UsageError("--to state_dict writes the weights alone; leave --task and --input out.")
    network = network_of(arguments.run, arguments.config_dir, arguments.data_dir)
    if network.takes_floats and arguments.input != "uint8":
        raise UsageError("--input is for pictures, and this run's samples are numbers; leave it out.")
    from clrun.runs import exporting
    from clrun.runs.answering import report_edits
    from clrun.runs.checkpoint import InvalidCheckpoint

    report_edits(network)
    try:
        if arguments.to == "state_dict":
            about = exporting.write_state_dict(network, path)
        else:
            task = chosen_task(network, arguments.task)
            about = exporting.write_graph(network, task, arguments.to, arguments.input == "float", path)
    except InvalidCheckpoint as error:
        raise UsageError(f"the network of run {network.identity} cannot be used: {error}.") from None
    print(f"{path}: {sentence(about)}")


def sentence(about: dict[str, object]) -> str:
    """Return what an exported file takes and returns."""
    classes = about["classes"]
    assert isinstance(classes, list)
    named = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
    taken = about["input"]
    if not isinstance(taken, dict):
        return f"weights by name, of a network whose outputs are {named}; its inputs are {taken}."
    shape = " x ".join(map(str, taken["shape"]))
    return f"{shape} {taken['type']} ({taken['is']}) -> the probability of each class: {named}."


if __name__ == "__main__":
    main()
