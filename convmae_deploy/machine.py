"""What this process may use of the machine that it runs on, and what it has used."""

import ctypes
import gc
import math
import os
import platform
import re
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path("/")

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # options of mallopt, from malloc.h
LARGE_BLOCK_BYTES = 4 << 20


def available_cores(root: Path = ROOT) -> int:
    """CPU cores that this process may use: those it may run on, or fewer where its container has a smaller quota.

    A part of a core counts as one, as the kernel lets every thread run until the quota of a moment is used up.

    Args:
        root: where `/proc` and `/sys` are.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, cpu_quota(root))))


def cpu_quota(root: Path = ROOT) -> float:
    """Cores that control groups allow this process and its neighbours on average; infinity where they set no limit."""
    quotas = [math.inf]
    for folder in _control_groups("cpu", root):
        quota, _, period = _text(folder / "cpu.max").partition(" ")  # the second version's
        if not quota:
            quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period):  # "max" and -1: no limit
            quotas.append(int(quota) / int(period))
    return min(quotas)


def available_memory_bytes(root: Path = ROOT) -> int:
    """Memory of the machine, or of the container that this process is in where that has less.

    Args:
        root: where `/proc` and `/sys` are.
    """
    least = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for folder in _control_groups("memory", root):
        for name in ("memory.max", "memory.limit_in_bytes"):  # of the second and the first version
            text = _text(folder / name)
            if text.isdigit():  # "max": no limit
                least = min(least, int(text))
    return least


def _control_groups(controller: str, root: Path) -> Iterator[Path]:
    """Folders of the control groups that this process is in, from the innermost out; not all of them need exist.

    A container may see its own group as the outermost one, while the path names it as the machine does.
    """
    mounted = root / "sys/fs/cgroup"
    paths = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            paths += [(mounted / controller, path), (mounted / controllers, path)]  # the first version
        elif not controllers:
            paths.append((mounted, path))
    for mount, path in [*paths, (mounted, "/"), (mounted / controller, "/")]:
        inner = PurePosixPath(path.lstrip("/"))
        if ".." not in inner.parts:  # of a process outside of what is mounted here
            yield from (mount / part for part in (inner, *inner.parents))


def _text(path: Path) -> str:
    """What a small file says; nothing where there is none."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


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


def release_free_memory() -> bool:
    """Gives back all that nobody uses, after something large has gone; returns whether malloc's too (glibc)."""
    gc.collect()
    return trim_heap()


def trim_heap() -> bool:
    """Gives back what malloc holds and nobody uses; returns whether it can (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is None:
        return False
    trim(0)
    return True


def _mallopt(options: dict[int, int]) -> bool:
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None)
    return hasattr(libc, "gnu_get_libc_version") and all(libc.mallopt(*option) for option in options.items())
