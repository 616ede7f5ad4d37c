"""Where nothing can be printed, work goes on: every command, with every kind of output that fails.

The commands are processes, and what fails is real: /dev/full, a pipe whose reader has left, a closed file, a terminal
that has no character but those of ASCII (the classes are called Müller and 猫).
"""

import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from helpers import python_path, slow_but
from PIL import Image

CLASSES = ("Müller", "猫", "a", "b")
DATA = ("dataset=image_folder", "dataset.root=pictures", "dataset.size=8", "plots=false", "device=cpu", "tasks=2")
SMALL = (*DATA, "model.widths=[8]", "iterations=3")


class Command(NamedTuple):
    """A command, the files that it writes however it can print, and what it prints in ASCII."""

    line: tuple[str, ...]  # module, arguments
    files: tuple[str, ...] = ()
    ascii: str = ""


COMMANDS = {
    "clrun": Command(("clrun", *SMALL, "outputs={new}"), ("{new}/runs/*/*/summary.csv", "{new}/results.csv")),
    "clrun -m": Command(
        ("clrun", "-m", *SMALL, "seed=0,1", "workers=2", "outputs={new}"),
        ("{new}/runs/*/*seed=0*/summary.csv", "{new}/runs/*/*seed=1*/summary.csv", "{new}/results.csv"),
        " +- ",
    ),
    "clrun-report": Command(
        ("clrun.report", "finished", "--no-plots"), ("finished/report.csv", "finished/report.tex"), " +- "
    ),
    "clrun-report --compare": Command(("clrun.report", "finished", "--compare", "ewc", "finetune")),
    "clrun-predict": Command(
        ("clrun.commands.predict", "{run}", "pictures/test/Müller/0.png", "--task", "1"), (), "M\\xfcller"
    ),
    "clrun-export": Command(
        ("clrun.commands.export", "{run}", "--to", "state_dict", "--out", "{new}/weights.safetensors"),
        ("{new}/weights.safetensors.json",),
        "M\\xfcller",
    ),
    "clrun-tune": Command(
        ("clrun.tune", *SMALL, "strategy=ewc", "lambda=1,2", "outputs={new}"), ("{new}/tune/*/trials.csv",)
    ),
    "clrun-verify --list": Command(("clrun.commands.verify", "--list")),
}


class Sink(NamedTuple):
    """An output: the exit code, and a part of what stands on standard error."""

    code: int
    said: str = ""


SINKS = {
    "full disk": Sink(1, "standard output could not be written: No space left on device"),
    "reader leaves": Sink(1),
    "closed": Sink(0),
    "no standard error": Sink(0),
    "ascii": Sink(0),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with pictures, and four finished runs on them."""
    folder, rng = tmp_path_factory.mktemp("world"), np.random.default_rng(0)
    for part in ("train", "test"):
        for name in CLASSES:
            (folder / "pictures" / part / name).mkdir(parents=True)
            for number in range(8):
                pixels = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "pictures" / part / name / f"{number}.png")
    sweep = ("-m", "strategy=ewc,finetune", "seed=0,1", "workers=1", "keep_checkpoint=true", "outputs=finished")
    done = subprocess.run(line(("clrun", *SMALL, *sweep)), cwd=folder, env=environment(folder), capture_output=True)
    assert done.returncode == 0, done.stderr
    return folder


def needed(name: str) -> None:
    """Skip a command whose library is not installed."""
    if name == "clrun-tune":
        pytest.importorskip("optuna")


def line(words: tuple[str, ...]) -> list[str]:
    return [sys.executable, "-m", *words]


def environment(folder: Path, **more: str) -> dict[str, str]:
    own = {"HOME": str(folder), "PYTHONPATH": python_path(), "PATH": "/usr/bin:/bin", "MPLCONFIGDIR": str(folder)}
    return own | more


def ended(words: list[str], sink: str, folder: Path) -> tuple[int, bytes, str]:
    """Run a command with such an output -> exit code, standard output, standard error."""
    variables = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii:strict"} if sink == "ascii" else {}
    shell = {"full disk": '"$@" >/dev/full', "closed": '"$@" >&-', "no standard error": '"$@" 2>/dev/full'}
    process = subprocess.Popen(
        ["sh", "-c", shell.get(sink, '"$@"'), "sh", *words],
        cwd=folder,
        env=environment(folder, **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    if sink == "reader leaves":
        process.stdout.close()
        err = process.stderr.read()
        return process.wait(), b"", err.decode()
    out, err = process.communicate()
    return process.returncode, out, err.decode()


# Every command with a full disk, and one command with every output; all others with -m slow.
FAST = {
    *product(COMMANDS, ["full disk"]),
    *product(["clrun"], SINKS),
    ("clrun-predict", "ascii"),
    ("clrun-report", "closed"),
}


@pytest.mark.parametrize(("name", "sink"), slow_but(product(COMMANDS, SINKS), FAST.__contains__))
def test_every_command_does_its_work_with_every_output(world, tmp_path, name, sink):
    needed(name)
    command, expected = COMMANDS[name], SINKS[sink]
    places = {"new": str(tmp_path / "new"), "run": str(next(world.glob("finished/runs/ewc/*seed=0*")))}
    for pattern in command.files:
        for path in world.glob(pattern) if not pattern.startswith("{") else ():
            path.unlink()
    code, out, err = ended(line(tuple(word.format(**places) for word in command.line)), sink, world)
    assert code == expected.code, err
    assert expected.said in err and "Traceback" not in err and "Exception ignored" not in err
    assert ("standard output" in err) == bool(expected.said)
    for pattern in command.files:
        folder, _, rest = pattern.format(**places).partition("/runs/")
        paths = list(Path(world, folder).glob(f"runs/{rest}")) if rest else whole_paths(world, folder)
        assert paths and all(path.read_text(encoding="utf-8").endswith("\n") for path in paths), pattern
    if sink == "ascii":
        assert out and command.ascii in out.decode("ascii")
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".tmp" or path.name == "lock.json"]


def whole_paths(world: Path, pattern: str) -> list[Path]:
    path = Path(world, pattern)
    parts = path.relative_to(path.anchor).parts
    return list(Path(path.anchor).glob(str(Path(*parts))))


@pytest.mark.slow
def test_a_search_without_room_for_its_journal_is_one_paragraph_and_goes_on(world):
    """No file may have more than 4,096 bytes, and those of the journal are more after a few trials."""
    needed("clrun-tune")
    search = (
        "clrun.tune",
        *SMALL,
        "strategy=ewc",
        "lambda=1,2,3,4,5,6,7,8,9",
        "keep_checkpoint=false",
        "workers=1",
        "outputs=full",
    )
    words = line((*search, "checkpoint_every=0"))
    limited = ["sh", "-c", 'ulimit -f 8; exec "$@"', "sh", *words]
    own = environment(world, PYTHONDONTWRITEBYTECODE="1")  # or Python leaves modules that are cut
    done = subprocess.run(limited, cwd=world, env=own, capture_output=True, text=True)
    (folder,) = Path(world, "full", "tune").glob("ewc-*")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"clrun: outputs=full: {folder.relative_to(world)} could not be written: File too large." in done.stderr
    again = subprocess.run(words, cwd=world, env=environment(world), capture_output=True, text=True)
    assert again.returncode == 0 and "Traceback" not in again.stderr, again.stderr
    assert len((folder / "trials.csv").read_text().splitlines()) == 10


@pytest.mark.parametrize("name", ["clrun", "clrun-report"])
def test_a_disk_without_room_is_one_paragraph(world, tmp_path, name):
    """The system refuses to write a single byte into a file; what is printed goes through a pipe."""
    places = {"new": str(tmp_path / "new"), "run": ""}
    words = line(tuple(word.format(**places) for word in COMMANDS[name].line))
    done = subprocess.run(
        ["sh", "-c", 'ulimit -f 0; exec "$@"', "sh", *words],
        cwd=world,
        env=environment(world),
        capture_output=True,
        text=True,
    )
    said = [text for text in done.stderr.splitlines() if "File too large" in text]
    assert done.returncode == 1 and said and "Traceback" not in done.stderr, done.stderr
    assert ".tmp" not in done.stderr and all(text.startswith("clrun: ") for text in said)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size]
    if name == "clrun-report":
        assert "Average accuracy in percent" in done.stdout and "report.csv could not be written" in done.stderr
