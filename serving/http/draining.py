"""From SIGTERM to the end: nothing accepted is lost, nothing new is kept waiting.

uvicorn stops accepting the moment a signal arrives. Where another process holds the listening socket too (BentoML's
process manager does), new connections then wait in its backlog for as long as the last request takes. So the signal is
caught first: the server goes on listening and answers 503 to whatever is new, and uvicorn hears of the signal only when
the last accepted request has been answered.
"""

import asyncio
import signal
import time
from types import FrameType
from typing import Final

from serving.http.guard import Guard

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
ANSWERING_SECONDS: Final = 0.25  # 503 for at least this long, so that what already waits in the socket gets an answer
CHECK_SECONDS: Final = 0.02


class Drain:
    """Signal handlers in front of those that are installed when it is made. To be made inside the running event loop.

    Args:
        guard: counts the requests in flight and refuses new ones.
        seconds: time that requests in flight get.
    """

    def __init__(self, guard: Guard, seconds: float) -> None:
        self.guard = guard
        self.seconds = seconds
        self._deadline: float | None = None  # None: no signal yet
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None
        self._previous = {number: signal.getsignal(number) for number in SIGNALS}
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    def remaining(self) -> float:
        """Seconds left of those that requests in flight get: all before a signal, none after a second one."""
        return self.seconds if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.guard.draining:  # the second signal: whoever sends it does not want to wait
            self._deadline = time.monotonic()
            self._pass_on(number)
            return
        self._deadline = time.monotonic() + self.seconds
        self.guard.draining = True
        self._loop.call_soon_threadsafe(self._start, number)

    def _start(self, number: int) -> None:
        self._task = self._loop.create_task(self._finish(number))

    async def _finish(self, number: int) -> None:
        await asyncio.sleep(ANSWERING_SECONDS)
        while self.guard.in_flight and self.remaining():
            await asyncio.sleep(CHECK_SECONDS)
        self._pass_on(number)

    def _pass_on(self, number: int) -> None:
        handler = self._previous[signal.Signals(number)]
        if callable(handler):
            handler(number, None)
