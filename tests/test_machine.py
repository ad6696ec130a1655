"""Memory that training frees stays with its process, and the most memory of a process is its own."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from convmae_deploy.machine import available_cores, available_memory_bytes, cpu_quota, peak_memory_bytes
from tests.waiting import PATIENCE_SECONDS

# what a step allocates and frees, and the pages that the kernel maps for it: 64 MB are 16 384 of them
PROGRAM = """
import resource, sys
import numpy as np
from convmae_deploy.machine import keep_freed_memory

if sys.argv[1] == "kept" and not keep_freed_memory():
    sys.exit("not glibc")
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    maps = [np.ones(64 * 2**20, np.uint8) for _ in range(2)]
    del maps
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def mapped_pages(mode: str) -> list[int]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    if done.returncode and "not glibc" in done.stderr:
        pytest.skip("this machine's malloc is not glibc's")
    assert done.returncode == 0, done.stderr
    return [int(line) for line in done.stdout.split()]


@pytest.mark.slow
def test_freed_memory_is_used_again_without_new_pages_where_a_program_asks_for_that() -> None:
    kept = mapped_pages("kept")
    assert kept[0] > 10 * max(kept[1:])
    given_back = mapped_pages("given back")
    assert min(given_back) > 0.5 * given_back[0]


def test_there_is_a_core() -> None:
    assert available_cores() >= 1


@pytest.mark.slow
def test_the_most_memory_stays_after_it_is_freed_and_is_not_that_of_the_parent() -> None:
    before = peak_memory_bytes()
    held = np.ones(300 * 2**20, np.uint8)
    during = peak_memory_bytes()
    del held
    uncounted = 10_000_000  # the kernel keeps some pages of each thread apart
    assert during > 300_000_000 and peak_memory_bytes() + uncounted >= during >= before
    program = "from convmae_deploy.machine import peak_memory_bytes; print(peak_memory_bytes())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert 5_000_000 < int(done.stdout) < 300_000_000


def control_groups(root: Path, memberships: str, **files: str) -> Path:
    """A machine's `/proc` and `/sys` with these control groups; `cpu_max="50000 100000"` at the path of the key."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(memberships)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("memberships", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "50000 100000"}, 0.5),  # a container that sees its own group as the outermost
        ("0::/\n", {"cpu.max": "max 100000"}, math.inf),
        ("0::/a/b\n", {"a/cpu.max": "150000 100000", "a/b/cpu.max": "max 100000"}, 1.5),  # of the group around it
        ("0::/../other\n", {"cpu.max": "max 100000"}, math.inf),
        (
            "4:cpu,cpuacct:/docker/1\n",
            {"cpu,cpuacct/cpu.cfs_quota_us": "25000", "cpu,cpuacct/cpu.cfs_period_us": "1"},
            25000,
        ),
        ("4:cpuacct,cpu:/docker/1\n", {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 0.5),
        ("1:cpu:/d/1\n", {"cpu/d/1/cpu.cfs_quota_us": "-1", "cpu/d/1/cpu.cfs_period_us": "100000"}, math.inf),
        ("1:cpu:/d/1\n", {"cpu/d/1/cpu.cfs_quota_us": "250000", "cpu/d/1/cpu.cfs_period_us": "100000"}, 2.5),
        ("1:cpuset:/\n0::/\n", {}, math.inf),
        ("", {}, math.inf),
    ],
)
def test_the_quota_of_a_container_is_the_smallest_of_its_control_groups(
    memberships: str, files: dict[str, str], quota: float, tmp_path: Path
) -> None:
    assert cpu_quota(control_groups(tmp_path, memberships, **files)) == quota


def test_a_part_of_a_core_is_one_core(tmp_path: Path) -> None:
    assert available_cores(control_groups(tmp_path, "0::/\n", **{"cpu.max": "50000 100000"})) == 1


def test_on_a_machine_without_control_groups_all_cores_and_all_memory_are_there(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) == math.inf
    assert available_memory_bytes(tmp_path) > 2**20


@pytest.mark.parametrize(
    ("memberships", "files"),
    [
        ("0::/\n", {"memory.max": "1048576"}),
        ("0::/a/b\n", {"a/memory.max": "1048576", "a/b/memory.max": "max"}),
        ("4:memory:/d/1\n", {"memory/memory.limit_in_bytes": "1048576"}),
        ("4:memory:/d/1\n", {"memory/d/1/memory.limit_in_bytes": "1048576"}),
    ],
)
def test_the_memory_of_a_container_is_that_of_its_control_groups(
    memberships: str, files: dict[str, str], tmp_path: Path
) -> None:
    assert available_memory_bytes(control_groups(tmp_path, memberships, **files)) == 2**20


RELEASE = """
import os, sys
from convmae_deploy.machine import release_free_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

blocks = [bytes(10_000) for _ in range(20_000)]
full = resident()
blocks = blocks[-1:]  # the last one keeps all before it in the process
if not release_free_memory():
    sys.exit("not glibc")
print(full - resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_what_nobody_uses_is_given_back() -> None:
    finished = subprocess.run([sys.executable, "-c", RELEASE], capture_output=True, text=True)
    if finished.stderr.strip() == "not glibc":
        pytest.skip("another malloc")
    assert int(finished.stdout) > 100e6
