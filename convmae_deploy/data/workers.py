"""The processes that decode: signals are their parent's, and they end with it."""

import atexit
import multiprocessing
import signal
from functools import cache


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
