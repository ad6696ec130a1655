"""Batches of what is queued, on a fake device."""

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from convmae_deploy.bundle.manifest import Manifest
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.tasks.base import ModelOutputError
from convmae_deploy.tasks.classification import Classifier
from serving.errors import ClientGone
from serving.work.batching import STUCK_SECONDS, BatchingBackend, DeviceLost, choose_rows, device_batches
from serving.work.pool import Ticket, WorkPool
from tests.serving.fake_device import POISON, FakeDevice, marked
from tests.waiting import PATIENCE_SECONDS, GivenClock, wait_for, wait_until

Ask = Callable[..., "Future[dict[str, NDArray[Any]]]"]


@pytest.fixture
def manifest(predictors: dict[str, Classifier]) -> Manifest:
    return predictors["tiny"].manifest


@pytest.fixture
def device(manifest: Manifest) -> FakeDevice:
    return FakeDevice(manifest)


@pytest.fixture
def clock() -> GivenClock:
    return GivenClock()


@pytest.fixture
def backend(device: FakeDevice, manifest: Manifest, clock: GivenClock) -> Iterator[BatchingBackend]:
    made = BatchingBackend(device, device.batch_sizes, manifest, clock)
    device.forget()
    made._seconds = dict.fromkeys(device.batch_sizes, 1.0)  # so that padding costs nothing
    yield made
    device.free.set()
    assert made.close(PATIENCE_SECONDS)


@pytest.fixture
def ask(backend: BatchingBackend, device: FakeDevice, manifest: Manifest) -> Iterator[Ask]:
    """Has rows with these marks run by a thread of its own; where the device is busy, returns once they are queued."""
    with ThreadPoolExecutor(32) as threads:

        def run(*marks: float, outputs: Sequence[str] = ("logits",)) -> "Future[dict[str, NDArray[Any]]]":
            seen, busy = backend._queued_rows, device.busy
            future = threads.submit(backend.run, marked(manifest, *marks), outputs)
            if busy:
                wait_until(lambda: backend._queued_rows > seen)
            return future

        yield run


@pytest.fixture
def occupied(device: FakeDevice, ask: Ask) -> "Future[dict[str, NDArray[Any]]]":
    """A call that is on the device until the test frees it."""
    device.free.clear()
    future = ask(100.0)
    device.wait_for_batch()
    return future


def logits(future: "Future[dict[str, NDArray[Any]]]") -> list[float]:
    found = future.result(PATIENCE_SECONDS)["logits"]
    assert (found == found[:, :1]).all()
    return [float(row[0]) for row in found]


def test_every_size_is_warmed_up_in_the_thread_that_runs_the_batches(device: FakeDevice, manifest: Manifest) -> None:
    backend = BatchingBackend(device, (8, 1, 4), manifest)
    assert [len(batch) for batch in device.batches] == [1, 1, 1, 4, 4, 4, 8, 8, 8]
    assert set(device.outputs) == {tuple(sorted(manifest.outputs))}
    backend.run(marked(manifest, 1.0), ["logits"])
    assert len(device.threads) == 1 and threading.get_ident() not in device.threads
    assert backend.close(PATIENCE_SECONDS)


def test_a_size_that_does_not_run_is_a_sentence(manifest: Manifest) -> None:
    class Small(FakeDevice):
        def run(self, image: NDArray[np.float32], outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
            if len(image) > 2:
                raise RuntimeError("out\nof memory")
            return super().run(image, outputs)

    with pytest.raises(
        ConvMAEError, match=r"tiny cannot run a batch of 4 in fake \(out of memory\); set CONVMAE_MAX_B"
    ):
        BatchingBackend(Small(manifest), (1, 2, 4), manifest)


def test_a_call_with_the_device_to_itself_runs_at_once(ask: Ask, device: FakeDevice) -> None:
    assert logits(ask(3.0)) == [3.0]
    assert device.batches == [[3.0]]


def test_what_is_queued_while_a_batch_runs_becomes_the_next_one(
    occupied: Any, ask: Ask, device: FakeDevice, backend: BatchingBackend
) -> None:
    futures = [ask(*marks) for marks in ((1.0,), (2.0, 3.0), (4.0,), (5.0,))]
    device.free.set()
    assert [logits(future) for future in futures] == [[1.0], [2.0, 3.0], [4.0], [5.0]]
    assert logits(occupied) == [100.0]
    # Filled up with the last row, to a size that was warmed up.
    assert device.batches == [[100.0], [1.0, 2.0, 3.0, 4.0, 5.0, 5.0, 5.0, 5.0]]
    assert (backend.rows_run.sum, backend.rows_run.buckets()[-1]) == (6, ("+Inf", 2))
    assert backend.queue_seconds.buckets()[-1] == ("+Inf", 5)


def test_no_batch_is_larger_than_the_largest_size_and_the_oldest_go_first(
    occupied: Any, ask: Ask, device: FakeDevice
) -> None:
    futures = [ask(float(mark)) for mark in range(19)]
    device.free.set()
    assert [logits(future) for future in futures] == [[float(mark)] for mark in range(19)]
    assert [len(batch) for batch in device.batches] == [1, 8, 8, 4]
    assert [mark for batch in device.batches[1:] for mark in batch][:19] == [float(mark) for mark in range(19)]


def test_a_call_of_more_rows_than_the_largest_size_is_put_together_again(
    occupied: Any, ask: Ask, device: FakeDevice
) -> None:
    many, few = ask(*range(11)), ask(50.0)
    device.free.set()
    assert (logits(many), logits(few)) == ([float(mark) for mark in range(11)], [50.0])
    assert [len(set(batch)) for batch in device.batches] == [1, 8, 4]


def test_calls_for_other_outputs_get_batches_of_their_own(occupied: Any, ask: Ask, device: FakeDevice) -> None:
    first = [ask(1.0), ask(2.0, outputs=("e1", "pooled")), ask(3.0), ask(4.0, outputs=("pooled", "e1"))]
    device.free.set()
    assert logits(first[0]) == [1.0]
    maps = [future.result(PATIENCE_SECONDS) for future in (first[1], first[3])]
    assert device.batches == [[100.0], [1.0, 3.0], [2.0, 4.0]]
    assert device.outputs[1:] == [("logits",), ("e1", "pooled")]
    for found, mark in zip(maps, (2.0, 4.0), strict=True):
        assert found["e1"].shape == (1, 4, 16, 16) and found["pooled"].shape == (1, 8)
        assert all((values == mark).all() for values in found.values())


def test_answers_do_not_keep_the_batch_in_memory(occupied: Any, ask: Ask, device: FakeDevice) -> None:
    futures = [ask(float(mark)) for mark in range(8)]
    device.free.set()
    assert all(future.result(PATIENCE_SECONDS)["logits"].base is None for future in futures)


def test_a_bad_row_fails_its_own_call_only(
    occupied: Any, ask: Ask, device: FakeDevice, backend: BatchingBackend, caplog: pytest.LogCaptureFixture
) -> None:
    futures = [ask(*marks) for marks in ((1.0,), (2.0, POISON, 3.0), (4.0,), (5.0, 6.0))]
    device.free.set()
    with pytest.raises(RuntimeError, match="poisoned"):
        futures[1].result(PATIENCE_SECONDS)
    assert [logits(futures[index]) for index in (0, 2, 3)] == [[1.0], [4.0], [5.0, 6.0]]
    # One by one, the rest of the bad call left out, and zeros to see whether the device still runs.
    assert device.batches[2:] == [[1.0], [2.0], [POISON], [0.0], [4.0], [5.0], [6.0]]
    assert backend.fault() is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_failed_call_and_its_rows_are_let_go(device: FakeDevice, backend: BatchingBackend) -> None:
    rows = marked(device.manifest, POISON)
    reference = weakref.ref(rows)
    with pytest.raises(RuntimeError, match="poisoned"):
        backend.run(rows, ["logits"])
    del rows
    wait_until(lambda: reference() is None)  # without the garbage collector


def test_a_failure_that_does_not_come_again_is_not_noticed(occupied: Any, device: FakeDevice) -> None:
    device.failures = 1
    device.free.set()
    assert logits(occupied) == [100.0]
    assert device.batches == [[100.0], [100.0]]


def test_a_lost_device_fails_what_is_queued_quickly_and_says_so_until_it_runs_again(
    occupied: Any, ask: Ask, device: FakeDevice, backend: BatchingBackend, caplog: pytest.LogCaptureFixture
) -> None:
    futures = [ask(float(mark)) for mark in range(16)]
    device.lost = True
    device.free.set()
    for future in (occupied, *futures):
        with pytest.raises(DeviceLost, match="the device fell off the bus"):
            future.result(PATIENCE_SECONDS)
    # The batch, its row alone, zeros; then a batch at a time, without a second look at each row.
    assert [len(batch) for batch in device.batches] == [1, 1, 1, 8, 8]
    assert "tiny runs nothing any more" in str(backend.fault())
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR"]
    device.lost = False
    assert logits(ask(1.0)) == [1.0]
    assert backend.fault() is None


def test_a_device_that_hangs_is_a_fault(
    occupied: "Future[Any]", device: FakeDevice, backend: BatchingBackend, clock: GivenClock
) -> None:
    clock.advance(STUCK_SECONDS)
    assert backend.fault() is None
    clock.advance(1.0)
    assert f"has not answered for {STUCK_SECONDS + 1:.0f} s" in str(backend.fault())
    device.free.set()
    occupied.result(PATIENCE_SECONDS)
    assert backend.fault() is None


def test_an_answer_with_a_wrong_number_of_rows_is_no_answer(manifest: Manifest) -> None:
    class Short(FakeDevice):
        def run(self, image: NDArray[np.float32], outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
            found = super().run(image, outputs)
            return {name: values[:-1] for name, values in found.items()} if image.any() else found

    backend = BatchingBackend(Short(manifest), (2,), manifest)
    for _ in range(2):
        with pytest.raises(ModelOutputError, match="'logits' must have 2 rows"):
            backend.run(marked(manifest, 1.0), ["logits"])
    assert backend.close(PATIENCE_SECONDS)


def test_the_rows_of_clients_that_have_gone_never_reach_the_device(
    occupied: Any, ask: Ask, device: FakeDevice, backend: BatchingBackend, manifest: Manifest
) -> None:
    pool = WorkPool(4, max_queue_seconds=10.0)
    jobs = []
    for mark in range(4):
        seen = backend._queued_rows
        jobs.append(pool.submit(lambda ticket, mark=mark: backend.run(marked(manifest, mark), ["logits"])))  # type: ignore[misc]
        wait_until(lambda seen=seen: backend._queued_rows == seen + 1)  # type: ignore[misc]
    for index in (0, 2):
        pool.abandon(*jobs[index])
        with pytest.raises(ClientGone):  # at once, not when the device is free
            jobs[index][1].result(PATIENCE_SECONDS)
    device.free.set()
    assert [float(jobs[index][1].result(PATIENCE_SECONDS).value["logits"][0, 0]) for index in (1, 3)] == [1.0, 3.0]
    assert device.batches == [[100.0], [1.0, 3.0]]
    pool.shutdown()


def test_a_client_that_goes_while_its_batch_runs_does_not_disturb_the_others(
    device: FakeDevice, backend: BatchingBackend, manifest: Manifest
) -> None:
    pool = WorkPool(2, max_queue_seconds=10.0)
    device.free.clear()
    running = pool.submit(lambda ticket: backend.run(marked(manifest, 1.0), ["logits"]))
    device.wait_for_batch()
    pool.abandon(*running)
    with pytest.raises(ClientGone):
        running[1].result(PATIENCE_SECONDS)
    device.free.set()
    assert backend.run(marked(manifest, 2.0), ["logits"])["logits"][0, 0] == 2.0
    pool.shutdown()


def test_a_job_that_is_given_up_already_is_not_queued(backend: BatchingBackend, manifest: Manifest) -> None:
    pool = WorkPool(1, max_queue_seconds=10.0)

    def job(ticket: Ticket) -> None:
        ticket.abandon()
        backend.run(marked(manifest, 1.0), ["logits"])

    with pytest.raises(ClientGone):
        pool.submit(job)[1].result(PATIENCE_SECONDS)
    assert backend._queued_rows == 0
    pool.shutdown()


def test_the_estimated_wait_is_that_of_the_batches_before(
    device: FakeDevice, backend: BatchingBackend, ask: Ask, clock: GivenClock
) -> None:
    assert backend.estimated_wait() == 0
    backend._seconds.update(dict.fromkeys(device.batch_sizes, 0.5))
    device.free.clear()
    futures = [ask(1.0)]
    device.wait_for_batch()
    assert backend.estimated_wait() == pytest.approx(0.5)
    clock.advance(0.2)
    assert backend.estimated_wait() == pytest.approx(0.3)
    futures += [ask(*range(8)) for _ in range(3)]
    assert backend.estimated_wait() == pytest.approx(0.3 + 3 * 0.5)
    clock.advance(0.4)  # a batch that takes 0.1 s longer than usual may take as long again
    assert backend.estimated_wait() == pytest.approx(0.1 + 3 * 0.5)
    device.free.set()
    for future in futures:
        future.result(PATIENCE_SECONDS)
    wait_until(lambda: backend.estimated_wait() == 0)


def test_the_end_runs_what_is_queued_and_takes_nothing_more(
    occupied: Any, ask: Ask, device: FakeDevice, backend: BatchingBackend, manifest: Manifest
) -> None:
    futures = [ask(float(mark)) for mark in range(10)]
    assert not backend.close(0.02)  # the device is not free
    device.free.set()
    assert backend.close(PATIENCE_SECONDS)
    assert [logits(future) for future in futures] == [[float(mark)] for mark in range(10)]
    with pytest.raises(RuntimeError, match="tiny was closed"):
        backend.run(marked(manifest, 1.0), ["logits"])


@pytest.mark.slow
def test_hundreds_of_calls_at_once_all_get_their_own_answers(
    device: FakeDevice, backend: BatchingBackend, manifest: Manifest
) -> None:
    random = np.random.default_rng(0)
    asked = [
        ([float(mark) for mark in random.integers(0, 1000, random.integers(1, 12))], ("logits", "e4")[int(kind) :])
        for kind in random.integers(0, 2, 400)
    ]
    device.free.clear()
    with ThreadPoolExecutor(300) as threads:
        futures = [threads.submit(backend.run, marked(manifest, *marks), outputs) for marks, outputs in asked]
        wait_until(lambda: len(backend._queue) >= 299)  # and the first is on the device; the others come meanwhile
        device.free.set()
        found = [future.result(PATIENCE_SECONDS) for future in futures]
    for (marks, outputs), answer in zip(asked, found, strict=True):
        assert set(answer) == set(outputs)
        for values in answer.values():
            assert values.reshape(len(marks), -1).min(axis=1).tolist() == marks
            assert values.reshape(len(marks), -1).max(axis=1).tolist() == marks
    assert max(len(batch) for batch in device.batches) == 8
    full = sum(len(marks) for marks, _ in asked[:300]) / 8
    assert len(device.batches) < full + sum(-(-len(marks) // 8) for marks, _ in asked[300:]) + 4
    assert backend._queued_rows == 0 and len(device.threads) == 1


def test_rows_that_do_not_fit_the_model_are_refused(backend: BatchingBackend) -> None:
    for shape in ((1, 3, 64, 32), (0, 3, 64, 64)):
        with pytest.raises(ConvMAEError, match=r"a batch must be \(B, 3, 64, 64\)"):
            backend.run(np.zeros(shape, dtype=np.float32), ["logits"])


@pytest.mark.parametrize(
    ("waiting", "seconds", "rows"),
    [
        (1, {1: 1.0, 8: 2.0}, 1),
        (3, {1: 1.0, 8: 2.0}, 3),  # 1.5 rows a second, against one
        (3, {1: 0.1, 8: 2.0}, 1),  # one after the other is faster
        (9, {1: 1.0, 8: 1.8, 32: 4.2}, 8),  # 32 would be padding for the most part
        (30, {1: 1.0, 8: 1.8, 32: 4.2}, 30),
        (100, {1: 1.0, 8: 1.8, 32: 4.2}, 32),
        (5, {1: 1.0, 2: 1.1, 4: 1.2, 8: 1.4}, 5),
        (2, {4: 1.0, 8: 1.5}, 2),  # less than the smallest size
        (8, {8: 1.0}, 8),
    ],
)
def test_rows_wait_for_a_batch_of_their_own_size_where_padding_would_cost_more(
    waiting: int, seconds: dict[int, float], rows: int
) -> None:
    assert choose_rows(waiting, seconds) == rows


class Named:
    """A backend of which only where it runs is asked."""

    name = "named"

    def __init__(self, *providers: str, batch_sizes: tuple[int, ...] = ()) -> None:
        self.providers = providers
        self.batch_sizes = batch_sizes

    def run(self, image: NDArray[np.float32], outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        raise NotImplementedError


def with_batches(manifest: Manifest, least: int, most: int) -> Manifest:
    limits = manifest.input.model_copy(update={"min_batch": least, "max_batch": most})
    return manifest.model_copy(update={"input": limits})


@pytest.mark.parametrize(
    ("backend", "least", "most", "largest", "sizes"),
    [
        (Named("CPUExecutionProvider"), 1, 8, None, ()),
        (Named("CPUExecutionProvider"), 1, 8, 4, ()),
        (Named("cuda:0", batch_sizes=(32, 1, 8)), 1, 64, None, (1, 8, 32)),
        (Named("cuda:0", batch_sizes=(32, 1, 8)), 1, 64, 8, (1, 8)),
    ],
)
def test_batch_sizes_are_those_that_the_backend_says(
    manifest: Manifest, backend: Named, least: int, most: int, largest: int | None, sizes: tuple[int, ...]
) -> None:
    assert device_batches(backend, with_batches(manifest, least, most), largest) == sizes


def test_a_largest_batch_below_every_size_is_a_sentence(manifest: Manifest) -> None:
    with pytest.raises(
        ConvMAEError, match="CONVMAE_MAX_BATCH is 2, and the model tiny runs in batches of 4, 8; set it"
    ):
        device_batches(Named("cuda:0", batch_sizes=(8, 4)), manifest, 2)


def test_jobs_that_fail_and_jobs_that_are_given_up_leave_nothing_behind(
    device: FakeDevice, backend: BatchingBackend, manifest: Manifest
) -> None:
    random, pool = np.random.default_rng(0), WorkPool(2, 100.0, backend.estimated_wait)
    wrong: list[tuple[float, float]] = []

    def job(mark: float, count: int, ticket: Ticket) -> None:
        rows = marked(manifest, *[mark] * count)
        with ticket.away(rows.nbytes):
            found = backend.run(rows, ["logits"])["logits"]
        if not (found == mark).all():
            wrong.append((mark, float(found[0, 0])))

    jobs = []
    for index in range(100):
        mark = POISON if random.random() < 0.03 else float(index)
        jobs.append(pool.submit(partial(job, mark, int(random.integers(1, 4)))))
        if random.random() < 0.3:
            given_up = int(random.integers(max(0, index - 9), index + 1))
            if not jobs[given_up][0].abandoned:
                pool.abandon(*jobs[given_up])
            wait_until(lambda: pool.pending < 6)  # so that some are given up in the queue, and some on the device
        device.lost = 40 <= index < 43
    finished = wait([future for _, future in jobs], timeout=PATIENCE_SECONDS)
    assert not finished.not_done
    wait_until(lambda: pool.pending == 0)
    assert (pool.running, pool._free_cores, pool._away, pool._away_bytes) == (0, 2, 0, 0)
    assert (backend._queued_rows, list(backend._queue), wrong) == (0, [], [])
    kinds = {type(future.exception()) for _, future in jobs if not future.cancelled()}
    assert kinds <= {type(None), RuntimeError, ClientGone, DeviceLost} and type(None) in kinds
    assert backend.run(marked(manifest, 1.0), ["logits"])["logits"][0, 0] == 1.0
    pool.shutdown()


class TwoLanes(FakeDevice):
    """A device that takes two batches at once and computes in the end, when both have been copied."""

    lanes = 2

    def run(self, image: NDArray[np.float32], outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        self.entered.release()
        wait_for(self.free)
        with self.lock:
            return super().run(image, outputs)

    lock = threading.Lock()


def test_a_second_lane_takes_a_full_batch_while_another_runs_and_leaves_others_to_grow(manifest: Manifest) -> None:
    device = TwoLanes(manifest, sizes=(1, 2))
    backend = BatchingBackend(device, (1, 2), manifest)
    assert len(device.threads) == 2 and len(device.batches) == 12  # each thread has warmed both sizes up
    device.forget()
    device.free.clear()
    with ThreadPoolExecutor(4) as threads:

        def ask(mark: float) -> "Future[dict[str, NDArray[Any]]]":
            return threads.submit(backend.run, marked(manifest, mark), ["logits"])

        futures = [ask(100.0)]
        device.wait_for_batch()
        futures.append(ask(1.0))
        wait_until(lambda: backend._queued_rows == 1)  # and stays, as half a batch is better off growing
        assert not device.entered.acquire(blocking=False)
        futures.append(ask(2.0))
        device.wait_for_batch()
        futures.append(ask(3.0))
        wait_until(lambda: backend._queued_rows == 1)
        device.free.set()
        assert [logits(future) for future in futures] == [[100.0], [1.0], [2.0], [3.0]]
    assert sorted(map(len, device.batches)) == [1, 1, 2]
    assert backend.close(PATIENCE_SECONDS)
