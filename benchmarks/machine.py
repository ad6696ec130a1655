"""What a measurement ran on."""

import platform
import re
from pathlib import Path

from convmae_deploy.machine import available_cores

__all__ = ["available_cores", "processor"]


def processor() -> str:
    """The CPU's name."""
    if Path("/proc/cpuinfo").exists():
        match = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
        if match is not None:
            return match[1]
    return platform.processor() or platform.machine()
