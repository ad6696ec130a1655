"""From SIGTERM to the end: nothing accepted is lost, nothing new is kept waiting.

uvicorn stops accepting the moment a signal arrives. Where another process holds the listening socket too (BentoML's
process manager does), new connections then wait in its backlog for as long as the last request takes. So the signal is
caught first: the server goes on listening and answers 503 to whatever is new, and uvicorn hears of the signal only when
the last accepted request has been answered.

A balancer that learns of the end by asking `/readyz`, or from a cluster, goes on sending for some seconds. So there may
be a time before that in which everything but `/readyz` is answered as ever, though each answer closes its connection.
"""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Final

from serving.http.guard import Guard

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
REFUSING_SECONDS: Final = 0.25  # 503 for at least this long, so that what already waits in the socket gets an answer
CHECK_SECONDS: Final = 0.02


class Drain:
    """Signal handlers in front of those that are installed when it is made. To be made inside the running event loop.

    Args:
        guard: counts the requests in flight and refuses new ones.
        seconds: time that requests in flight get.
        answering_seconds: time before that, in which new requests are answered.
        clock: seconds that only grow.
        sleep: waits for so many of them.
    """

    def __init__(
        self,
        guard: Guard,
        seconds: float,
        answering_seconds: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.guard = guard
        self.seconds = seconds
        self.answering_seconds = answering_seconds
        self._clock = clock
        self._sleep = sleep
        self._deadline: float | None = None  # None: no signal yet
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None
        self._previous = {number: signal.getsignal(number) for number in SIGNALS}
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    def remaining(self) -> float:
        """Seconds left of those that requests in flight get: all before a signal, none after a second one."""
        return self.seconds if self._deadline is None else max(0.0, self._deadline - self._clock())

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.guard.draining:  # the second signal: whoever sends it does not want to wait
            self.guard.refusing = True
            self._deadline = self._clock()
            self._pass_on(number)
            return
        self._deadline = self._clock() + self.answering_seconds + self.seconds
        self.guard.draining = True
        self.guard.refusing = self.answering_seconds == 0
        self._loop.call_soon_threadsafe(self._start, number)

    def _start(self, number: int) -> None:
        self._task = self._loop.create_task(self._finish(number))

    async def _finish(self, number: int) -> None:
        await self._sleep(self.answering_seconds)
        self.guard.refusing = True
        await self._sleep(REFUSING_SECONDS)
        while self.guard.in_flight and self.remaining():
            await self._sleep(CHECK_SECONDS)
        self._pass_on(number)

    def _pass_on(self, number: int) -> None:
        handler = self._previous[signal.Signals(number)]
        if callable(handler):
            handler(number, None)
