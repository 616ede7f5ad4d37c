"""Print what a part of the day of a card was measured on: card, driver, versions, commit, free memory."""

import platform
import subprocess
import sys
from pathlib import Path

import torch


def said(*line: str) -> str:
    """Return what a command prints, or that it is not there."""
    try:
        done = subprocess.run(line, capture_output=True, text=True, cwd=Path(__file__).parent)
    except OSError as error:
        return f"{line[0]}: {error.strerror}"
    return (done.stdout or done.stderr).strip()


print(f"python {sys.version}\ntorch {torch.__version__}, CUDA {torch.version.cuda}\n{platform.platform()}")
print(f"commit {said('git', 'rev-parse', 'HEAD')}")
print(said("nvidia-smi"))
for number in range(torch.cuda.device_count()):
    free, whole = torch.cuda.mem_get_info(number)
    print(f"cuda:{number} {torch.cuda.get_device_name(number)}: {free / 2**30:.1f} of {whole / 2**30:.1f} GiB free")
