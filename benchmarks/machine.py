"""What a measurement ran on and took, and what it keeps from the terminal."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from convmae_deploy.machine import available_cores, peak_memory_bytes, processor

__all__ = ["available_cores", "peak_memory_gb", "processor", "quiet_loggers"]


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
