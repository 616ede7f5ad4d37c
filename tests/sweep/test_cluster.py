"""cluster=local and cluster=slurm: sweeps as jobs, jobs that are interrupted, and jobs that die.

The jobs of cluster=local are those of submitit's local executor. Slurm is played by slurm.py beside this file.
"""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import summaries
from processes import children, living, tables, until

from clrun.sweep import cluster
from clrun.system.signals import ExitHandler, handled

pytest.importorskip("submitit")
pytestmark = pytest.mark.usefixtures("empty_folder")
SHORT = ("iterations=4", "model.widths=[8]", "tasks=2", "device=cpu")
WORK = ("epochs=50", "model.widths=[8]", "tasks=2", "device=cpu", "checkpoint_every=0.01")
LONG = (*WORK, "cluster=local", "outputs=jobs")


def started(*arguments: str) -> subprocess.Popen:
    line = [sys.executable, "-m", "clrun.commands.run", *arguments]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def training() -> list[int]:
    """The processes of this folder's jobs."""
    found = subprocess.run(["ps", "-eww", "-o", "pid=,args="], capture_output=True, text=True, check=True).stdout
    own = [line for line in found.splitlines() if f"submitit.core._submit {Path.cwd()}/jobs/cluster" in line]
    return [int(line.split()[0]) for line in own]


def begun() -> bool:
    """Whether a run has something from which it can go on."""
    return until(lambda: any(Path("jobs").glob("runs/*/*/checkpoint.safetensors")), seconds=240)


def log(outputs: str = "jobs") -> str:
    return "".join(path.read_text() for path in Path(outputs).glob("cluster/*_log.out"))


# ---------------------------------------------------------------- what jobs are made of


@pytest.mark.slow
def test_a_sweep_in_jobs_writes_what_a_sweep_writes(clrun):
    typed = ("-m", "strategy=finetune,ewc", "seed=0,1", *SHORT)
    code, out, _ = clrun(*typed, "cluster=local", "cluster.cpus=2", "outputs=jobs")
    assert code == 0 and sorted(re.findall(r"^\[(\d)/4\] \S+: done \(job \d+\)$", out, re.M)) == list("1234")
    assert re.findall(r"^ +(ewc|finetune) +\d .* done *$", out, re.M) == ["finetune", "finetune", "ewc", "ewc"]
    assert len(list(Path("jobs/cluster").glob("*_submitted.pkl"))) == 2  # a job a group
    assert clrun(*typed, "outputs=here", "workers=1")[0] == 0
    assert len(tables("here")) == 4 * 6 and tables("jobs") == tables("here")
    code, out, _ = clrun(*typed, "cluster=local", "outputs=jobs")
    assert code == 0 and "0 to train, 4 done already" in out
    assert len(list(Path("jobs/cluster").glob("*_submitted.pkl"))) == 2


def test_a_single_run_is_a_job_too(clrun):
    code, out, _ = clrun("strategy=finetune", *SHORT, "cluster=local")
    assert code == 0 and "done (job" in out and "forgetting in percent" in out
    assert "done already" in clrun("strategy=finetune", *SHORT, "cluster=local")[1].lower()


def test_groups_and_pieces(prepared_of):
    runs = [prepared_of(*SHORT, f"strategy={name}", f"seed={seed}") for name in ("ewc", "si") for seed in range(5)]
    assert [len(job) for job in cluster.runs_of_jobs(runs, cluster.Cluster("slurm", {}))] == [5, 5]
    assert [len(job) for job in cluster.runs_of_jobs(runs, cluster.Cluster("slurm", {"runs": 2}))] == [
        1,
        2,
        2,
        1,
        2,
        2,
    ]


def test_how_many_jobs_at_once():
    wide = [{"cpus": 2}, {"cpus": 16}, {"cpus": 2, "gpus": 1}, {"cpus": 2, "jobs": 3}]
    assert [cluster.Cluster("local", knobs, cores=8).at_once for knobs in wide] == [4, 1, 1, 3]
    assert cluster.Cluster("slurm", {"cpus": 2}).at_once is None


def test_what_slurm_is_asked_for():
    knobs = {"hours": 1.5, "gpus": 1, "cpus": 4, "memory_gb": 16.0, "partition": "gpu", "jobs": 8}
    asked = cluster.Cluster("slurm", {**knobs, "options": "--exclude=n1 --requeue"}).parameters()
    assert asked["timeout_min"] == 90 and asked["slurm_partition"] == "gpu" and asked["slurm_array_parallelism"] == 8
    assert asked["slurm_additional_parameters"] == {"exclude": "n1", "requeue": True}
    assert "slurm_account" not in asked


# ---------------------------------------------------------------- the end of a job


def test_a_job_that_fails_as_a_whole_names_the_users_line(prepared_of):
    """submitit raises what the job has printed: the traceback, as text."""
    trace = (
        "Job (task=0) failed during processing with trace:\n----------------------\n"
        "Traceback (most recent call last):\n"
        '  File "site-packages/submitit/core/submission.py", line 55, in process_job\n    result = run()\n'
        '  File "mine/decay.py", line 12, in incompatibility\n    return knobs["tau"]\n           ~~~~~^^^^^^^\n'
        "KeyError: 'tau'\n"
    )
    run, job = prepared_of(*SHORT), SimpleNamespace(job_id="7", paths=SimpleNamespace(stdout="7.log"))
    reason = cluster.SubmittedJob(job, [run]).write_reason(run, RuntimeError(trace))
    where = 'mine/decay.py, line 12, in incompatibility: return knobs["tau"]'
    assert reason == f"job 7: {where}: KeyError: 'tau'; its log is 7.log"
    assert (run.directory / "failed.txt").read_text().startswith(reason)


@pytest.mark.slow
def test_a_job_that_is_killed_is_named_and_the_same_command_finishes_it(clrun):
    typed = ("-m", "strategy=ewc,finetune", *LONG, "cluster.jobs=1")
    with started(*typed) as process:
        assert begun()
        (job,) = training()
        os.kill(job, signal.SIGKILL)
        out, err = process.communicate(timeout=400)
    (failed,) = Path("jobs").rglob("failed.txt")
    assert process.returncode == 1 and "1 of 2 runs crashed" in err and str(failed) in err
    assert "ended without a word; its log is" in failed.read_text() and failed.parent.parent.name == "ewc"
    assert len(summaries("finetune", outputs="jobs")) == 1 and "done (job" in out
    code, out, _ = clrun(*typed)
    assert code == 0 and "1 to train, 1 done already" in out and not list(Path("jobs").rglob("failed.txt"))


@pytest.mark.slow
@pytest.mark.parametrize("cpus, everybody", [(1, False), (2, True)])
def test_an_interrupted_job_saves_and_is_put_back_into_the_queue(clrun, cpus, everybody):
    """The signal is sent to the job's own process, or to all that it has started, as Slurm does."""
    typed = ("-m", "strategy=ewc", "seed=0,1", *LONG, f"cluster.cpus={cpus}")
    with started(*typed) as process:
        assert begun()
        (job,) = training()
        for pid in [*children(job), job] if everybody else [job]:
            os.kill(pid, signal.SIGUSR2)
        out, err = process.communicate(timeout=400)
    assert process.returncode == 0 and out.count("done (job") == 2, out + err
    said = log()
    assert "Requeued job" in said and said.count("Starting with JobEnvironment") == 2
    assert 1 <= said.count("continues after task") <= cpus and "killed by" not in said
    assert not list(Path("jobs").rglob("failed.txt")) and not list(Path("jobs").rglob("lock.json"))
    assert clrun(*typed[:3], *WORK, "outputs=here", "workers=2")[0] == 0
    assert tables("jobs") == tables("here")


@pytest.mark.slow
def test_jobs_end_with_the_command(clrun):
    with started("-m", "strategy=ewc", "seed=0,1", *LONG, "cluster.cpus=2") as process:
        assert begun()
        pids = children(process.pid)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 143 and until(lambda: not living(pids)) and "Traceback" not in err
    assert list(Path("jobs").glob("runs/*/*/checkpoint.safetensors"))
    assert not list(Path("jobs").rglob("lock.json")) and not list(Path("jobs").rglob("failed.txt"))


def test_what_is_started_meanwhile_ignores_the_signal():
    before = signal.getsignal(signal.SIGUSR2)
    with handled(signal.SIG_IGN, signal.SIGUSR2):
        process = subprocess.Popen(["sleep", "60"])
    try:
        process.send_signal(signal.SIGUSR2)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        assert signal.getsignal(signal.SIGUSR2) == before
    finally:
        process.kill()
        process.wait()


def test_signals_that_come_while_it_saves_are_remembered():
    handler = ExitHandler(cluster.JobEnding)
    with pytest.raises(cluster.JobEnding):
        handler(signal.SIGTERM, None)
    handler(signal.SIGUSR2, None)
    assert handler.received == [signal.SIGTERM, signal.SIGUSR2]


# ---------------------------------------------------------------- Slurm, as far as it can be played


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """The folder of the pretended cluster's jobs."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "slurm").mkdir()
    script = Path(__file__).with_name("slurm.py")
    for name in ("sbatch", "srun", "sacct", "scontrol"):
        (tmp_path / "bin" / name).write_text(f"#!{sys.executable}\n" + script.read_text())
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(tmp_path / "slurm"))
    return tmp_path / "slurm"


@pytest.mark.slow
def test_slurm_jobs_that_nobody_waits_for(clrun, slurm):
    """Submitted, found in the queue by the same command, interrupted, requeued, done."""
    typed = ("-m", "strategy=ewc", "seed=0,1", *WORK, "outputs=jobs", "cluster=slurm", "cluster.partition=gpu")
    code, out, _ = clrun(*typed, "cluster.hours=2", "cluster.wait=false")
    assert code == 0 and "Submitted: job 1000 (2 runs)." in out
    script = (slurm / "1000.sh").read_text()
    assert "#SBATCH --partition=gpu" in script and "#SBATCH --time=120" in script and "--signal=USR2@" in script
    assert begun()
    (job,) = training()
    os.kill(job, signal.SIGSTOP)
    with started(*typed) as process:
        assert "In the queue already: 1000." in [process.stdout.readline() for _ in range(2)][1]
        os.kill(job, signal.SIGUSR2)
        os.kill(job, signal.SIGCONT)
        out, err = process.communicate(timeout=400)
    assert process.returncode == 0, out + err
    assert out.count("done (job 1000)") == 2
    assert "Requeued job 1000" in log() and "continues after task" in log()
    assert len(list(slurm.glob("*.sh"))) == 1 and not list(Path("jobs/cluster").glob("*_runs.json"))


# ---------------------------------------------------------------- mistakes

MISTAKES = {
    "no such": (("cluster=slurn",), "did you mean slurm?"),
    "which": (("cluster.partition=gpu",), "type which cluster, too"),
    "foreign": (("cluster=local", "cluster.partition=gpu"), "cluster=local takes no cluster.partition (slurm does)"),
    "hours": (("cluster=local", "cluster.hours=0"), "cluster.hours=0: must be a finite number, above 0"),
    "two": (("-m", "cluster=local,slurm"), "a sweep goes to one cluster"),
    "unknown": (("cluster.cpu=1",), "did you mean cluster.cpus?"),
    "options": (("cluster=slurm", "cluster.options='--a --=3'"), "--name=value"),
    "rerun": (("cluster=local", "rerun=true"), "type outputs=FOLDER"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_paragraph(clrun, case):
    typed, said = MISTAKES[case]
    code, _, err = clrun(*typed, *SHORT)
    assert code == 2 and said in err and err.count("\n") == 1 and not Path("outputs").exists()


def test_without_submitit(clrun, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)  # so that it cannot be found
    code, _, err = clrun("-m", "seed=0,1", *SHORT, "cluster=local")
    assert code == 2 and "pip install 'clrun[cluster]'" in err and err.count("\n") == 1


def test_a_cluster_is_no_part_of_a_run(prepared_of):
    assert prepared_of("cluster=slurm", "cluster.hours=3").id == prepared_of().id
