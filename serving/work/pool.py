"""The threads that do the work: one request is one job, decoded and run in the same thread.

Handing a photo from a decoding thread to an inference thread costs two more hops and gains nothing on a CPU: with one
ONNX Runtime thread a job, as many jobs as cores keep every core busy. A job that waits for a device lets another one
have its core meanwhile, so that batches may hold more requests than there are cores.
"""

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Final, Generic, NamedTuple, TypeVar

from serving.errors import ClientGone, busy, forget_locals

T = TypeVar("T")

SMOOTHING: Final = 0.1  # weight of the newest job in the mean duration
MAX_JOBS_PER_THREAD: Final = 64  # queued or running, whatever the estimate says
UNWATCHED_SECONDS: Final = 0.25  # most photos are done by then, also those that had to queue
MAX_AWAY: Final = 256  # jobs that wait for a device while others have their cores, each in a thread of its own
MAX_AWAY_BYTES: Final = 512_000_000  # for their inputs


class Ticket:
    """A job's way to learn that nobody waits for it any more, and to wait without its core."""

    def __init__(
        self, job: Callable[["Ticket"], Any] | None = None, kind: str = "", pool: "WorkPool | None" = None
    ) -> None:
        self.abandoned = False
        self.job = job  # given up when abandoned, so that a cancelled job does not hold its request's body
        self.kind = kind
        self.started: float | None = None  # by the pool's clock; None while queued
        self._pool = pool
        self._clock = time.perf_counter if pool is None else pool.clock
        self._away_since: float | None = None  # None: not away
        self._away_seconds = 0.0  # before that
        self._stop: Callable[[], None] | None = None

    def away(self, size: int) -> AbstractContextManager[None]:
        """Lets another job have this one's core, for as long as this one waits for a device.

        Args:
            size: bytes that this job holds meanwhile. Where too many are held already, it keeps its core.
        """
        return nullcontext() if self._pool is None else self._pool.away(self, size)

    def leave_core(self) -> None:
        """From now on the job is away."""
        self._away_since = self._clock()

    def take_core(self) -> None:
        """The job is not away any more."""
        if self._away_since is not None:
            self._away_seconds += self._clock() - self._away_since
        self._away_since = None

    def core_seconds(self) -> float:
        """Since the job started, without the time away."""
        now = self._clock()
        away = 0.0 if self._away_since is None else now - self._away_since
        started = now if self.started is None else self.started
        return now - started - self._away_seconds - away

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


class Outcome(NamedTuple, Generic[T]):
    """What a job returned, and for how many seconds it waited for its thread."""

    value: T
    queue_seconds: float


class _Queued(NamedTuple):
    """A job in the queue."""

    ticket: Ticket
    future: "Future[Outcome[Any]]"
    since: float  # by the pool's clock


_CURRENT: ContextVar[Ticket | None] = ContextVar("ticket", default=None)


def current_ticket() -> Ticket | None:
    """The ticket of the job that this thread works for, for code that is not given one; None outside of jobs."""
    return _CURRENT.get()


class WorkPool:
    """A fixed number of cores and a queue bounded by the estimated wait.

    Args:
        threads: jobs that run at the same time, beside those that wait for a device.
        max_queue_seconds: a job that would probably wait longer than this is refused.
        device_wait: seconds that a job given now would probably wait for the device, after its core.
        clock: seconds that have passed, from any start; what jobs take and wait is measured by it.
    """

    def __init__(
        self,
        threads: int,
        max_queue_seconds: float,
        device_wait: Callable[[], float] = lambda: 0.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.threads = threads
        self.max_queue_seconds = max_queue_seconds
        self.clock = clock
        self._device_wait = device_wait
        # Threads are made when there is a job for them: without a device there are never more than `threads`.
        self._executor = ThreadPoolExecutor(threads + MAX_AWAY, thread_name_prefix="convmae-job")
        self._lock = threading.Lock()
        self._ended = threading.Condition(self._lock)  # told whenever a job has ended
        self._queue: deque[_Queued] = deque()
        self._begun: deque[_Queued] = deque()  # on their way to a thread, with a core
        self._returning: deque[threading.Event] = deque()  # for jobs that have their outputs and need a core again
        self._free_cores = threads
        self._closed = False
        self._pending = 0  # queued and running
        self._running = 0
        self._away = 0  # how many of those that run have no core
        self._away_bytes = 0
        self._pending_of_kind: dict[str, int] = {}
        self._mean_seconds: dict[str, float] = {}  # on a core, by kind; none: no such job has finished yet

    @property
    def pending(self) -> int:
        """Jobs queued or running."""
        return self._pending

    @property
    def running(self) -> int:
        """Jobs that occupy a thread, whether or not anybody still waits for them."""
        return self._running

    def estimated_wait(self) -> float:
        """Seconds that a job given now would probably wait, for a core and for the device."""
        wait = self._device_wait()
        if self._pending - self._away < self.threads:
            return wait
        with self._lock:
            pending = max(self._pending, 1)
            # A video takes a hundred times as long as a photo: each kind of job counts with its own mean.
            seconds = sum(count * self._mean_seconds.get(kind, 0.0) for kind, count in self._pending_of_kind.items())
            return wait + max(0, pending - self._away - self.threads + 1) * seconds / pending / self.threads

    def admit(self) -> None:
        """Raises ApiError 503 when the queue is full; called before a body is read, so that a refusal costs nothing."""
        wait = self.estimated_wait()
        if wait > self.max_queue_seconds or self._pending - self._away >= MAX_JOBS_PER_THREAD * self.threads:
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
        ticket = Ticket(job, kind, self)
        future: Future[Outcome[T]] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("the pool has ended")
            self._count(ticket, 1)
            self._queue.append(_Queued(ticket, future, self.clock()))
            self._give_cores()
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
        # Not asyncio.wait on wrap_future: their tasks, futures and callbacks would cost every request twice as much.
        awake = asyncio.Event()  # set when the job has ended, the time is over, or the client has gone away
        # Most jobs are done before watching the client would be worth the task that it takes.
        timer = loop.call_later(min(timeout, UNWATCHED_SECONDS), awake.set)
        ticket, future = self.submit(job, kind)  # last, as its thread can begin no sooner than this one waits
        future.add_done_callback(wake)
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
            del future  # its exception holds this frame, which must not hold the exception

    def abandon(self, ticket: Ticket, future: "Future[Outcome[T]]") -> None:
        """Takes a job out of the queue, or makes it stop at its next check; until it ends, it counts as pending."""
        ticket.abandon()
        cancelled = future.cancel()
        with self._lock:
            if cancelled:
                self._count(ticket, -1)
            elif ticket.started is not None and not future.done():
                self._learn(ticket)

    @contextmanager
    def away(self, ticket: Ticket, size: int) -> Iterator[None]:
        """As `Ticket.away`."""
        with self._lock:
            leaves = self._away < MAX_AWAY and self._away_bytes + size <= MAX_AWAY_BYTES
            if leaves:
                self._away += 1
                self._away_bytes += size
                self._free_cores += 1
                ticket.leave_core()
                self._give_cores()
        try:
            yield
        finally:
            if leaves:
                back = threading.Event()
                with self._lock:
                    self._returning.append(back)
                    self._give_cores()
                back.wait()
                with self._lock:
                    self._away -= 1
                    self._away_bytes -= size
                    ticket.take_core()

    def shutdown(self, seconds: float | None = None) -> None:
        """Drops queued jobs and waits for those that run; threads end with the job that they run.

        Args:
            seconds: the longest time to wait; None waits for as long as they take.
        """
        with self._lock:
            self._closed = True
            dropped, self._queue = self._queue, deque()
        for queued in dropped:
            queued.future.cancel()
        self._executor.shutdown(wait=False)
        with self._ended:
            self._ended.wait_for(lambda: self._running == 0, seconds)

    def _give_cores(self) -> None:
        """Hands free cores out, first to jobs that come back from a device. With the lock."""
        self._let_return()
        while (queued := self._take()) is not None:
            # Not as an argument, which the executor would hold: a failed job's exception would then hold itself.
            self._begun.append(queued)
            self._executor.submit(self._work)

    def _let_return(self) -> None:
        while self._free_cores and self._returning:
            self._free_cores -= 1
            self._returning.popleft().set()

    def _take(self) -> "_Queued | None":
        """The next job, with a core for it; None without either. With the lock."""
        while self._free_cores and self._queue:
            queued = self._queue.popleft()
            if queued.future.set_running_or_notify_cancel():
                self._free_cores -= 1
                self._running += 1
                queued.ticket.started = self.clock()
                return queued
        return None

    def _work(self) -> None:
        """One job after the other on one core, as long as there are any."""
        queued: _Queued | None = self._begun.popleft()
        while queued is not None:
            self._run(queued.ticket, queued.future, queued.since)
            with self._lock:
                self._free_cores += 1
                self._let_return()
                queued = self._take()

    def _run(self, ticket: Ticket, future: "Future[Outcome[Any]]", since: float) -> None:
        queue_seconds = self.clock() - since
        token = _CURRENT.set(ticket)
        outcome: Outcome[Any] | BaseException
        try:
            job, ticket.job = ticket.job, None
            if job is None:
                raise ClientGone
            outcome = Outcome(job(ticket), queue_seconds)
        except BaseException as error:
            forget_locals(error)
            outcome = error
        finally:
            del job
            _CURRENT.reset(token)
        with self._lock:
            self._count(ticket, -1)
            self._running -= 1
            self._learn(ticket)
            self._ended.notify_all()
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
        del outcome, future  # an exception holds this frame, which must not hold the exception

    def _count(self, ticket: Ticket, change: int) -> None:
        self._pending += change
        self._pending_of_kind[ticket.kind] = self._pending_of_kind.get(ticket.kind, 0) + change

    def _learn(self, ticket: Ticket) -> None:
        """Takes a job's duration into the mean of its kind.

        What an abandoned job took is too little when it was stopped, so it may only raise the mean.
        """
        seconds, mean = ticket.core_seconds(), self._mean_seconds.get(ticket.kind)
        if mean is None:
            self._mean_seconds[ticket.kind] = seconds
        elif not ticket.abandoned or seconds > mean:
            self._mean_seconds[ticket.kind] = mean + SMOOTHING * (seconds - mean)
