"""The peers' environments: made when first asked for, one each, with the same torch as ours."""

import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

PINNED = {"avalanche": "avalanche-lib==0.6.0", "clarena": "clarena==1.1.0"}
READY = "bench-ready.txt"  # written last, with what was asked of pip


def default_folder() -> Path:
    """In the user's cache folder."""
    from clrun.data.datasets import data_folder

    return data_folder(None) / "peers"


def ready(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """{peer: its Python}, after installing what is missing (gigabytes). CalledProcessError where pip fails."""
    return {name: str(installed(folder / name, PINNED[name])) for name in names}


def installed(place: Path, requirement: str) -> Path:
    import torch

    wanted = [f"torch=={torch.__version__.partition('+')[0]}", requirement]
    python = place / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    if not (place / READY).exists() or (place / READY).read_text().split() != wanted:
        print(f"bench: installing {' '.join(wanted)} into {place}", file=sys.stderr, flush=True)
        venv.create(place, with_pip=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *wanted], check=True)
        (place / READY).write_text("\n".join(wanted))
    return python
