"""Waiting for other threads and processes, and a clock that a test moves."""

import threading
import time
from collections.abc import Callable

PATIENCE_SECONDS = 120.0  # only a test that fails waits for as long as this
LONGEST_PAUSE_SECONDS = 0.05  # between two looks


def wait_until(condition: Callable[[], object]) -> None:
    """Returns once a condition holds, which another thread or process sees to."""
    deadline, pause = time.monotonic() + PATIENCE_SECONDS, 0.0005
    while not condition():
        assert time.monotonic() < deadline, f"not so after {PATIENCE_SECONDS:.0f} s"
        time.sleep(pause)
        pause = min(1.5 * pause, LONGEST_PAUSE_SECONDS)


def wait_for(event: threading.Event) -> None:
    """Returns once an event is set."""
    assert event.wait(PATIENCE_SECONDS), f"not set after {PATIENCE_SECONDS:.0f} s"


class GivenClock:
    """A clock that stands still until a test moves it: a stand-in for `time.perf_counter` and `time.monotonic`."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Lets time pass."""
        self.now += seconds
