"""What this process may use of the machine that it runs on, and what it has used."""

import ctypes
import os
import platform
import re
import sys
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # options of mallopt, from malloc.h
LARGE_BLOCK_BYTES = 4 << 20


def available_cores() -> int:
    """CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory_bytes() -> int:
    """Memory of the machine, or of the container that this process is in where that has less."""
    least = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # cgroups of the second and the first version
        path = Path("/sys/fs/cgroup") / name
        text = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
        if text.isdigit():  # "max": no limit
            least = min(least, int(text))
    return least


def peak_memory_bytes() -> int:
    """Most resident memory that this process has had."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would include what the parent had used when it started this process
        (line,) = (line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource  # which Windows does not have

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def processor() -> str:
    """The CPU's name."""
    if Path("/proc/cpuinfo").exists():
        match = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
        if match is not None:
            return match[1]
    return platform.processor() or platform.machine()


def keep_freed_memory() -> bool:
    """Makes malloc keep what this process frees, for training on a CPU; returns whether it does, which takes glibc.

    By default glibc gives a tensor of more than some megabytes back to the kernel when it is freed, and the next one of
    that size is mapped and cleared page by page again, which takes up to a quarter of a training step. The most memory
    that the process uses grows by a few per cent at most, but it never becomes less again. Processes forked later
    behave the same.
    """
    # no block is a mapping of its own, and the heap that all are in is never cut off at its end
    return _mallopt({M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1})


def give_back_freed_memory() -> bool:
    """Makes malloc give large blocks back as soon as they are freed, for a server; returns whether it does (glibc).

    By default glibc learns from the first large block that is freed to keep such blocks, up to 64 MB for each thread:
    after a few large photos a server would hold gigabytes that nobody uses. Small blocks stay as fast as they are.
    """
    return _mallopt({M_MMAP_THRESHOLD: LARGE_BLOCK_BYTES, M_TRIM_THRESHOLD: LARGE_BLOCK_BYTES})


def _mallopt(options: dict[int, int]) -> bool:
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None)
    return hasattr(libc, "gnu_get_libc_version") and all(libc.mallopt(*option) for option in options.items())
