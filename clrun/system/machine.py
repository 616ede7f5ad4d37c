"""This machine: its processor, its cores, and its memory."""

import os
import sys
from functools import cache
from pathlib import Path

from clrun.system.errors import UsageError

ROOT = Path("/")  # the folder that /proc and /sys are in


@cache
def device_name(device: str) -> str:
    """Return the kind of a device and its model, such as 'cuda (NVIDIA H100)' or 'cpu (AMD EPYC 7763)'; the kind alone
    where the system does not state the model. device: as PyTorch names it."""
    kind = device.split(":")[0]
    if kind == "cuda":
        import torch  # late: a CPU is named without it

        return f"{kind} ({torch.cuda.get_device_name(device)})"
    model = processor_name(Path("/proc/cpuinfo"))
    return f"{kind} ({model})" if model else kind


def processor_name(cpuinfo: Path) -> str:
    """Return the model of the processor, from Linux's list of processors; empty where there is no such list."""
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


@cache
def memory_bytes(root: Path = ROOT) -> int:
    """Return the size of this machine's memory, or of the part of it that this process may use, where a container or a
    cluster limits that. root: the folder that /proc and /sys are in."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    texts = [*control_files(root, "memory", "memory.max"), *control_files(root, "memory", "memory.limit_in_bytes")]
    return min([physical, *(int(text) for text in texts if text.isdigit())])


def refuse_if_too_large(needed: int, what: str, instead: str) -> None:
    """Raise UsageError if this many bytes exceed the machine's memory, before any of them is allocated: the system
    would kill the process.

    what, instead: the cause and the remedy, such as "dataset.pad=9 (images of 26 x 26 pixels)" and "a smaller one".
    """
    if needed > memory_bytes():
        raise UsageError(
            f"{what} takes about {needed / 1e9:.3g} GB of memory, and this machine has {memory_bytes() / 1e9:.3g}; "
            f"type {instead}."
        )


def cores(root: Path = ROOT, slurm: str | None = None) -> int:
    """Return the number of CPU cores that this process may use: those that it is bound to, but no more than a container
    or a cluster gives it time on, in whole cores.

    root: the folder that /proc and /sys are in. slurm: what Slurm gives a task, by default $SLURM_CPUS_PER_TASK.
    """
    bound = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    given = os.environ.get("SLURM_CPUS_PER_TASK", "") if slurm is None else slurm
    limits = [int(given)] if given.isdigit() else []
    return max(1, min([bound, *limits, *(int(share) for share in cpu_quotas(root))]))


# ---------------------------------------------------------------- limits of containers and clusters (Linux's cgroups)


def cpu_quotas(root: Path) -> list[float]:
    """Return how many cores' time the control groups of this process may use: each that states a limit."""
    pairs = [text.split() for text in control_files(root, "cpu", "cpu.max")]  # version 2: "max 100000", "150000 100000"
    quotas = control_files(root, "cpu", "cpu.cfs_quota_us")  # version 1: -1 is no limit
    pairs += [list(pair) for pair in zip(quotas, control_files(root, "cpu", "cpu.cfs_period_us"), strict=False)]
    limited = [pair for pair in pairs if len(pair) == 2 and all(text.isdigit() for text in pair)]
    return [int(quota) / int(period) for quota, period in limited if int(period) > 0]


def control_files(root: Path, controller: str, name: str) -> list[str]:
    """Return the texts of the files of this name in the control groups of this process and in those that contain them.
    A controller is a resource, such as "memory"."""
    paths = [folder / name for folder in control_groups(root, controller)]
    return [path.read_text(encoding="utf-8").strip() for path in paths if path.is_file()]


def control_groups(root: Path, controller: str) -> list[Path]:
    """Return the folders of the control groups of this process for a controller, the innermost first. In a container,
    the path that /proc states may be that of the host; the folder where its groups begin is returned in any case."""
    listing = root / "proc/self/cgroup"
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.is_file() else []
    folders: dict[Path, None] = {}
    for line in lines:  # "0::/user/session" in version 2, "4:cpu,cpuacct:/docker/1f" in version 1
        _, controllers, group = [*line.split(":", 2), "", ""][:3]
        names = ["", "unified"] if not controllers else [controllers, controller]
        if controllers and controller not in controllers.split(","):
            continue
        for top in (root / "sys/fs/cgroup" / name for name in names):
            inner = top / group.strip("/")
            within = [inner, *inner.parents] if ".." not in inner.parts else []
            folders |= dict.fromkeys(folder for folder in within if folder.is_relative_to(top))
            folders[top] = None
    return list(folders)
