"""What a measurement ran on and took, and what it keeps from the terminal."""

import logging
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from convmae_deploy.machine import available_cores, peak_memory_bytes

__all__ = ["available_cores", "peak_memory_gb", "processor", "quiet_loggers"]


def processor() -> str:
    """The CPU's name."""
    if Path("/proc/cpuinfo").exists():
        match = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
        if match is not None:
            return match[1]
    return platform.processor() or platform.machine()


def peak_memory_gb() -> float:
    """Most resident memory that this process has had."""
    return peak_memory_bytes() / 1e9


@contextmanager
def quiet_loggers(*names: str) -> Iterator[None]:
    """Keeps all but errors of these loggers from the terminal, and leaves their levels as they were."""
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
