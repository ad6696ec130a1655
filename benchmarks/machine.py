"""What a measurement ran on, and what it took."""

import platform
import re
import resource
from pathlib import Path

from convmae_deploy.machine import available_cores

__all__ = ["available_cores", "peak_memory_gb", "processor"]


def processor() -> str:
    """The CPU's name."""
    if Path("/proc/cpuinfo").exists():
        match = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
        if match is not None:
            return match[1]
    return platform.processor() or platform.machine()


def peak_memory_gb() -> float:
    """Most resident memory that this process has had."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would include what the parent had used when it started this process
        (line,) = (line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
