"""Stopping a run with Ctrl-C or SIGTERM at the end of an update instead of in the middle of one."""

import atexit
import multiprocessing
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import FrameType


class Interruption:
    """Whether a signal asked the run to stop; which one in `signal_number`."""

    def __init__(self) -> None:
        self.signal_number: int | None = None


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Collects SIGINT and SIGTERM while the block runs; a second one acts at once."""
    end_workers_at_exit()
    interruption = Interruption()
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def request(number: int, frame: FrameType | None) -> None:
        interruption.signal_number = number
        for other, handler in previous.items():
            signal.signal(other, handler)

    for number in previous:
        signal.signal(number, request)
    try:
        yield interruption
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def leave_signals_to_parent(worker: int) -> None:
    """`worker_init_fn` of a DataLoader: Ctrl-C reaches every process of a terminal; only the trainer may act on it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@cache
def end_workers_at_exit() -> None:
    """After an uncaught exception Python ends workers by SIGTERM, which they ignore, and would wait for ever."""
    atexit.register(_end_workers)


def _end_workers() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise about workers that were killed
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()
