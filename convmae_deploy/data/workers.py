"""The processes that decode: signals are their parent's, and they end with it."""

import atexit
import errno
import multiprocessing
import os
import signal
from functools import cache
from multiprocessing.queues import Queue

# exit codes of a process that could not hand over what it decoded
NO_SHARED_MEMORY, NO_OPEN_FILES = errno.ENOSPC, errno.EMFILE


def leave_signals_to_parent(worker: int) -> None:
    """`worker_init_fn` of a DataLoader: Ctrl-C reaches every process of a terminal; only the trainer may act on it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    Queue._on_queue_feeder_error = staticmethod(_end_with_lost_batch)  # type: ignore[attr-defined]


def _end_with_lost_batch(error: Exception, batch: object) -> None:
    """A batch that cannot be handed over is dropped otherwise, with a trace, and its trainer would wait for ever."""
    os._exit(NO_OPEN_FILES if "open files" in str(error) else NO_SHARED_MEMORY)


@cache
def end_workers_at_exit() -> None:
    """After an uncaught exception Python ends workers by SIGTERM, which they ignore, and would wait for ever."""
    atexit.register(_end_workers)


def _end_workers() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise about workers that were killed
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()
