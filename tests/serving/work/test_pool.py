"""The threads and their bounded queue."""

import asyncio
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from serving.errors import ApiError, ClientGone
from serving.work.pool import MAX_JOBS_PER_THREAD, SMOOTHING, Ticket, WorkPool, current_ticket
from tests.waiting import PATIENCE_SECONDS, GivenClock, wait_for, wait_until


async def stays() -> None:
    await asyncio.Event().wait()


async def goes() -> None:
    pass


@pytest.fixture
def clock() -> GivenClock:
    return GivenClock()


@pytest.fixture
def pool(clock: GivenClock) -> Iterator[WorkPool]:
    made = WorkPool(1, max_queue_seconds=1.0, clock=clock)
    yield made
    made.shutdown()


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """Set by the test when jobs may end, and after it in any case."""
    event = threading.Event()
    yield event
    event.set()


def wait_until_idle(pool: WorkPool) -> None:
    wait_until(lambda: not pool.pending)


def test_a_job_returns_its_value_and_its_wait(pool: WorkPool, clock: GivenClock, release: threading.Event) -> None:
    assert asyncio.run(pool.run(lambda ticket: 7, PATIENCE_SECONDS, stays)).value == 7
    assert pool.pending == 0
    pool.submit(lambda ticket: wait_for(release))
    second = pool.submit(lambda ticket: None)[1]
    clock.advance(0.25)
    release.set()
    assert second.result(PATIENCE_SECONDS).queue_seconds == 0.25


def test_an_exception_in_a_job_reaches_its_caller(pool: WorkPool) -> None:
    with pytest.raises(ZeroDivisionError):
        asyncio.run(pool.run(lambda ticket: 1 / 0, PATIENCE_SECONDS, stays))
    assert pool.pending == 0


def test_the_estimated_wait_grows_with_the_queue_and_refuses_beyond_the_bound(
    pool: WorkPool, clock: GivenClock, release: threading.Event
) -> None:
    pool.submit(lambda ticket: clock.advance(0.06))
    wait_until_idle(pool)
    assert pool.estimated_wait() == 0
    futures = [pool.submit(lambda ticket: wait_for(release))[1] for _ in range(10)]
    assert pool.estimated_wait() == pytest.approx(10 * 0.06)
    pool.max_queue_seconds = 0.3
    with pytest.raises(ApiError) as refused:
        pool.submit(lambda ticket: None)
    assert (refused.value.status, refused.value.headers["Retry-After"]) == (503, "1")
    release.set()
    for future in futures:
        future.result(PATIENCE_SECONDS)
    wait_until_idle(pool)


def test_a_queued_job_whose_client_has_gone_is_never_run(pool: WorkPool, release: threading.Event) -> None:
    ran = threading.Event()
    pool.submit(lambda ticket: wait_for(release))
    with pytest.raises(ClientGone):
        asyncio.run(pool.run(lambda ticket: ran.set(), PATIENCE_SECONDS, goes))
    assert pool.pending == 1
    release.set()
    wait_until_idle(pool)
    assert not ran.is_set()


def test_a_running_job_whose_client_has_gone_learns_of_it(pool: WorkPool) -> None:
    running, learned = threading.Event(), threading.Event()

    async def goes_once_it_runs() -> None:
        await asyncio.to_thread(wait_for, running)

    def job(ticket: Ticket) -> None:
        running.set()
        wait_until(lambda: ticket.abandoned)
        try:
            ticket.check()
        except ClientGone:
            learned.set()
            raise

    with pytest.raises(ClientGone):
        asyncio.run(pool.run(job, PATIENCE_SECONDS, goes_once_it_runs))
    wait_for(learned)
    wait_until_idle(pool)


def test_a_job_that_takes_too_long_is_given_up(
    pool: WorkPool, release: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(TimeoutError):
        asyncio.run(pool.run(lambda ticket: wait_for(release), 0.02, stays))
    release.set()
    wait_until_idle(pool)
    pool.submit(lambda ticket: None)[1].result(PATIENCE_SECONDS)  # the thread is quite done with the first
    assert caplog.records == []  # although the event loop is closed by then


def test_a_job_that_ends_while_its_client_is_watched_returns_its_value(
    pool: WorkPool, release: threading.Event
) -> None:
    async def watched() -> None:
        release.set()
        await stays()

    assert asyncio.run(pool.run(lambda ticket: release.wait(PATIENCE_SECONDS), PATIENCE_SECONDS, watched)).value


def test_as_many_jobs_run_at_once_as_there_are_threads() -> None:
    pool = WorkPool(3, max_queue_seconds=1.0)
    together = threading.Barrier(3, timeout=PATIENCE_SECONDS)
    futures = [pool.submit(lambda ticket: together.wait())[1] for _ in range(3)]
    assert sorted(future.result(PATIENCE_SECONDS).value for future in futures) == [0, 1, 2]
    pool.shutdown()


class Body:
    """Stands for a request's body."""


def test_the_body_of_a_queued_job_is_let_go_as_soon_as_nobody_waits_for_it(
    pool: WorkPool, release: threading.Event
) -> None:
    body = Body()
    pool.submit(lambda ticket: wait_for(release))
    reference = weakref.ref(body)
    ticket, future = pool.submit(lambda ticket, body=body: body)  # type: ignore[misc]
    del body
    assert reference() is not None
    pool.abandon(ticket, future)
    del future
    assert reference() is None
    release.set()
    wait_until_idle(pool)


def test_a_job_that_never_ends_raises_the_estimate_when_it_is_given_up(
    pool: WorkPool, clock: GivenClock, release: threading.Event
) -> None:
    pool.submit(lambda ticket: None)
    wait_until_idle(pool)

    def job(ticket: Ticket) -> None:
        clock.advance(30.0)
        wait_for(release)

    with pytest.raises(TimeoutError):
        asyncio.run(pool.run(job, 0.02, stays))
    assert pool.pending == pool.running == 1  # it still occupies its thread
    assert pool.estimated_wait() == pytest.approx(SMOOTHING * 30.0)
    release.set()
    wait_until_idle(pool)


def test_a_job_that_stops_early_because_it_was_given_up_does_not_lower_the_estimate(
    pool: WorkPool, clock: GivenClock, release: threading.Event
) -> None:
    pool.submit(lambda ticket: clock.advance(0.05))
    wait_until_idle(pool)
    blocker, blocked = pool.submit(lambda ticket: wait_for(release))
    assert pool.running == 1
    before = pool.estimated_wait()
    pool.abandon(blocker, blocked)
    assert pool.estimated_wait() == before == pytest.approx(0.05)
    release.set()
    wait_until_idle(pool)


def test_however_fast_jobs_are_the_queue_has_an_end(pool: WorkPool, release: threading.Event) -> None:
    futures = [pool.submit(lambda ticket: wait_for(release))[1] for _ in range(MAX_JOBS_PER_THREAD)]
    with pytest.raises(ApiError) as refused:
        pool.admit()
    assert (refused.value.status, refused.value.headers["Retry-After"]) == (503, "1")
    release.set()
    for future in futures:
        future.result(PATIENCE_SECONDS)
    wait_until_idle(pool)


def test_the_end_does_not_wait_for_a_running_job_for_ever(release: threading.Event) -> None:
    pool = WorkPool(1, max_queue_seconds=1.0)
    _, queued = (pool.submit(lambda ticket: wait_for(release))[1] for _ in range(2))
    pool.shutdown(0.02)
    assert (pool.running, queued.cancelled()) == (1, True)
    release.set()
    pool.shutdown(PATIENCE_SECONDS)
    assert pool.running == 0


def test_the_end_waits_for_a_running_job(pool: WorkPool, release: threading.Event) -> None:
    order: list[str] = []

    def job(ticket: Ticket) -> None:
        wait_for(release)
        order.append("the job")

    def end() -> None:
        pool.shutdown(PATIENCE_SECONDS)
        order.append("the pool")

    pool.submit(job)
    ending = threading.Thread(target=end)
    ending.start()
    wait_until(lambda: pool._closed)
    release.set()
    ending.join()
    assert order == ["the job", "the pool"]


def test_jobs_of_each_kind_count_with_their_own_duration(
    pool: WorkPool, clock: GivenClock, release: threading.Event
) -> None:
    pool.submit(lambda ticket: clock.advance(0.3), "video")
    wait_until_idle(pool)
    pool.submit(lambda ticket: clock.advance(0.01), "image")
    wait_until_idle(pool)
    futures = [pool.submit(lambda ticket: wait_for(release), "image")[1] for _ in range(4)]
    assert pool.estimated_wait() == pytest.approx(4 * 0.01)  # one video an hour ago says nothing of four photos
    futures.append(pool.submit(lambda ticket: wait_for(release), "video")[1])
    assert pool.estimated_wait() == pytest.approx(4 * 0.01 + 0.3)
    release.set()
    for future in futures:
        future.result(PATIENCE_SECONDS)
    wait_until_idle(pool)


def test_a_running_job_can_be_stopped_from_outside(pool: WorkPool) -> None:
    can_be_stopped, stopped = threading.Event(), threading.Event()

    async def goes_once_it_can_be_stopped() -> None:
        await asyncio.to_thread(wait_for, can_be_stopped)

    def job(ticket: Ticket) -> None:
        ticket.when_abandoned(stopped.set)
        can_be_stopped.set()
        wait_for(stopped)

    with pytest.raises(ClientGone):
        asyncio.run(pool.run(job, PATIENCE_SECONDS, goes_once_it_can_be_stopped))
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
            return answered.wait(PATIENCE_SECONDS)

    first = pool.submit(waits)[1]
    second = pool.submit(lambda ticket: second_ran.set())[1]
    wait_for(second_ran)
    second.result(PATIENCE_SECONDS)
    assert (pool.running, pool.pending) == (1, 1)
    answered.set()
    assert first.result(PATIENCE_SECONDS).value
    wait_until_idle(pool)


def test_who_comes_back_from_a_device_goes_before_those_that_have_not_begun(
    pool: WorkPool, release: threading.Event
) -> None:
    order, answered, away = [], threading.Event(), threading.Event()

    def waits(ticket: Ticket) -> None:
        with ticket.away(1):
            away.set()
            wait_for(answered)
        order.append("back")

    futures: list[Future[Any]] = [pool.submit(waits)[1]]
    wait_for(away)
    futures.append(pool.submit(lambda ticket: wait_for(release))[1])
    futures.append(pool.submit(lambda ticket: order.append("next"))[1])
    answered.set()
    wait_until(lambda: pool._returning)
    assert order == []  # there is one core
    release.set()
    for future in futures:
        future.result(PATIENCE_SECONDS)
    assert order == ["back", "next"]


@pytest.mark.parametrize(("jobs", "size"), [(1, 0), (2, 60)])
def test_jobs_keep_their_cores_when_too_much_waits_for_the_device(
    monkeypatch: pytest.MonkeyPatch, jobs: int, size: int
) -> None:
    monkeypatch.setattr("serving.work.pool.MAX_AWAY", 1 if jobs == 1 else 10)
    monkeypatch.setattr("serving.work.pool.MAX_AWAY_BYTES", 100)
    pool, answered, inside = WorkPool(1, max_queue_seconds=1.0), threading.Event(), threading.Semaphore(0)

    def waits(ticket: Ticket) -> None:
        with ticket.away(size):
            inside.release()
            wait_for(answered)

    futures = [pool.submit(waits)[1] for _ in range(3)]
    for _ in range(2):  # one away, and one on the core
        assert inside.acquire(timeout=PATIENCE_SECONDS)
    assert (pool.running, pool.pending) == (2, 3)  # who leaves a core gives it away before it is inside
    answered.set()
    for future in futures:
        future.result(PATIENCE_SECONDS)
    wait_until_idle(pool)
    assert (pool._free_cores, pool._away, pool._away_bytes) == (1, 0, 0)
    pool.shutdown()


def test_the_estimated_wait_is_that_for_a_core_and_that_for_the_device(
    clock: GivenClock, release: threading.Event
) -> None:
    device_wait = 0.0
    pool = WorkPool(1, max_queue_seconds=1.0, device_wait=lambda: device_wait, clock=clock)
    away, answered = threading.Event(), threading.Event()

    def waits(ticket: Ticket) -> None:
        clock.advance(0.03)
        with ticket.away(1):
            away.set()
            wait_for(answered)

    futures: list[Future[Any]] = [pool.submit(waits)[1]]
    wait_for(away)
    assert pool.estimated_wait() == 0  # its core is free
    clock.advance(0.3)
    answered.set()
    futures.pop().result(PATIENCE_SECONDS)
    futures = [pool.submit(lambda ticket: wait_for(release))[1] for _ in range(5)]
    assert pool.estimated_wait() == pytest.approx(5 * 0.03)  # the time away is not a core's
    device_wait = 0.7
    assert pool.estimated_wait() == pytest.approx(0.7 + 5 * 0.03)
    device_wait = 1.1
    with pytest.raises(ApiError, match="queue is full; try again in"):
        pool.admit()
    release.set()
    for future in futures:
        future.result(PATIENCE_SECONDS)
    pool.shutdown()


def test_without_a_device_there_are_no_more_threads_than_cores() -> None:
    pool, threads = WorkPool(2, max_queue_seconds=10.0), set()
    futures = [pool.submit(lambda ticket: threads.add(threading.get_ident()))[1] for _ in range(100)]
    for future in futures:
        future.result(PATIENCE_SECONDS)
    assert len(threads) <= 2
    pool.shutdown()


def test_code_without_a_ticket_finds_that_of_its_thread(pool: WorkPool) -> None:
    ticket, future = pool.submit(lambda ticket: current_ticket())
    assert future.result(PATIENCE_SECONDS).value is ticket
    assert current_ticket() is None


def test_a_failed_job_and_its_body_are_let_go(pool: WorkPool) -> None:
    body = Body()
    reference = weakref.ref(body)

    def job(ticket: Ticket, body: Body = body) -> None:
        raise ZeroDivisionError

    future = pool.submit(job)[1]
    with pytest.raises(ZeroDivisionError):
        future.result(PATIENCE_SECONDS)
    del body, job, future
    wait_until_idle(pool)
    wait_until(lambda: reference() is None)  # without the garbage collector


def test_after_the_end_no_job_is_taken(pool: WorkPool) -> None:
    pool.shutdown()
    with pytest.raises(RuntimeError, match="has ended"):
        pool.submit(lambda ticket: None)
    assert pool.pending == 0
