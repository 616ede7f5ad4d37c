"""Where a run was made: device, versions, commit."""

import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path

import clrun
from clrun.system.machine import device_name


def provenance(device: str = "cpu") -> dict[str, str]:
    """device (kind and model name), torch_version, clrun_version, commit (of clrun's own checkout, else empty)."""
    return {
        "device": device_name(device),
        "torch_version": version("torch"),
        "clrun_version": clrun.__version__,
        "commit": commit(),
    }


@cache
def commit() -> str:
    """The commit of clrun's own checkout, '+' appended where tracked files differ from it; empty if installed.

    Only a `.git` beside the package counts: a virtual environment inside somebody's project is not a checkout of clrun.
    """
    root = Path(clrun.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):  # no git here: the commit stays unknown
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""
