"""Send signals to runs and sweeps, type the same command again, and look at what comes out and what stays behind.

    python scripts/kill_rounds.py --rounds 60 --seed 0

A round starts a run or a sweep in an empty folder and sends a signal to its process, to a worker, to the server from
which workers are forked, or to all of them. This happens at a random moment, or while plots are drawn, while a replay
memory is collected, or while a checkpoint is written. The same command is then typed again. A round is good if

  * every table without times and every plot has the bytes of a run that was left alone,
  * no lock, temporary file, checkpoint or failed.txt is in the folders of the runs, and after a signal that can be
    handled no lock either before the command is typed again,
  * no process and no file in /dev/shm is left, and no traceback was printed.

The plan of 60 rounds has every signal with every kind and target; more rounds repeat it at other moments. The exit
code is 1 if a round is not good. (scripts/kill_and_resume.py measures how much is trained again after SIGKILL.)
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice, product
from pathlib import Path
from typing import NamedTuple

from clrun.results.columns import TIMED_FILES
from clrun.system.paths import CONF

COMMON = ("device=cpu", "epochs=6", "checkpoint_every=0.2", "threads=1", "strategy=slow_er", "memory_per_class=20")
KINDS = {"single": (), "sweep": ("-m", "seed=0,1,2", "workers=2")}
SIGNALS = ("KILL", "TERM", "INT", "HUP", "STOP", "QUIT")  # STOP is followed by CONT after a second
UNHANDLED = ("KILL", "QUIT")  # the process has no chance to tidy up
AIMS = {"drawing": ".accuracy_*.png.*.tmp", "collecting": "collecting", "checkpointing": ".checkpoint.*.tmp"}
PATIENCE = 300  # seconds for one command, on a busy machine
GONE_SECONDS = 25  # in which the processes of a command that was killed have to end
ATTEMPTS = 4  # to meet a moment

# Experience replay that takes its time to collect its memory, and says when: only so can that moment be met.
STRATEGY = """
import os
from dataclasses import dataclass
from pathlib import Path
from clrun.strategies.er import ER

@dataclass(frozen=True)
class SlowER(ER):
    def after_phase(self, phase, theta, state, hp, pool):
        locks = [lock for lock in Path("outputs").glob("runs/*/*/lock.json") if str(os.getpid()) in lock.read_text()]
        for lock in locks:
            lock.with_name("collecting").touch()
        for _ in range(40):  # each time the same
            collected = super().after_phase(phase, theta, state, hp, pool)
        for lock in locks:
            lock.with_name("collecting").unlink(missing_ok=True)
        return collected
"""


class Round(NamedTuple):
    """What is done to a command."""

    kind: str  # of KINDS
    signal: str  # of SIGNALS
    target: str  # parent, worker, forkserver, group
    moment: str  # of AIMS, or "any"

    def __str__(self) -> str:
        return f"{self.kind}, {self.signal} to {self.target}, {self.moment}"


class Whole(NamedTuple):
    """A command that was left alone."""

    results: dict[str, bytes]
    seconds: float  # from its first lock to its end


class Told(NamedTuple):
    """How a command ended."""

    code: int
    stderr: str


def plan(draw: random.Random) -> Iterator[Round]:
    """Yield rounds without end: all combinations in a random order, again and again."""
    moments = ("any", *AIMS)
    alone = [Round("single", name, "parent", moment) for name, moment in product(SIGNALS, moments)]
    targets = ("parent", "worker", "forkserver", "group")
    sweeps = [Round("sweep", name, target, "any") for name, target in product(SIGNALS, targets)]
    aimed = [Round("sweep", name, target, moment) for name, target, moment in product(
        ("KILL", "TERM"), ("parent", "worker"), AIMS)]  # fmt: skip
    while True:
        rounds = [*alone, *sweeps, *aimed]
        draw.shuffle(rounds)
        yield from rounds


# ---------------------------------------------------------------- a command


class Command:
    """A command of clrun in a folder of its own."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.outputs, self.kind = folder, folder / "outputs", kind
        (folder / "my" / "strategy").mkdir(parents=True, exist_ok=True)
        (folder / "tmp").mkdir(exist_ok=True)
        yaml = (CONF / "strategy" / "er.yaml").read_text().replace("clrun.strategies.er.ER", "slow_er.SlowER")
        yaml = yaml.replace("name: er", "name: slow_er")
        (folder / "my" / "strategy" / "slow_er.yaml").write_text(yaml)
        (folder / "slow_er.py").write_text(STRATEGY)

    def start(self) -> subprocess.Popen:
        """Start it in a session of its own, so that its processes are one group."""
        line = [sys.executable, "-m", "clrun", "--config-dir", "my", *KINDS[self.kind], *COMMON]
        root = str(Path(__file__).resolve().parents[1])
        environment = os.environ | {"TMPDIR": str(self.folder / "tmp"), "PYTHONPATH": root}
        return subprocess.Popen(
            [*line, f"outputs={self.outputs}"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            start_new_session=True, cwd=self.folder, env=environment,
        )  # fmt: skip

    def found(self, pattern: str) -> list[Path]:
        """Return the files of this name in the folders of runs."""
        return list(self.outputs.glob(f"runs/*/*/{pattern}"))

    def results(self) -> dict[str, bytes]:
        """Return the bytes of all tables in which no times stand, and of all plots."""
        paths = [path for path in [*self.found("*.csv"), *self.found("*.png")] if path.name not in TIMED_FILES]
        return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in paths}

    def left_behind(self) -> list[str]:
        """Return what does not belong into the folders of finished runs, and what is left in the temporary folder."""
        patterns = ("lock.json", ".*", "checkpoint.safetensors*", "failed.txt")
        return [str(path.relative_to(self.folder)) for pattern in patterns for path in self.found(pattern)]

    def temporary(self) -> list[str]:
        """Return what is in the folder for temporary files, but for what a library keeps there."""
        return [path.name for path in (self.folder / "tmp").iterdir() if path.name.startswith(("clrun", "pymp"))]


def told(process: subprocess.Popen) -> Told:
    """Wait for a command."""
    stderr = process.communicate(timeout=PATIENCE)[1]
    return Told(process.returncode, stderr)


def left_alone(command: Command) -> Whole:
    """Let a command run to its end. Raise RuntimeError if it fails."""
    process = command.start()
    began = time.monotonic()
    while process.poll() is None and not command.found("lock.json"):
        began = time.monotonic()
        time.sleep(0.01)
    code, stderr = told(process)
    if code:
        raise RuntimeError(stderr)
    return Whole(command.results(), time.monotonic() - began)


# ---------------------------------------------------------------- a moment and a target


def meet(command: Command, process: subprocess.Popen, moment: str, wait: float) -> int | None:
    """Wait until a command is at such a moment. Return the process that trains the run concerned; None if the command
    has ended first. wait: seconds after the first lock, or from then on for the next moment that is aimed at."""
    began: float | None = None
    while process.poll() is None:
        if began is None and command.found("lock.json"):
            began = time.monotonic()
        due = began is not None and time.monotonic() - began >= (wait if moment == "any" else wait / 2)
        files = command.found("lock.json" if moment == "any" else AIMS[moment]) if due else []
        for path in files:
            try:
                return int(json.loads(path.with_name("lock.json").read_text())["pid"])
            except (OSError, ValueError):  # it has just ended
                continue
        time.sleep(0.0005 if due else 0.005)
    return None


def children(pid: int) -> dict[int, str]:
    """Return the processes that a process has started, and their command lines."""
    out = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    return {int(line.split()[0]): line for line in out.splitlines()}


def send(number: signal.Signals, target: str, parent: int, trainer: int) -> None:
    """Send a signal. trainer: the process that trains a run."""
    if target == "group":
        os.killpg(parent, number)
        return
    servers = [pid for pid, line in children(parent).items() if "forkserver" in line]
    pids = {"parent": [parent], "worker": [trainer], "forkserver": servers}[target]
    for pid in pids:
        os.kill(pid, number)


def members(group: int) -> list[str]:
    """Return the processes of a group that have not ended."""
    out = subprocess.run(["ps", "-eo", "pgid=,stat=,pid=,args="], capture_output=True, text=True).stdout
    rows = [line.split(None, 3) for line in out.splitlines()]
    return [" ".join(row[2:]) for row in rows if row[0] == str(group) and not row[1].startswith("Z")]


def remaining(group: int) -> list[str]:
    """Return the processes of a group that do not end in time, and end them."""
    end = time.monotonic() + GONE_SECONDS
    while members(group) and time.monotonic() < end:
        time.sleep(0.1)
    there = members(group)
    if there:
        os.killpg(group, signal.SIGKILL)
    return there


def shared_memory(groups: list[int]) -> list[str]:
    """Return the files in /dev/shm that a process of these groups has left; their names have its number."""
    folder = Path("/dev/shm")
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return [name for name in names if any(str(group) in name.split("_") for group in groups)]


# ---------------------------------------------------------------- a round


def faults_of(one: Round, command: Command, wait: float, whole: Whole) -> list[str] | None:
    """Do a round. Return what is wrong afterwards; None if the command ended before its moment came."""
    process = command.start()
    trainer = meet(command, process, one.moment, wait)
    if trainer is None:
        told(process)
        return None
    try:
        send(signal.Signals[f"SIG{one.signal}"], one.target, process.pid, trainer)
        if one.signal == "STOP":
            time.sleep(1)
            send(signal.SIGCONT, one.target, process.pid, trainer)
    except ProcessLookupError:
        told(process)
        return None
    first = told(process)
    faults = [f"still there: {line}" for line in remaining(process.pid)]
    if one.signal not in UNHANDLED:
        faults += [f"a lock was left: {path.parent.name}" for path in command.found("lock.json")]
        faults += [f"a temporary folder was left: {name}" for name in command.temporary()]
    if one.signal == "STOP" and first.code != 0:
        faults.append(f"exit code {first.code} after STOP and CONT: {first.stderr}")
    again = command.start()
    second = told(again)
    faults += [f"still there after the second command: {line}" for line in remaining(again.pid)]
    if second.code != 0:
        faults.append(f"the second command ended with {second.code}: {second.stderr}")
    results = command.results()
    faults += [f"differs: {name}" for name in whole.results if results.get(name) != whole.results[name]]
    faults += [f"left behind: {name}" for name in command.left_behind()]
    faults += [f"in /dev/shm: {name}" for name in shared_memory([process.pid, again.pid, trainer])]
    faults += [f"traceback: {text.stderr}" for text in (first, second) if "Traceback" in text.stderr]
    return faults


def attempt(one: Round, base: Path, draw: random.Random, whole: Whole) -> list[str] | None:
    """Do a round as often as it takes to meet its moment. Return what is wrong; None if it was never met."""
    for number in range(ATTEMPTS):
        command = Command(base / str(number), one.kind)
        share = draw.uniform(0, 0.9 if number == 0 else 0.5)
        faults = faults_of(one, command, share * whole.seconds, whole)
        if faults is not None:
            return faults
    return None


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--rounds", type=int, default=60)
    flags.add_argument("--first", type=int, default=1, help="number of the round of the plan to begin with")
    flags.add_argument("--seed", type=int, default=0, help="of the order and of the moments")
    flags.add_argument("--minutes", type=float, default=float("inf"), help="begin no round after these")
    asked = flags.parse_args()
    order, draw = random.Random(asked.seed), random.Random(asked.seed + asked.first)
    good, bad, missed = Counter[str](), Counter[str](), 0
    end = time.monotonic() + 60 * asked.minutes
    with tempfile.TemporaryDirectory(prefix="clrun-rounds-") as folder:
        base = Path(folder)
        wholes = {kind: left_alone(Command(base / kind, kind)) for kind in KINDS}
        for kind, whole in wholes.items():
            print(f"{kind}: {len(whole.results)} files, {whole.seconds:.1f} s", flush=True)
        for number, one in enumerate(islice(plan(order), asked.first + asked.rounds - 1), 1):
            if number < asked.first:
                continue
            if time.monotonic() > end:
                break
            faults = attempt(one, base / f"round{number}", draw, wholes[one.kind])
            verdict = "missed its moment" if faults is None else "good" if not faults else "BAD"
            print(f"{number}. {one}: {verdict}", *(faults or []), sep="\n    ", flush=True)
            missed += faults is None
            if faults is not None:
                kinds = (one.kind, one.signal, f"to {one.target}", one.moment)
                (bad if faults else good).update(["all", *kinds])
    for name in dict.fromkeys([*good, *bad]):
        print(f"{name}: {good[name]} of {good[name] + bad[name]} good")
    print(f"{missed} rounds missed their moment")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
