"""`cluster=slurm`, `cluster=local`: the runs of a sweep as jobs of the submitit library, each job a list of runs.

A job does what a sweep does on the machine that it gets: it trains in stacks on a GPU, in workers on a CPU, takes the
locks of its runs and writes their files. The process that submits it waits, and only reads files.

A job that is about to end (its time is up, or another takes its place) receives a signal. The training then writes
checkpoints, and only after that submitit puts the job back into the queue, where it begins with what is not finished.
"""

import json
import os
import re
import shlex
import signal
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING, Any, NoReturn

from omegaconf import DictConfig, OmegaConf

from clrun.config.catalog import CLUSTER, Catalog, ClusterOption
from clrun.config.check_values import chosen_cluster
from clrun.config.settings import Settings
from clrun.runs.failures import write_reason_for
from clrun.sweep import plan
from clrun.system import atomic_files, machine
from clrun.system.errors import UsageError
from clrun.system.messages import announce
from clrun.system.output import lasting_output
from clrun.system.signals import ExitHandler, handled, heard_in_callbacks
from clrun.system.user_frames import users_frame_printed

if TYPE_CHECKING:
    import submitit

    from clrun.runs.prepared import Prepared

SHUTDOWN_SECONDS = 30.0  # that jobs of this machine are given to write checkpoints and end

POLL_SECONDS = 1.0  # between two checks of the submitted jobs

MAX_REQUEUES = 100  # times that a job whose time is up is queued again

VERDICT_SECONDS = 300.0  # after SIGTERM, within which a cluster that wants the job back says so

FORGOTTEN = "UNKNOWN"  # the state of a job that the cluster has forgotten

SLURM = ("sbatch", "srun")  # programs by which jobs are submitted and started

KILLED = "(a process that is killed leaves no trace)"  # in place of a traceback


@dataclass(frozen=True)
class Cluster:
    """Where jobs are submitted to, and what they ask for."""

    executor: str  # "slurm" or "local"
    knobs: Mapping[str, Any]  # of conf/cluster/*.yaml
    cores: int = field(default_factory=machine.cores)  # of this machine

    def __getitem__(self, knob: str) -> Any:
        return self.knobs.get(knob)

    @property
    def waits(self) -> bool:
        """Whether the command waits for its jobs."""
        return self["wait"] is not False

    @property
    def at_once(self) -> int | None:
        """The number of jobs that run at the same time; None where the cluster decides."""
        if self["jobs"] is not None or self.executor != "local":
            return self["jobs"]
        return 1 if self["gpus"] else max(1, self.cores // self["cpus"])

    def parameters(self) -> dict[str, Any]:
        """Return what a job asks for, by the names of submitit's parameters."""
        common = {
            "name": "clrun",
            "timeout_min": max(1, round(60 * self["hours"])),
            "gpus_per_node": self["gpus"] or None,
            "cpus_per_task": self["cpus"],
            "mem_gb": self["memory_gb"],
            "stderr_to_stdout": True,
        }
        slurm = {f"slurm_{key}": self[key] for key in ("partition", "account", "qos", "constraint")}
        slurm |= {"slurm_array_parallelism": self["jobs"], "slurm_additional_parameters": self.options()}
        return {key: value for key, value in (common | slurm).items() if value is not None}

    def options(self) -> dict[str, Any] | None:
        """Return the options for sbatch: {"exclude": "n1"} for --exclude=n1, True where there is no value. Raise
        UsageError."""
        if self["options"] is None:
            return None
        words = [word.removeprefix("--").partition("=") for word in shlex.split(self["options"])]
        if any(not key or key.startswith("-") or " " in key for key, _, _ in words):
            raise UsageError(f"cluster.options={self['options']}: type options as --name=value, with blanks between.")
        return {key: value if equals else True for key, equals, value in words}


def cluster_of(configs: Sequence[DictConfig | dict[str, Any]], catalog: Catalog) -> Cluster | None:
    """Return the cluster that the jobs of a sweep are submitted to; None if they are trained here. Raise UsageError."""
    nodes = [cfg.get(CLUSTER) or None for cfg in configs]
    nodes = [OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else node for node in nodes]
    if any(node != nodes[0] for node in nodes):
        raise UsageError("cluster: a sweep goes to one cluster; type one value.")
    chosen = chosen_cluster(nodes[0], catalog, configs[0])
    if chosen is None:
        return None
    option, knobs = chosen
    assert isinstance(option, ClusterOption)  # by clrun.config.catalog.KINDS
    if find_spec("submitit") is None:
        raise UsageError(
            f"cluster={option.name} submits through submitit, which is not installed here; type pip install "
            "'clrun[cluster]', or leave cluster out."
        )
    cluster = Cluster(option.executor, knobs)
    cluster.options()  # refused here, before any job is submitted
    return cluster


def refuse_without_slurm(cluster: Cluster) -> None:
    """Raise UsageError where jobs are for Slurm, and this machine has not the programs that submit them."""
    missing = [name for name in SLURM if which(name) is None] if cluster.executor == "slurm" else []
    if missing:
        raise UsageError(
            f"cluster=slurm: there is no {missing[0]} here, with which Slurm takes jobs; type the command on a machine "
            "of the cluster, or leave cluster out."
        )


# ---------------------------------------------------------------- in a job


class JobEnding(SystemExit):
    """The exit of a job that is about to be ended. As Ctrl-C does, it makes the training write checkpoints."""


@dataclass
class Job:
    """A function that submitit calls in a job, and again after every interruption."""

    settings: list[Settings]

    def __call__(self) -> dict[str, str]:
        """Train what is not finished. Return the reason of each crash by the run's id."""
        warning, handler = warning_signal(), ExitHandler(JobEnding)
        handlers = handled(handler, warning, signal.SIGTERM)
        with suppress(JobEnding), handlers, heard_in_callbacks(handler), lasting_output():
            return self.train(warning)
        if warning not in handler.received:
            self.await_verdict()
        requeue: Any = signal.getsignal(warning)  # submitit's: it asks for a checkpoint(), queues that, and exits
        return requeue(warning, None)

    def checkpoint(self) -> Any:
        """Return what submitit is to queue: the same job once more."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(Job(self.settings))

    def train(self, warning: signal.Signals) -> dict[str, str]:
        """Train the runs that are not finished, as a sweep on this machine."""
        from clrun.runs import prepare
        from clrun.sweep import execution, workers

        if len(self.settings) > 1 and self.settings[0]["workers"] != 1:
            # the whole job may be sent the warning, but it is this process that ends the workers
            with handled(signal.SIG_IGN, warning):
                workers.warm_up()
        prepared = [prepare.prepare(settings) for settings in self.settings]
        return execution.train_sweep([run for run in prepared if run.needs_training])

    def await_verdict(self) -> NoReturn:
        """After SIGTERM, wait for the signal with which a cluster takes the job back, which submitit handles."""
        import submitit

        if submitit.JobEnvironment().cluster == "slurm":
            time.sleep(VERDICT_SECONDS)
        raise RuntimeError("the job was ended by SIGTERM; the same command goes on from its checkpoints")


def warning_signal() -> signal.Signals:
    """Return the signal by which submitit tells a job that its time is nearly up."""
    from submitit import JobEnvironment

    return signal.Signals[f"SIG{JobEnvironment.USR_SIG}"]


# ---------------------------------------------------------------- in the process that submits


def submit(todo: Sequence["Prepared"], cluster: Cluster) -> dict[str, str]:
    """Train runs in jobs, and wait for the jobs unless the settings say otherwise. Return the reason of each crash by
    the run's id. Raise UsageError."""
    if any(run.settings["rerun"] for run in todo):
        raise UsageError("rerun=true with a cluster: a job that is queued again would begin anew; type outputs=FOLDER.")
    if not todo:
        return {}
    refuse_without_slurm(cluster)
    queue = JobQueue(cluster, Path(todo[0].settings["outputs"]) / "cluster", len(todo))
    queue.running = queue.queued_before(todo)
    queued = {run.id for submitted in queue.running for run in submitted.runs}
    queue.waiting = runs_of_jobs([run for run in todo if run.id not in queued], cluster)
    if not cluster.waits:
        queue.running += queue.send(queue.waiting)
        print(f"Submitted: {queue.description()}. The same command again shows what is done and waits for the rest.")
        return {}
    with queue.ended_with_this_process():
        return queue.watch()


def runs_of_jobs(todo: Sequence["Prepared"], cluster: Cluster) -> list[list["Prepared"]]:
    """Return the runs of each job: those that differ in values only, or a part of them."""
    return [job for alike in plan.stackable(todo) for job in plan.cut(alike, cluster["runs"] or len(alike))]


@dataclass
class SubmittedJob:
    """A job, and its runs."""

    job: "submitit.Job[dict[str, str]]"
    runs: Sequence["Prepared"]

    def errors(self) -> dict[str, str]:
        """Return the reason of each crash of a job that is done, by the run's id; also of runs that it has left
        unfinished, whose failed.txt is written here."""
        errors, error = self.returned()
        unfinished = [run for run in self.runs if not run.finished and run.id not in errors]
        return {run.id: errors[run.id] for run in self.runs if run.id in errors} | {
            run.id: self.write_reason(run, error) for run in unfinished
        }

    def returned(self) -> tuple[dict[str, str], BaseException | None]:
        """Return what the job has returned, or its error, also where the file with its answer is damaged."""
        if not self.job.paths.result_pickle.exists():
            return {}, None
        try:
            error = self.job.exception()
            return ({}, error) if error is not None else (self.job.result(), None)
        except Exception as damage:  # any: a pickle that is damaged can raise what it likes
            return {}, damage

    def write_reason(self, run: "Prepared", error: BaseException | None) -> str:
        """Write failed.txt of a run that the job has left unfinished, unless another process is training it. Return the
        reason."""
        log = f"its log is {self.job.paths.stdout}"
        reason = f"Killed: job {self.job.job_id} ended without a word; {log}"
        if error is not None:
            last = [line for line in str(error).splitlines() if re.match(r"[\w.]+(Error|Exception|Interrupt)\b", line)]
            frame = users_frame_printed(str(error))
            said = f"{'' if frame is None else f'{frame}: '}{last[-1] if last else 'it failed'}"
            reason = f"job {self.job.job_id}: {said}; {log}"
        write_reason_for(run, reason, str(error or KILLED))
        return reason


def read_note(path: Path) -> dict[str, Any] | None:
    """Return which runs a job of an earlier command has; None where that cannot be read, which is said."""
    from clrun.results.reading import UnreadableFile, read_text

    try:
        note = json.loads(read_text(path))
        if isinstance(note, dict) and isinstance(note.get("runs"), list) and "executor" in note:
            return note
        cause = "it does not say which runs the job has"
    except UnreadableFile as error:
        cause = error.cause
    except ValueError:
        cause = "it is no JSON"
    job = path.name.removesuffix("_runs.json")
    announce(
        f"{path} cannot be read: {cause}. If job {job} is still in the queue, end it with scancel {job}, or its "
        "runs are submitted twice; then delete the file."
    )
    return None


@dataclass
class JobQueue:
    """The jobs that are submitted, and the lists of runs that wait until there is room for another job."""

    cluster: Cluster
    folder: Path  # of submitit's files
    runs: int  # number of all runs
    waiting: list[list["Prepared"]] = field(default_factory=list)
    running: list[SubmittedJob] = field(default_factory=list)
    reported: set[str] = field(default_factory=set)  # ids of runs whose end has been printed

    # ------------------------------------------------------------ submitting

    def send(self, lists: Sequence[Sequence["Prepared"]]) -> list[SubmittedJob]:
        """Submit a job for each list of runs; on Slurm they are one array."""
        from submitit import AutoExecutor

        if not lists:
            return []
        requeues = {f"{self.cluster.executor}_max_num_timeout": MAX_REQUEUES}
        executor = AutoExecutor(self.folder, cluster=self.cluster.executor, **requeues)
        executor.update_parameters(**self.cluster.parameters())
        work = [Job([self.settings_in_job(run.settings) for run in runs]) for runs in lists]
        # jobs ignore Ctrl-C: this process decides whether they end
        with handled(signal.SIG_IGN, signal.SIGINT), executor.batch():
            jobs = [executor.submit(job) for job in work]
        sent = [SubmittedJob(job, runs) for job, runs in zip(jobs, lists, strict=True)]
        for submitted in sent:
            note = {"executor": self.cluster.executor, "runs": [run.id for run in submitted.runs]}
            atomic_files.write_text(self.note(submitted.job), json.dumps(note) + "\n")
        return sent

    def settings_in_job(self, settings: Settings) -> Settings:
        """Return a run's settings for its job: with as many workers as the job has cores."""
        if settings["workers"] != "auto" or self.cluster["gpus"]:
            return settings
        workers = max(1, self.cluster["cpus"] // settings["threads"])
        return replace(settings, values={**settings.values, "workers": workers})

    def note(self, job: "submitit.Job[dict[str, str]]") -> Path:
        """Return the path of the file that says which runs a job has."""
        return self.folder / f"{job.job_id}_runs.json"

    def queued_before(self, todo: Sequence["Prepared"]) -> list[SubmittedJob]:
        """Return the jobs of an earlier command that have some of these runs and are still in the queue."""
        from submitit import SlurmJob

        found = []
        for path in sorted(self.folder.glob("*_runs.json")) if self.cluster.executor == "slurm" else []:
            note = read_note(path)
            if note is None:
                continue
            job: submitit.Job[dict[str, str]] = SlurmJob(self.folder, path.name.removesuffix("_runs.json"))
            runs = [run for run in todo if run.id in note["runs"]]
            if note["executor"] != "slurm" or job.done(force_check=True):
                path.unlink()
            elif runs and job.state != FORGOTTEN:
                found.append(SubmittedJob(job, runs))
        if found:
            print(f"In the queue already: {', '.join(submitted.job.job_id for submitted in found)}.")
        return found

    def description(self) -> str:
        """Return the numbers of the submitted jobs and of their runs."""
        return ", ".join(f"job {s.job.job_id} ({len(s.runs)} runs)" for s in self.running) or "nothing"

    # ------------------------------------------------------------ waiting

    def watch(self, poll_seconds: float = POLL_SECONDS) -> dict[str, str]:
        """Submit jobs as there is room, print which runs have ended, and return when all have. Return the reason of
        each crash by the run's id."""
        errors: dict[str, str] = {}
        while self.waiting or self.running:
            room = self.room()
            new, self.waiting = self.waiting[:room], self.waiting[room:]
            self.running += self.send(new)
            ended = [submitted for submitted in self.running if submitted.job.done()]
            self.running = [submitted for submitted in self.running if submitted not in ended]
            for submitted in ended:
                errors |= submitted.errors()
                self.note(submitted.job).unlink(missing_ok=True)
            self.report([*self.running, *ended], errors)
            time.sleep(poll_seconds if self.running else 0)
        return errors

    def room(self) -> int:
        """Return the number of jobs that may be submitted now; a cluster has a queue, so all may."""
        if self.cluster.executor != "local":
            return len(self.waiting)
        return max(0, (self.cluster.at_once or len(self.waiting)) - len(self.running))

    def report(self, jobs: Iterable[SubmittedJob], errors: Mapping[str, str]) -> None:
        """Print a line for each run that has ended since the last report."""
        for submitted in jobs:
            for run in submitted.runs:
                if run.id not in self.reported and (run.finished or run.id in errors):
                    self.reported.add(run.id)
                    how = f"crashed: {errors[run.id]}" if run.id in errors else f"done (job {submitted.job.job_id})"
                    name = f"{run.settings['strategy']}/{run.directory.name}"
                    print(f"[{len(self.reported)}/{self.runs}] {name}: {how}", flush=True)

    @contextmanager
    def ended_with_this_process(self) -> Iterator[None]:
        """If the block is interrupted, end the jobs of this machine; those of a cluster go on, and are named."""
        try:
            yield
        except BaseException:
            if self.cluster.executor == "local":
                self.end()
            elif self.running:
                numbers = " ".join(submitted.job.job_id for submitted in self.running)
                print(f"The jobs go on; scancel {numbers} ends them, the same command waits for them.", flush=True)
            raise

    def end(self) -> None:
        """Let local jobs write checkpoints and end."""
        for submitted in self.running:
            with suppress(ProcessLookupError):
                os.kill(int(submitted.job.job_id), signal.SIGTERM)  # to what has started the job, which passes it on
        end = time.monotonic() + SHUTDOWN_SECONDS
        while time.monotonic() < end and not all(submitted.job.done() for submitted in self.running):
            time.sleep(0.1)
