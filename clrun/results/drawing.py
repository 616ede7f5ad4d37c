"""The plots of many runs, drawn by several processes at once.

A stack on a GPU ends all its runs at the same moment, while all cores but one have nothing to do.

    python -m clrun.results.drawing FILE      FILE: JSON, [[the folder of a run, a folder for its plots], ...]

These processes write no file of a run: they fill a temporary folder, and the process that trains the run, which holds
its lock, moves the plots to their places.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from clrun.results import plots
from clrun.system.atomic_files import UNGUARDED, Guard, replacing
from clrun.system.environment import environment_of_clrun


@contextmanager
def drawn_ahead(directories: Sequence[Path], processes: int) -> Iterator[Mapping[Path, Path]]:
    """Draw the plots of runs by so many processes, and yield {folder of a run: temporary folder of its plots}.

    Runs are missing there if `processes` is 0, and where a process has failed: `take_or_draw` draws them.
    """
    if not processes:
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="clrun-plots-") as name:
        places = {directory: Path(name) / str(i) for i, directory in enumerate(directories)}
        shares = [[*places.items()][i::processes] for i in range(processes)]
        files = [Path(name) / f"share{i}.json" for i in range(processes)]
        for file, share in zip(files, shares, strict=True):
            file.write_text(json.dumps([[str(directory.absolute()), str(place)] for directory, place in share]))
        wait_for([started(file) for file in files])
        yield {directory: place for directory, place in places.items() if place.is_dir()}


def started(file: Path) -> "subprocess.Popen[bytes]":
    """Start a process that draws what a file asks for. It is silent: what it cannot draw is drawn, and said, here."""
    environment, nothing = environment_of_clrun(), subprocess.DEVNULL
    line = [sys.executable, "-P", "-m", __name__, str(file)]
    return subprocess.Popen(line, env=environment, stdin=nothing, stdout=nothing, stderr=nothing, process_group=0)


def wait_for(processes: Sequence["subprocess.Popen[bytes]"]) -> None:
    """Wait for the end of all processes; end them if this is interrupted."""
    try:
        for process in processes:
            process.wait()
    finally:
        for process in processes:
            process.kill()
            process.wait()


def take_or_draw(directory: Path, ahead: Mapping[Path, Path], guard: Guard = UNGUARDED) -> None:
    """Move the plots of a run to its folder, or draw them there if they are not drawn yet.

    ahead: of `drawn_ahead`. guard: as of `clrun.system.atomic_files.replacing`. Raise UnreadableFile.
    """
    if directory not in ahead:
        plots.draw(directory, guard)
        return
    for drawn in sorted(ahead[directory].iterdir()):
        with replacing(directory / drawn.name.partition(" ")[2], guard) as temporary:
            shutil.copyfile(drawn, temporary)


def draw_all(file: Path) -> None:
    """Draw the plots of the runs that a file names, each into its folder, which appears once they are whole.

    Their names begin with a number: the order in which a run gets them.
    """
    for directory, place in json.loads(file.read_text()):
        part = Path(f"{place}.part")
        part.mkdir()
        for i, (name, figure) in enumerate(plots.figures(Path(directory)).items()):
            plots.save(figure, part / f"{i} {name}.png")
        part.rename(place)


if __name__ == "__main__":
    draw_all(Path(sys.argv[1]))
