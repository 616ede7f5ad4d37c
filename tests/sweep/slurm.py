#!/usr/bin/env python3
"""A Slurm of one machine, for tests: sbatch, srun, sacct and scontrol in one, by the name that it is called by.

Its jobs lie in $FAKE_SLURM: ID.pid (of what runs the job), ID.sh, ID.requeue (asked for), ID.state.
"""

import os
import subprocess
import sys
from pathlib import Path

HOME = Path(os.environ["FAKE_SLURM"])


def sbatch(script: str) -> None:
    """Run the script in the background, again whenever that was asked for meanwhile."""
    number = str(1000 + len(list(HOME.glob("*.sh"))))
    (HOME / f"{number}.sh").write_text(Path(script).read_text())
    (HOME / f"{number}.state").write_text("PENDING")
    print(f"Submitted batch job {number}", flush=True)
    if os.fork():
        return
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    (HOME / f"{number}.pid").write_text(str(os.getpid()))
    asked = HOME / f"{number}.requeue"
    while True:
        (HOME / f"{number}.state").write_text("RUNNING")
        code = subprocess.call(["bash", str(HOME / f"{number}.sh")], env={**os.environ, "SLURM_JOB_ID": number})
        if not asked.exists():
            break
        asked.unlink()
    (HOME / f"{number}.state").write_text("FAILED" if code else "COMPLETED")


def srun(*words: str) -> None:
    """Become the command, writing where srun is told to."""
    start = next(i for i, word in enumerate(words) if word.endswith("python") or "/python" in word)
    output = words[words.index("--output") + 1].replace("%j", os.environ["SLURM_JOB_ID"]).replace("%t", "0")
    log = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1), os.dup2(log, 2)
    os.execve(words[start], words[start:], {**os.environ, "SLURM_PROCID": "0", "SLURM_LOCALID": "0"})


def sacct(*words: str) -> None:
    print("JobID|State|NodeList")
    for number in [words[i + 1] for i, word in enumerate(words) if word == "-j"]:
        if (HOME / f"{number}.state").exists():
            print(f"{number}|{(HOME / f'{number}.state').read_text()}|here")


def scontrol(what: str, number: str) -> None:
    assert what == "requeue"
    (HOME / f"{number}.requeue").touch()


globals()[Path(sys.argv[0]).name](*sys.argv[1:])
