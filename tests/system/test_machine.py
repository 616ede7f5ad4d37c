"""The cores and the memory that a process may use: limits of containers and clusters, as Linux states them."""

import os
from pathlib import Path

import pytest

from clrun.system import machine


def system(root: Path, groups: str, **files: str) -> Path:
    """A root folder with /proc/self/cgroup and files of control groups, whose names have `__` for a slash."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


QUOTA = "cpu_dot_cfs_quota_us"
PERIOD = "cpu_dot_cfs_period_us"
V2 = "0::/user/job\n"
V1 = "9:memory:/docker/1f\n4:cpu,cpuacct:/docker/1f\n1:name=systemd:/docker/1f\n"


@pytest.mark.parametrize(
    "groups, files, quotas",
    [
        (V2, {"user__job__cpu_dot_max": "150000 100000"}, [1.5]),
        (V2, {"user__job__cpu_dot_max": "max 100000"}, []),
        (V2, {"user__job__cpu_dot_max": "max 100000", "user__cpu_dot_max": "400000 100000"}, [4.0]),
        ("0::/\n", {"cpu_dot_max": "200000 100000"}, [2.0]),
        ("0::/../../elsewhere\n", {"cpu_dot_max": "200000 100000"}, [2.0]),
        (V1, {f"cpu,cpuacct__docker__1f__{QUOTA}": "300000", f"cpu,cpuacct__docker__1f__{PERIOD}": "100000"}, [3.0]),
        (V1, {f"cpu__{QUOTA}": "300000", f"cpu__{PERIOD}": "100000"}, [3.0]),  # a container, whose path is the host's
        (V1, {f"cpu,cpuacct__docker__1f__{QUOTA}": "-1", f"cpu,cpuacct__docker__1f__{PERIOD}": "100000"}, []),
        ("", {}, []),
    ],
)
def test_the_time_that_a_group_may_use(tmp_path, groups, files, quotas):
    assert machine.cpu_quotas(system(tmp_path, groups, **files)) == quotas


def test_cores_are_whole_and_at_least_one(tmp_path):
    root = system(tmp_path, V2, user__job__cpu_dot_max="50000 100000")
    assert machine.cores(root, slurm="") == 1
    assert machine.cores(tmp_path / "no such system", slurm="") == len(os.sched_getaffinity(0))
    assert machine.cores(tmp_path / "no such system", slurm="1") == 1


@pytest.mark.parametrize(
    "groups, files",
    [
        (V2, {"user__job__memory_dot_max": "max", "user__memory_dot_max": "1000000"}),
        (V2, {"user__job__memory_dot_max": "1000000", "user__memory_dot_max": "2000000"}),
        (V1, {"memory__docker__1f__memory_dot_limit_in_bytes": "1000000"}),
        (V1, {"memory__memory_dot_limit_in_bytes": "1000000"}),
    ],
)
def test_the_memory_that_a_group_may_use(tmp_path, groups, files):
    assert machine.memory_bytes(system(tmp_path, groups, **files)) == 1_000_000


def test_a_limit_above_the_memory_is_none(tmp_path):
    root = system(tmp_path, V1, memory__docker__1f__memory_dot_limit_in_bytes="9223372036854771712")
    assert machine.memory_bytes(root) == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
