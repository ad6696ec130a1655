"""The threads and their bounded queue."""

import asyncio
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from serving.errors import ApiError, ClientGone
from serving.pool import MAX_JOBS_PER_THREAD, UNWATCHED_SECONDS, Ticket, WorkPool, current_ticket


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


def test_a_job_that_waits_for_a_device_lets_another_one_have_its_core(pool: WorkPool) -> None:
    answered, second_ran = threading.Event(), threading.Event()

    def waits(ticket: Ticket) -> bool:
        with ticket.away(1):
            return answered.wait(5)

    first = pool.submit(waits)[1]
    second = pool.submit(lambda ticket: second_ran.set())[1]
    assert second_ran.wait(5)
    second.result(5)
    assert (pool.running, pool.pending) == (1, 1)
    answered.set()
    assert first.result(5).value
    wait_until_idle(pool)


def test_who_comes_back_from_a_device_goes_before_those_that_have_not_begun(pool: WorkPool) -> None:
    order, answered, release, away = [], threading.Event(), threading.Event(), threading.Event()

    def waits(ticket: Ticket) -> None:
        with ticket.away(1):
            away.set()
            answered.wait(5)
        order.append("back")

    futures: list[Future[Any]] = [pool.submit(waits)[1]]
    assert away.wait(5)
    futures.append(pool.submit(lambda ticket: release.wait(5))[1])
    futures.append(pool.submit(lambda ticket: order.append("next"))[1])
    answered.set()
    while not pool._returning:
        time.sleep(0.001)
    assert order == []  # there is one core
    release.set()
    for future in futures:
        future.result(5)
    assert order == ["back", "next"]


@pytest.mark.parametrize(("jobs", "size"), [(1, 0), (2, 60)])
def test_jobs_keep_their_cores_when_too_much_waits_for_the_device(
    monkeypatch: pytest.MonkeyPatch, jobs: int, size: int
) -> None:
    monkeypatch.setattr("serving.pool.MAX_AWAY", 1 if jobs == 1 else 10)
    monkeypatch.setattr("serving.pool.MAX_AWAY_BYTES", 100)
    pool, answered, inside = WorkPool(1, max_queue_seconds=1.0), threading.Event(), threading.Semaphore(0)

    def waits(ticket: Ticket) -> None:
        with ticket.away(size):
            inside.release()
            answered.wait(5)

    futures = [pool.submit(waits)[1] for _ in range(3)]
    for _ in range(2):  # one away, and one on the core
        assert inside.acquire(timeout=5)
    assert not inside.acquire(timeout=0.05)
    assert pool.running == 2
    answered.set()
    for future in futures:
        future.result(5)
    wait_until_idle(pool)
    assert (pool._free_cores, pool._away, pool._away_bytes) == (1, 0, 0)
    pool.shutdown()


def test_the_estimated_wait_is_that_for_a_core_and_that_for_the_device() -> None:
    device_wait = 0.0
    pool = WorkPool(1, max_queue_seconds=1.0, device_wait=lambda: device_wait)
    answered, release = threading.Event(), threading.Event()

    def waits(ticket: Ticket) -> None:
        time.sleep(0.03)
        with ticket.away(1):
            answered.wait(5)

    futures: list[Future[Any]] = [pool.submit(waits)[1]]
    while not pool._away:
        time.sleep(0.001)
    assert pool.estimated_wait() == 0  # its core is free
    time.sleep(0.3)
    answered.set()
    futures.pop().result(5)
    futures = [pool.submit(lambda ticket: release.wait(5))[1] for _ in range(5)]
    for_a_core = pool.estimated_wait()
    assert 5 * 0.03 <= for_a_core < 5 * 0.3  # the time away is not a core's
    device_wait = 0.7
    assert pool.estimated_wait() == pytest.approx(0.7 + for_a_core)
    device_wait = 1.1
    with pytest.raises(ApiError, match="queue is full; try again in"):
        pool.admit()
    release.set()
    for future in futures:
        future.result(5)
    pool.shutdown()


def test_without_a_device_there_are_no_more_threads_than_cores() -> None:
    pool, threads = WorkPool(2, max_queue_seconds=10.0), set()
    futures = [pool.submit(lambda ticket: threads.add(threading.get_ident()))[1] for _ in range(100)]
    for future in futures:
        future.result(5)
    assert len(threads) <= 2
    pool.shutdown()


def test_code_without_a_ticket_finds_that_of_its_thread(pool: WorkPool) -> None:
    ticket, future = pool.submit(lambda ticket: current_ticket())
    assert future.result(5).value is ticket
    assert current_ticket() is None


def test_a_failed_job_and_its_body_are_let_go(pool: WorkPool) -> None:
    body = Body()
    reference = weakref.ref(body)

    def job(ticket: Ticket, body: Body = body) -> None:
        raise ZeroDivisionError

    future = pool.submit(job)[1]
    with pytest.raises(ZeroDivisionError):
        future.result(5)
    del body, job, future
    wait_until_idle(pool)
    deadline = time.monotonic() + 5
    while reference() is not None and time.monotonic() < deadline:
        time.sleep(0.001)
    assert reference() is None  # without the garbage collector


def test_after_the_end_no_job_is_taken(pool: WorkPool) -> None:
    pool.shutdown()
    with pytest.raises(RuntimeError, match="has ended"):
        pool.submit(lambda ticket: None)
    assert pool.pending == 0
