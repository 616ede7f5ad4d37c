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
    name = answer_of_git(root, "describe", "--always", "--abbrev=12", "--exclude=*")
    changed = answer_of_git(root, "status", "--porcelain", "--untracked-files=no") if name else ""
    return f"{name}+" if changed else name


def answer_of_git(root: Path, *words: str) -> str:
    """Return what git prints on a checkout; empty where there is no git, or it fails.

    It does not lock its index, as `git describe --dirty` does: a `git commit` beside a run would fail then.
    """
    command = ["git", "--no-optional-locks", "-C", str(root), *words]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""
