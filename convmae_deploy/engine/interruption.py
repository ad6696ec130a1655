"""Stopping a run with Ctrl-C or SIGTERM at the end of an update instead of in the middle of one."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from convmae_deploy.data.workers import end_workers_at_exit


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
