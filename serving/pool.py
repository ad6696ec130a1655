"""The threads that do the work: one request is one job, decoded and run in the same thread.

Handing a photo from a decoding thread to an inference thread costs two more hops and gains nothing on a CPU: with one
ONNX Runtime thread a job, as many jobs as cores keep every core busy.
"""

import asyncio
import math
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, Generic, TypeVar

from serving.errors import ClientGone, busy

T = TypeVar("T")

SMOOTHING: Final = 0.1  # weight of the newest job in the mean duration
MAX_JOBS_PER_THREAD: Final = 64  # queued or running, whatever the estimate says
UNWATCHED_SECONDS: Final = 0.05


class Ticket:
    """A job's way to learn that nobody waits for it any more."""

    def __init__(self, job: Callable[["Ticket"], Any] | None = None, kind: str = "") -> None:
        self.abandoned = False
        self.job = job  # given up when abandoned, so that a cancelled job does not hold its request's body
        self.kind = kind
        self.started: float | None = None  # by time.perf_counter(); None while queued
        self._stop: Callable[[], None] | None = None

    def check(self) -> None:
        """Raises ClientGone when the job has been abandoned."""
        if self.abandoned:
            raise ClientGone

    def when_abandoned(self, stop: Callable[[], None]) -> None:
        """Has `stop` called, in another thread, once the job is abandoned: for work that does not come back to check.

        Raises:
            ClientGone: it has been abandoned already.
        """
        self._stop = stop
        self.check()

    def abandon(self) -> None:
        """Tells the job that nobody waits for it."""
        self.abandoned = True
        self.job = None
        if self._stop is not None:
            self._stop()


class Outcome(Generic[T]):
    """What a job returned, and for how many seconds it waited for its thread."""

    def __init__(self, value: T, queue_seconds: float) -> None:
        self.value = value
        self.queue_seconds = queue_seconds


class WorkPool:
    """A fixed number of threads and a queue bounded by the estimated wait.

    Args:
        threads: jobs that run at the same time.
        max_queue_seconds: a job that would probably wait longer than this is refused.
    """

    def __init__(self, threads: int, max_queue_seconds: float) -> None:
        self.threads = threads
        self.max_queue_seconds = max_queue_seconds
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="convmae-job")
        self._lock = threading.Lock()
        self._ended = threading.Condition(self._lock)  # told whenever a job has ended
        self._pending = 0  # queued and running
        self._running = 0
        self._pending_of_kind: dict[str, int] = {}
        self._mean_seconds: dict[str, float] = {}  # by kind; none: no such job has finished yet

    @property
    def pending(self) -> int:
        """Jobs queued or running."""
        return self._pending

    @property
    def running(self) -> int:
        """Jobs that occupy a thread, whether or not anybody still waits for them."""
        return self._running

    def estimated_wait(self) -> float:
        """Seconds that a job given now would probably wait for its thread."""
        if self._pending < self.threads:
            return 0.0
        with self._lock:
            pending = max(self._pending, 1)
            # A video takes a hundred times as long as a photo: each kind of job counts with its own mean.
            seconds = sum(count * self._mean_seconds.get(kind, 0.0) for kind, count in self._pending_of_kind.items())
        return max(0, pending - self.threads + 1) * seconds / pending / self.threads

    def admit(self) -> None:
        """Raises ApiError 503 when the queue is full; called before a body is read, so that a refusal costs nothing."""
        wait = self.estimated_wait()
        if wait > self.max_queue_seconds or self._pending >= MAX_JOBS_PER_THREAD * self.threads:
            raise busy("every thread is busy and the queue is full", max(1, math.ceil(wait)))

    def submit(self, job: Callable[[Ticket], T], kind: str = "") -> tuple[Ticket, "Future[Outcome[T]]"]:
        """Queues a job.

        Args:
            job: called in one of the threads.
            kind: jobs of one kind take about as long as each other.

        Returns:
            Its ticket, to be marked when nobody waits any more, and the future of its outcome.

        Raises:
            ApiError: 503, the queue is full.
        """
        self.admit()
        ticket = Ticket(job, kind)
        with self._lock:
            self._count(ticket, 1)
        future: Future[Outcome[T]] = self._executor.submit(self._work, ticket, time.perf_counter())
        return ticket, future

    async def run(
        self,
        job: Callable[[Ticket], T],
        timeout: float,
        disconnected: Callable[[], Coroutine[Any, Any, None]],
        kind: str = "",
    ) -> Outcome[T]:
        """Queues a job and waits for its outcome; a job that nobody waits for any more is abandoned.

        Args:
            job: called in one of the threads.
            timeout: seconds to wait.
            disconnected: returns when the client has gone away.
            kind: as in `submit`.

        Raises:
            ApiError: 503, the queue is full.
            ClientGone: the client went away first.
            TimeoutError: no outcome in time.
        """

        def wake(_: object) -> None:
            if not ticket.abandoned:  # by then the loop may be closed
                loop.call_soon_threadsafe(awake.set)

        loop = asyncio.get_running_loop()
        ticket, future = self.submit(job, kind)
        # Not asyncio.wait on wrap_future: their tasks, futures and callbacks would cost every request twice as much.
        awake = asyncio.Event()  # set when the job has ended, the time is over, or the client has gone away
        future.add_done_callback(wake)
        # Most jobs are done before watching the client would be worth the task that it takes.
        timer = loop.call_later(min(timeout, UNWATCHED_SECONDS), awake.set)
        watcher: asyncio.Task[None] | None = None
        try:
            await awake.wait()
            if not future.done():
                awake.clear()
                timer = loop.call_later(timeout, awake.set)
                watcher = asyncio.ensure_future(disconnected())
                watcher.add_done_callback(lambda _: awake.set())
                await awake.wait()
            if future.done():
                return future.result()
            if watcher is not None and watcher.done():
                raise ClientGone
            raise TimeoutError
        finally:
            timer.cancel()
            if watcher is not None:
                watcher.cancel()
            if not future.done():
                self.abandon(ticket, future)

    def abandon(self, ticket: Ticket, future: "Future[Outcome[T]]") -> None:
        """Takes a job out of the queue, or makes it stop at its next check; until it ends, it counts as pending."""
        ticket.abandon()
        cancelled = future.cancel()
        with self._lock:
            if cancelled:
                self._count(ticket, -1)
            elif ticket.started is not None and not future.done():
                self._learn(ticket, time.perf_counter() - ticket.started)

    def shutdown(self, seconds: float | None = None) -> None:
        """Drops queued jobs and waits for those that run; threads end with the job that they run.

        Args:
            seconds: the longest time to wait; None waits for as long as they take.
        """
        self._executor.shutdown(wait=False, cancel_futures=True)
        with self._ended:
            self._ended.wait_for(lambda: self._running == 0, seconds)

    def _work(self, ticket: Ticket, queued: float) -> Outcome[Any]:
        started = time.perf_counter()
        with self._lock:
            self._running += 1
            ticket.started = started
        try:
            job, ticket.job = ticket.job, None
            if job is None:
                raise ClientGone
            return Outcome(job(ticket), started - queued)
        finally:
            with self._lock:
                self._count(ticket, -1)
                self._running -= 1
                self._learn(ticket, time.perf_counter() - started)
                self._ended.notify_all()

    def _count(self, ticket: Ticket, change: int) -> None:
        self._pending += change
        self._pending_of_kind[ticket.kind] = self._pending_of_kind.get(ticket.kind, 0) + change

    def _learn(self, ticket: Ticket, seconds: float) -> None:
        """Takes a job's duration into the mean of its kind.

        What an abandoned job took is too little when it was stopped, so it may only raise the mean.
        """
        mean = self._mean_seconds.get(ticket.kind)
        if mean is None:
            self._mean_seconds[ticket.kind] = seconds
        elif not ticket.abandoned or seconds > mean:
            self._mean_seconds[ticket.kind] = mean + SMOOTHING * (seconds - mean)
