"""Where a run was made: its device, the versions of PyTorch and clrun, and the commit of clrun."""

import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path

import clrun
from clrun.system.machine import device_name
from clrun.system.paths import PACKAGE


def provenance(device: str = "cpu") -> dict[str, str]:
    """Return the columns of summary.csv on a device, as PyTorch names it, on versions and on clrun's commit."""
    return {
        "device": device_name(device),
        "torch_version": version("torch"),
        "clrun_version": clrun.__version__,
        "commit": commit(),
    }


@cache
def commit(package: Path = PACKAGE) -> str:
    """Return the commit of clrun's own checkout, with '+' appended where tracked files differ from it; empty if clrun
    is installed.

    Only a `.git` beside the package counts: a virtual environment inside a user's project is not a checkout of clrun.
    """
    root = package.resolve().parent
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):  # no git here: the commit stays unknown
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""
