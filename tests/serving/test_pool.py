"""The threads and their bounded queue."""

import asyncio
import threading
import time
import weakref
from collections.abc import Iterator

import pytest

from serving.errors import ApiError, ClientGone
from serving.pool import MAX_JOBS_PER_THREAD, UNWATCHED_SECONDS, Ticket, WorkPool


async def stays() -> None:
    await asyncio.Event().wait()


async def goes() -> None:
    await asyncio.sleep(0.02)


@pytest.fixture
def pool() -> Iterator[WorkPool]:
    made = WorkPool(1, max_queue_seconds=1.0)
    yield made
    made.shutdown()


def wait_until_idle(pool: WorkPool) -> None:
    deadline = time.monotonic() + 5
    while pool.pending and time.monotonic() < deadline:
        time.sleep(0.001)
    assert pool.pending == 0


def test_a_job_returns_its_value_and_its_wait(pool: WorkPool) -> None:
    outcome = asyncio.run(pool.run(lambda ticket: 7, 1.0, stays))
    assert outcome.value == 7
    assert 0 <= outcome.queue_seconds < 0.5
    assert pool.pending == 0


def test_an_exception_in_a_job_reaches_its_caller(pool: WorkPool) -> None:
    with pytest.raises(ZeroDivisionError):
        asyncio.run(pool.run(lambda ticket: 1 / 0, 1.0, stays))
    assert pool.pending == 0


def test_the_estimated_wait_grows_with_the_queue_and_refuses_beyond_the_bound(pool: WorkPool) -> None:
    release = threading.Event()
    pool.submit(lambda ticket: time.sleep(0.06))
    wait_until_idle(pool)
    assert pool.estimated_wait() == 0
    futures = [pool.submit(lambda ticket: release.wait(5))[1] for _ in range(10)]
    assert pool.estimated_wait() == pytest.approx(10 * 0.06, rel=0.5)
    pool.max_queue_seconds = 0.3
    with pytest.raises(ApiError) as refused:
        pool.submit(lambda ticket: None)
    assert (refused.value.status, refused.value.headers["Retry-After"]) == (503, "1")
    release.set()
    for future in futures:
        future.result(5)
    wait_until_idle(pool)


def test_a_queued_job_whose_client_has_gone_is_never_run(pool: WorkPool) -> None:
    release, ran = threading.Event(), threading.Event()
    pool.submit(lambda ticket: release.wait(5))
    with pytest.raises(ClientGone):
        asyncio.run(pool.run(lambda ticket: ran.set(), 5.0, goes))
    assert pool.pending == 1
    release.set()
    wait_until_idle(pool)
    assert not ran.is_set()


def test_a_running_job_whose_client_has_gone_learns_of_it(pool: WorkPool) -> None:
    learned = threading.Event()

    def job(ticket: Ticket) -> None:
        while True:
            time.sleep(0.001)
            try:
                ticket.check()
            except ClientGone:
                learned.set()
                raise

    with pytest.raises(ClientGone):
        asyncio.run(pool.run(job, 5.0, goes))
    assert learned.wait(5)
    wait_until_idle(pool)


def test_a_job_that_takes_too_long_is_given_up(pool: WorkPool, caplog: pytest.LogCaptureFixture) -> None:
    release = threading.Event()
    with pytest.raises(TimeoutError):
        asyncio.run(pool.run(lambda ticket: release.wait(5), 0.02, stays))
    release.set()
    wait_until_idle(pool)
    pool.submit(lambda ticket: None)[1].result(5)  # the thread is quite done with the first
    assert caplog.records == []  # although the event loop is closed by then


def test_a_job_that_ends_while_its_client_is_watched_returns_its_value(pool: WorkPool) -> None:
    release = threading.Event()
    threading.Timer(2 * UNWATCHED_SECONDS, release.set).start()
    assert asyncio.run(pool.run(lambda ticket: release.wait(5), 5.0, stays)).value


def test_as_many_jobs_run_at_once_as_there_are_threads() -> None:
    pool = WorkPool(3, max_queue_seconds=1.0)
    together = threading.Barrier(3, timeout=5)
    futures = [pool.submit(lambda ticket: together.wait())[1] for _ in range(3)]
    assert sorted(future.result(5).value for future in futures) == [0, 1, 2]
    pool.shutdown()


class Body:
    """Stands for a request's body."""


def test_the_body_of_a_queued_job_is_let_go_as_soon_as_nobody_waits_for_it(pool: WorkPool) -> None:
    release, body = threading.Event(), Body()
    pool.submit(lambda ticket: release.wait(5))
    reference = weakref.ref(body)
    ticket, future = pool.submit(lambda ticket, body=body: body)  # type: ignore[misc]
    del body
    assert reference() is not None
    pool.abandon(ticket, future)
    del future
    assert reference() is None
    release.set()
    wait_until_idle(pool)


def test_a_job_that_never_ends_raises_the_estimate_when_it_is_given_up(pool: WorkPool) -> None:
    release = threading.Event()
    pool.submit(lambda ticket: None)
    wait_until_idle(pool)
    with pytest.raises(TimeoutError):
        asyncio.run(pool.run(lambda ticket: release.wait(5), 0.1, stays))
    assert pool.pending == pool.running == 1  # it still occupies its thread
    assert pool.estimated_wait() > 0.005
    release.set()
    wait_until_idle(pool)


def test_a_job_that_stops_early_because_it_was_given_up_does_not_lower_the_estimate(pool: WorkPool) -> None:
    release = threading.Event()
    pool.submit(lambda ticket: time.sleep(0.05))
    wait_until_idle(pool)
    blocker, blocked = pool.submit(lambda ticket: release.wait(5))
    while not pool.running:
        time.sleep(0.001)
    before = pool.estimated_wait()
    pool.abandon(blocker, blocked)
    assert pool.estimated_wait() == before
    release.set()
    wait_until_idle(pool)


def test_however_fast_jobs_are_the_queue_has_an_end(pool: WorkPool) -> None:
    release = threading.Event()
    futures = [pool.submit(lambda ticket: release.wait(5))[1] for _ in range(MAX_JOBS_PER_THREAD)]
    with pytest.raises(ApiError) as refused:
        pool.admit()
    assert (refused.value.status, refused.value.headers["Retry-After"]) == (503, "1")
    release.set()
    for future in futures:
        future.result(5)
    wait_until_idle(pool)


def test_the_end_waits_for_a_running_job_but_not_for_ever() -> None:
    pool, release = WorkPool(1, max_queue_seconds=1.0), threading.Event()
    running, queued = (pool.submit(lambda ticket: release.wait(5))[1] for _ in range(2))
    while not running.running():
        time.sleep(0.001)
    started = time.monotonic()
    pool.shutdown(0.1)
    assert 0.05 < time.monotonic() - started < 2
    assert (pool.running, queued.cancelled()) == (1, True)
    threading.Timer(0.05, release.set).start()
    pool.shutdown(5)
    assert pool.running == 0


def test_jobs_of_each_kind_count_with_their_own_duration(pool: WorkPool) -> None:
    release = threading.Event()
    pool.submit(lambda ticket: time.sleep(0.3), "video")
    pool.submit(lambda ticket: None, "image")
    wait_until_idle(pool)
    futures = [pool.submit(lambda ticket: release.wait(5), "image")[1] for _ in range(4)]
    assert pool.estimated_wait() < 0.1  # one video an hour ago says nothing of four photos
    futures.append(pool.submit(lambda ticket: release.wait(5), "video")[1])
    assert pool.estimated_wait() == pytest.approx(0.3, rel=0.3)
    release.set()
    for future in futures:
        future.result(5)
    wait_until_idle(pool)


def test_a_running_job_can_be_stopped_from_outside(pool: WorkPool) -> None:
    stopped = threading.Event()

    def job(ticket: Ticket) -> bool:
        ticket.when_abandoned(stopped.set)
        return stopped.wait(5)

    with pytest.raises(ClientGone):
        asyncio.run(pool.run(job, 5.0, goes))
    assert stopped.is_set()
    wait_until_idle(pool)


def test_who_asks_to_be_stopped_too_late_is_told_at_once() -> None:
    ticket, stops = Ticket(), []
    ticket.abandon()
    with pytest.raises(ClientGone):
        ticket.when_abandoned(lambda: stops.append(1))
    assert not stops
