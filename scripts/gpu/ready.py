"""Make ready what a part of scripts/gpu_check.sh needs, or say in one paragraph what is missing, and end with 2.

Only the standard library until it is known that the rest is there.
"""

import argparse
import importlib
import importlib.util
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import NoReturn

INSTALLED = ("torch", "numpy", "pandas", "scipy", "matplotlib", "safetensors", "PIL", "yaml")  # too large to carry
CARRIED = ("hydra", "omegaconf", "antlr4", "pydantic", "filelock", "rich", "hypothesis", "pytest")
WITH_MNIST = ("single", "stacks", "sweep", "profile")
PREPARE = (
    "Run `scripts/gpu_check.sh prepare` where there is a network, with TARGET_PYTHON={version} if the Python there is "
    "another one, and carry its folder here, to {kit}."
)


def missing(names: tuple[str, ...]) -> list[str]:
    """Return the modules of `names` that are not installed. None is imported."""
    importlib.invalidate_caches()
    return [name for name in names if importlib.util.find_spec(name) is None]


def stop(what: str) -> NoReturn:
    print(f"gpu_check: {what}", file=sys.stderr)
    raise SystemExit(2)


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--part", required=True)
    flags.add_argument("--device", choices=["cpu", "cuda"], required=True)
    flags.add_argument("--kit", type=Path, required=True, help="what `scripts/gpu_check.sh prepare` has made")
    flags.add_argument("--unpacked", type=Path, required=True, help="where wheels and data are unpacked to")
    asked = flags.parse_args()
    version = ".".join(map(str, sys.version_info[:2]))
    prepare = PREPARE.format(version=version, kit=asked.kit)
    if sys.version_info < (3, 11):  # noqa: UP036 - this machine has whatever it has
        stop(f"this is Python {version}, and clrun needs 3.11 or newer. Name another with PYTHON=...")
    absent = missing(INSTALLED)
    if absent:
        stop(f"{sys.executable} has no {', '.join(absent)}. Name a Python that has with PYTHON=..., or install them.")
    if missing(CARRIED):
        install(asked.kit, asked.unpacked / "site", prepare)
    if asked.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            stop(
                "PyTorch sees no CUDA device here. `DEVICE=cpu scripts/gpu_check.sh ...` rehearses a part without one."
            )
        if asked.part in WITH_MNIST:
            unpack(asked.kit, asked.unpacked, prepare)


def install(kit: Path, site: Path, prepare: str) -> None:
    """Install the carried wheels into `site`, which is on PYTHONPATH."""
    wheels = sorted(map(str, (kit / "wheels").glob("*.whl")))
    if not wheels:
        stop(f"{', '.join(missing(CARRIED))}: neither installed nor carried. {prepare}")
    options = ["-q", "--no-index", "--no-deps", "--no-compile", "--upgrade", "--target", str(site)]
    done = subprocess.run([sys.executable, "-m", "pip", "install", *options, *wheels], capture_output=True, text=True)
    sys.path.append(str(site))
    if done.returncode or missing(CARRIED):
        stop(f"the wheels in {kit / 'wheels'} cannot be installed: {(done.stderr or done.stdout).strip()} {prepare}")


def unpack(kit: Path, unpacked: Path, prepare: str) -> None:
    """Unpack MNIST, unless CLRUN_DATA_DIR names a folder that has it."""
    named = os.environ.get("CLRUN_DATA_DIR")
    held = Path(named) if named else unpacked
    if (held / "MNIST" / "raw" / "train-images-idx3-ubyte").is_file():
        return
    packed = kit / "data" / "MNIST.tar.gz"
    if named or not packed.is_file():
        stop(f"there is no MNIST in {held}. " + ("CLRUN_DATA_DIR names that folder." if named else prepare))
    with tarfile.open(packed) as archive:
        archive.extractall(unpacked, filter="data")


if __name__ == "__main__":
    main()
