"""`cluster=slurm`, `cluster=local`: the runs of a sweep as jobs of the submitit library, each job a group of runs.

A job does what a sweep does on the machine that it is given: it trains in stacks on a GPU, in workers on a CPU, takes
the locks of its runs and writes their files. The process that submits it waits, and reads files alone.

A job that is about to end (its time is up, or another takes its place) is told so by a signal. What it trains then
writes checkpoints, and only after that submitit puts it back into the queue, where it begins with what is not finished.
"""

import json
import os
import re
import shlex
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from clrun.config.catalog import CLUSTER, Catalog
from clrun.config.check import chosen_cluster
from clrun.config.settings import Settings
from clrun.results import run_files
from clrun.sweep import plan
from clrun.system import atomic_files, locks, machine
from clrun.system.errors import UsageError
from clrun.system.process import handled

if TYPE_CHECKING:
    import submitit

    from clrun.runs.prepared import Prepared


PATIENCE = 30.0  # seconds that jobs of this machine are given to write checkpoints and end


BETWEEN_LOOKS = 1.0  # seconds, at the jobs that run


MAX_REQUEUES = 100  # how often a job whose time is up is queued again


GRACE = 300.0  # seconds between SIGTERM and what a cluster does next


GONE = "UNKNOWN"  # the state of a job that the cluster has forgotten


@dataclass(frozen=True)
class Cluster:
    """Where jobs go."""

    executor: str  # "slurm" or "local"
    knobs: Mapping[str, Any]  # of conf/cluster/*.yaml

    def __getitem__(self, knob: str) -> Any:
        return self.knobs.get(knob)

    @property
    def waits(self) -> bool:
        return self["wait"] is not False

    @property
    def at_once(self) -> int | None:
        """Jobs that run at the same time; None where the cluster decides."""
        if self["jobs"] is not None or self.executor != "local":
            return self["jobs"]
        return 1 if self["gpus"] else max(1, machine.cores() // self["cpus"])

    def parameters(self) -> dict[str, Any]:
        """In submitit's words."""
        common = {
            "name": "clrun",
            "timeout_min": max(1, round(60 * self["hours"])),
            "gpus_per_node": self["gpus"] or None,
            "cpus_per_task": self["cpus"],
            "mem_gb": self["memory_gb"],
            "stderr_to_stdout": True,
        }
        own = {f"slurm_{key}": self[key] for key in ("partition", "account", "qos", "constraint")}
        own |= {"slurm_array_parallelism": self["jobs"], "slurm_additional_parameters": self.options()}
        return {key: value for key, value in (common | own).items() if value is not None}

    def options(self) -> dict[str, Any] | None:
        """{"exclude": "n1"} for --exclude=n1; True where there is no value. UsageError."""
        if self["options"] is None:
            return None
        words = [word.removeprefix("--").partition("=") for word in shlex.split(self["options"])]
        if any(not key or key.startswith("-") or " " in key for key, _, _ in words):
            raise UsageError(f"cluster.options={self['options']}: type options as --name=value, with blanks between.")
        return {key: value if equals else True for key, equals, value in words}


def of(configs: Sequence[DictConfig], known: Catalog) -> Cluster | None:
    """Where the jobs of a sweep go; None: nowhere, they are trained here. UsageError."""
    nodes = [OmegaConf.to_container(cfg[CLUSTER], resolve=True) if cfg.get(CLUSTER) else None for cfg in configs]
    if any(node != nodes[0] for node in nodes):
        raise UsageError("cluster: a sweep goes to one cluster; type one value.")
    found = chosen_cluster(nodes[0], known)
    if found is None:
        return None
    if find_spec("submitit") is None:
        raise UsageError(
            f"cluster={found[0].name} submits through submitit, which is not installed here; type pip install "
            "'clrun[cluster]', or leave cluster out."
        )
    cluster = Cluster(found[0].executor, found[1])
    cluster.options()
    return cluster


# ---------------------------------------------------------------- in a job


class Ending(SystemExit):
    """The job is about to be ended. As Ctrl-C does, it makes what is being trained write checkpoints."""


@dataclass
class PreemptionHandler:
    """Of the end: the first signal ends the training, those that come while it writes checkpoints are remembered."""

    heard: list[int] = field(default_factory=list)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.heard.append(number)
        if len(self.heard) == 1:
            raise Ending(143)


@dataclass
class Job:
    """What a job does; submitit calls it, and again after every interruption."""

    settings: list[Settings]

    def __call__(self) -> dict[str, str]:
        """Train what is not finished; id -> why it crashed."""
        soon, notice = notice_signal(), PreemptionHandler()
        with suppress(Ending), handled(notice, soon, signal.SIGTERM):
            return self.train(soon)
        if soon not in notice.heard:
            self.await_verdict()
        theirs = signal.getsignal(soon)
        return theirs(soon, None)  # submitit's: it asks for a checkpoint(), queues that, and exits

    def checkpoint(self) -> Any:
        """What is put into the queue: the same once more."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(Job(self.settings))

    def train(self, soon: signal.Signals) -> dict[str, str]:
        from clrun.runs import prepare
        from clrun.sweep import execution, workers

        if len(self.settings) > 1 and self.settings[0]["workers"] != 1:
            with handled(
                signal.SIG_IGN, soon
            ):  # the whole job may be sent it, but it is this process that ends workers
                workers.warm_up()
        prepared = [prepare.prepare(settings) for settings in self.settings]
        return execution.train_all([one for one in prepared if not one.finished])

    def await_verdict(self) -> None:
        """After SIGTERM: a cluster that wants the job back says so by the other signal, which submitit handles."""
        import submitit

        if submitit.JobEnvironment().cluster == "slurm":
            time.sleep(GRACE)
        raise RuntimeError("the job was ended by SIGTERM; the same command goes on from its checkpoints")


def notice_signal() -> signal.Signals:
    """What submitit tells a job by that its time is nearly up."""
    from submitit import JobEnvironment

    return signal.Signals[f"SIG{JobEnvironment.USR_SIG}"]


# ---------------------------------------------------------------- in the process that submits


@dataclass
class SubmittedJob:
    """A job, and its runs."""

    job: "submitit.Job"
    runs: Sequence["Prepared"]

    def told(self) -> dict[str, str]:
        """What a job that is done has come to: id -> why it crashed, also of runs that it has left unfinished."""
        there = self.job.paths.result_pickle.exists()
        error = self.job.exception() if there else None
        errors = self.job.result() if there and error is None else {}
        lost = [one for one in self.runs if not one.finished and one.id not in errors]
        return {one.id: errors[one.id] for one in self.runs if one.id in errors} | {
            one.id: self.leave_reason(one, error) for one in lost
        }

    def leave_reason(self, one: "Prepared", error: Exception | None) -> str:
        """Why a job brought nothing of a run, written to its failed.txt unless somebody else is at it."""
        log = f"its log is {self.job.paths.stdout}"
        reason = f"Killed: job {self.job.job_id} ended without a word; {log}"
        if error is not None:
            last = [line for line in str(error).splitlines() if re.match(r"[\w.]+(Error|Exception|Interrupt)\b", line)]
            reason = f"job {self.job.job_id}: {last[-1] if last else 'it failed'}; {log}"
        if locks.holder(one.directory) is None:
            run_files.write_failed(one.directory, reason, str(error or "(a process that is killed leaves no trace)"))
        return reason


def train_all(todo: Sequence["Prepared"], cluster: Cluster) -> dict[str, str]:
    """Train them in jobs, and wait for the jobs unless told not to. id -> why it crashed. UsageError."""
    if any(one.settings["rerun"] for one in todo):
        raise UsageError("rerun=true with a cluster: a job that is queued again would begin anew; type outputs=FOLDER.")
    if not todo:
        return {}
    board = JobQueue(cluster, Path(todo[0].settings["outputs"]) / "cluster", len(todo))
    sent = board.queued_before(todo)
    there = {one.id for job in sent for one in job.runs}
    board.waiting = jobs_of([one for one in todo if one.id not in there], cluster)
    if not cluster.waits:
        board.running = [*sent, *board.send(board.waiting)]
        print(f"Submitted: {board.numbers()}. The same command again shows what is done and waits for the rest.")
        return {}
    board.running = sent
    with board.ending():
        return board.watch()


def jobs_of(todo: Sequence["Prepared"], cluster: Cluster) -> list[list["Prepared"]]:
    """The runs by job: a group of those that differ in values only, or pieces of it."""
    return [job for group in plan.groups(todo) for job in plan.cut(group, cluster["runs"] or len(group))]


@dataclass
class JobQueue:
    """Jobs that run, and groups of runs that wait until there is room for another job."""

    cluster: Cluster
    folder: Path  # of submitit's files
    runs: int
    waiting: list[list["Prepared"]] = field(default_factory=list)
    running: list[SubmittedJob] = field(default_factory=list)
    done: set[str] = field(default_factory=set)  # runs that have been told of

    # ------------------------------------------------------------ submitting

    def send(self, groups: Sequence[Sequence["Prepared"]]) -> list[SubmittedJob]:
        """Submit a job for each group; on Slurm they are one array."""
        from submitit import AutoExecutor

        if not groups:
            return []
        lives = {f"{self.cluster.executor}_max_num_timeout": MAX_REQUEUES}
        executor = AutoExecutor(self.folder, cluster=self.cluster.executor, **lives)
        executor.update_parameters(**self.cluster.parameters())
        work = [Job([self.in_job(one.settings) for one in group]) for group in groups]
        with (
            handled(signal.SIG_IGN, signal.SIGINT),
            executor.batch(),
        ):  # Ctrl-C is ours: jobs are ended by a word of ours
            jobs = [executor.submit(one) for one in work]
        sent = [SubmittedJob(job, group) for job, group in zip(jobs, groups, strict=True)]
        for one in sent:
            note = {"executor": self.cluster.executor, "runs": [run.id for run in one.runs]}
            atomic_files.write_text(self.note(one.job), json.dumps(note) + "\n")
        return sent

    def in_job(self, settings: Settings) -> Settings:
        """A run's settings as a job gets them: with as many workers as it has cores."""
        if settings["workers"] != "auto" or self.cluster["gpus"]:
            return settings
        workers = max(1, self.cluster["cpus"] // settings["threads"])
        return replace(settings, values={**settings.values, "workers": workers})

    def note(self, job: "submitit.Job") -> Path:
        """Where it is written which runs a job has."""
        return self.folder / f"{job.job_id}_runs.json"

    def queued_before(self, todo: Sequence["Prepared"]) -> list[SubmittedJob]:
        """Jobs of an earlier command that have some of these runs and are still in the queue."""
        from submitit import SlurmJob

        found = []
        for path in sorted(self.folder.glob("*_runs.json")) if self.cluster.executor == "slurm" else []:
            note = json.loads(path.read_text())
            job = SlurmJob(self.folder, path.name.removesuffix("_runs.json"))
            runs = [one for one in todo if one.id in note["runs"]]
            if note["executor"] != "slurm" or job.done(force_check=True):
                path.unlink()
            elif runs and job.state != GONE:
                found.append(SubmittedJob(job, runs))
        if found:
            print(f"In the queue already: {', '.join(one.job.job_id for one in found)}.")
        return found

    def numbers(self) -> str:
        return ", ".join(f"job {one.job.job_id} ({len(one.runs)} runs)" for one in self.running) or "nothing"

    # ------------------------------------------------------------ waiting

    def watch(self) -> dict[str, str]:
        """Submit and look until all jobs are done, saying which runs are."""
        errors: dict[str, str] = {}
        while self.waiting or self.running:
            room = self.room()
            new, self.waiting = self.waiting[:room], self.waiting[room:]
            self.running += self.send(new)
            ended = [one for one in self.running if one.job.done()]
            self.running = [one for one in self.running if one not in ended]
            for one in ended:
                errors |= one.told()
                self.note(one.job).unlink(missing_ok=True)
            self.tell([*self.running, *ended], errors)
            time.sleep(BETWEEN_LOOKS if self.running else 0)
        return errors

    def room(self) -> int:
        """Jobs that may be submitted now; a cluster has a queue of its own."""
        if self.cluster.executor != "local":
            return len(self.waiting)
        return max(0, (self.cluster.at_once or len(self.waiting)) - len(self.running))

    def tell(self, jobs: Sequence[SubmittedJob], errors: Mapping[str, str]) -> None:
        """A line for each run that has ended since the last look."""
        for job in jobs:
            for one in job.runs:
                if one.id not in self.done and (one.finished or one.id in errors):
                    self.done.add(one.id)
                    how = f"crashed: {errors[one.id]}" if one.id in errors else f"done (job {job.job.job_id})"
                    print(
                        f"[{len(self.done)}/{self.runs}] {one.settings['strategy']}/{one.directory.name}: {how}",
                        flush=True,
                    )

    @contextmanager
    def ending(self) -> Iterator[None]:
        """If this process is ended, so are jobs of this machine; those of a cluster go on."""
        try:
            yield
        except BaseException:
            if self.cluster.executor == "local":
                self.end()
            elif self.running:
                numbers = " ".join(one.job.job_id for one in self.running)
                print(f"The jobs go on; scancel {numbers} ends them, the same command waits for them.", flush=True)
            raise

    def end(self) -> None:
        """Let local jobs write checkpoints and end."""
        for one in self.running:
            with suppress(ProcessLookupError):
                os.kill(int(one.job.job_id), signal.SIGTERM)  # of what has started the job, which hands it on
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and not all(one.job.done() for one in self.running):
            time.sleep(0.1)
