"""One device, many requests: whenever the device is free, what is queued becomes the next batch, without waiting.

Requests call `run` from threads of their own, as on a CPU. Their rows (photos, windows, clips) are put together in the
order in which they came, filled up to a batch size that the device was warmed up for, and taken apart again. Batches
run in a thread for each lane of the backend: ONNX Runtime keeps CUDA's handles and their memory for each thread that it
is called from. While one batch runs, another lane prepares and copies the next one, but only where that is full: a
smaller one is better off growing.

Calls for different outputs do not share a batch: the maps of features are hundreds of times larger than logits, and
copying them back for everybody would cost more than a smaller batch.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from convmae_deploy.backends.base import Backend, InputArray, Outputs
from convmae_deploy.bundle.graph_checks import check_images
from convmae_deploy.bundle.manifest import Manifest
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.tasks.base import ModelOutputError
from serving.errors import ClientGone
from serving.metrics import SECONDS_BUCKETS, Histogram
from serving.work.pool import SMOOTHING, current_ticket

logger = logging.getLogger("convmae_serving")

STUCK_SECONDS: Final = 30.0  # that a batch may take before the device is thought to hang
TIMED_RUNS: Final = 2  # for each batch size, after the one that warms it up
ROW_BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class DeviceLost(RuntimeError):
    """The device runs nothing any more, not even what it has run before."""


class _Call:
    """One call of `run`, in the queue or on the device."""

    def __init__(self, rows: InputArray, outputs: Sequence[str], since: float) -> None:
        self.rows = rows
        self.outputs = tuple(sorted(set(outputs)))
        self.since = since  # by the backend's clock
        self.taken = 0  # rows given to batches so far
        self.error: Exception | None = None
        self.ended = threading.Event()
        self._outputs: list[Outputs] = []  # for the first rows, in order
        self._rows_run = 0  # rows

    @property
    def kind(self) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """What calls that run together have in common: the outputs, and the shape of their rows."""
        return self.outputs, self.rows.shape[1:]

    @property
    def waiting(self) -> int:
        """Rows still in the queue."""
        return len(self.rows) - self.taken

    def add(self, outputs: Outputs, rows: int) -> None:
        """Takes the outputs of the next rows."""
        self._outputs.append(outputs)
        self._rows_run += rows
        if self._rows_run == len(self.rows):
            self.ended.set()

    def result(self) -> Outputs:
        """The outputs of all rows, in memory of their own: a view would keep the whole batch. To be called once."""
        if self.error is not None:
            try:
                raise self.error
            finally:
                self.error = None  # whose traceback holds this call, which must not hold it
        parts, self._outputs = self._outputs, []
        return {name: np.concatenate([values[name] for values in parts]) for name in self.outputs}


class _Part(NamedTuple):
    """The rows of one call in one batch."""

    call: _Call
    start: int
    stop: int


class _Lane:
    """A thread that runs batches, with memory of its own for them."""

    def __init__(self, rows: NDArray[Any]) -> None:
        self.rows = rows  # every batch in turn
        self.running: tuple[int, float] | None = None  # size of the batch on the device, and since when
        self.thread: threading.Thread


class BatchingBackend:
    """A backend that runs the calls of many threads together on another backend.

    Args:
        backend: what runs the batches.
        sizes: batches that it is fast for.
        manifest: of the model.
        clock: seconds that have passed, from any start; what batches take is measured by it.

    Raises:
        ConvMAEError: a batch of one of the sizes does not run.
    """

    def __init__(
        self,
        backend: Backend,
        sizes: Sequence[int],
        manifest: Manifest,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.sizes = tuple(sorted(sizes))
        self.rows_run = Histogram(ROW_BUCKETS)
        self.queue_seconds = Histogram(SECONDS_BUCKETS)
        self._backend = backend
        self._clock = clock
        self._model = manifest.name
        self._outputs = tuple(sorted(manifest.outputs))
        self._entry = manifest.input
        self._changed = threading.Condition()
        self._queue: deque[_Call] = deque()
        self._queued_rows = 0
        self._closed = False
        self.lost = False  # whether the device ran nothing the last time
        self._seconds: dict[int, float] = {}  # that a batch of each size takes
        self._taken = 0  # batches that lanes have taken and not run to their end
        self._ended = -math.inf  # when the last batch came off the device
        buffer, shape = getattr(backend, "host_buffer", np.zeros), (self.sizes[-1], *manifest.input.shape)
        self._lanes = [_Lane(buffer(shape, manifest.input.dtype)) for _ in range(getattr(backend, "lanes", 1))]
        for lane in self._lanes:  # one after the other, so that each is timed with the device to itself
            warm: Future[None] = Future()
            name = f"batches-{self._model}"
            # A daemon, so that a device that hangs does not keep the process from ending.
            lane.thread = threading.Thread(target=self._work, args=(lane, warm), name=name, daemon=True)
            lane.thread.start()
            try:
                warm.result()
            except BaseException:
                self._close()
                raise

    @property
    def name(self) -> str:
        """What runs the graph, for people."""
        return self._backend.name

    @property
    def providers(self) -> tuple[str, ...]:
        """Where it runs, the preferred one first."""
        return self._backend.providers

    def run(self, image: InputArray, outputs: Sequence[str]) -> Outputs:
        """Runs images (B, 3, H, W), or clips (B, 3, T, H, W), and returns the named outputs, each (B, ...).

        Raises:
            ClientGone: the job that this thread works for was abandoned meanwhile.
            DeviceLost: the device runs nothing any more.
        """
        check_images(image, self._entry)
        call = _Call(image, outputs, self._clock())
        ticket = current_ticket()
        if ticket is not None:
            ticket.when_abandoned(lambda: self._fail(call, ClientGone()))
        with self._changed:
            if self._closed:
                raise RuntimeError(f"the model {self._model} was closed")
            if not call.ended.is_set():
                self._queue.append(call)
                self._queued_rows += len(image)
                self._changed.notify()
        call.ended.wait()
        return call.result()

    def estimated_wait(self) -> float:
        """Seconds that a row given now would probably wait for the device."""
        largest = self.sizes[-1]
        wait = self._queued_rows // largest * self._seconds[largest]
        for lane in self._lanes:
            if (running := lane.running) is not None:
                # What is left of a batch that runs; one that takes longer than usual may well take as long again.
                wait += abs(self._seconds[running[0]] - (self._clock() - running[1]))
        return wait

    def fault(self) -> str | None:
        """Why the device is of no use now, or None."""
        if self.lost or not all(lane.thread.is_alive() for lane in self._lanes):
            return (
                f"the device of the model {self._model} runs nothing any more; see the log, and start the server again"
            )
        begun = [running[1] for lane in self._lanes if (running := lane.running) is not None]
        if begun and (seconds := self._clock() - min(begun)) > STUCK_SECONDS:
            return f"the device of the model {self._model} has not answered for {seconds:.0f} s; start the server again"
        return None

    def close(self, seconds: float | None = None) -> bool:
        """Takes no more calls, runs those that are queued, and ends the threads.

        Args:
            seconds: the longest time to wait for that; None waits for as long as it takes.

        Returns:
            Whether the threads have ended.
        """
        self._close()
        end = None if seconds is None else time.monotonic() + seconds
        for lane in self._lanes:
            lane.thread.join(None if end is None else max(end - time.monotonic(), 0))
        return not any(lane.thread.is_alive() for lane in self._lanes)

    def _close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _work(self, lane: _Lane, warm: "Future[None]") -> None:
        try:
            self._warm_up(lane)
        except BaseException as error:
            warm.set_exception(error)
            return
        warm.set_result(None)
        while self._run_next(lane):
            pass

    def _warm_up(self, lane: _Lane) -> None:
        """Runs each size with all outputs, and times it."""
        for size in self.sizes:
            runs = []
            try:
                for _ in range(1 + TIMED_RUNS):
                    started = self._clock()
                    self._backend.run(lane.rows[:size], self._outputs)
                    runs.append(self._clock() - started)
            except Exception as error:  # backends' exceptions have no common base
                reason = " ".join(str(error).split())
                raise ConvMAEError(
                    f"the model {self._model} cannot run a batch of {size} in {self._backend.name} ({reason}); "
                    "set CONVMAE_MAX_BATCH to less"
                ) from error
            self._seconds[size] = min(runs)

    def _run_next(self, lane: _Lane) -> bool:
        """Waits for rows and runs a batch of them, of which nothing is held afterwards; False once closed and empty."""
        with self._changed:
            while not self._is_worth_taking() and not (self._closed and not self._queue):
                self._changed.wait()
            if not self._queue:
                return False
            parts = self._take()
            self._taken += 1
        try:
            self._run_batch(lane, parts)
        finally:
            with self._changed:
                self._taken -= 1
                if len(self._lanes) > 1:
                    self._changed.notify_all()  # those that waited for the device
        return True

    def _is_worth_taking(self) -> bool:
        """Whether a batch is to be taken now: of any size where the device is free, a full one while another runs."""
        if not self._taken:
            return bool(self._queue)
        alike = (call.waiting for call in self._queue if call.kind == self._queue[0].kind)
        return sum(alike) >= self.sizes[-1]

    def _take(self) -> list[_Part]:
        """The next batch: of the calls like the oldest one, as many rows as are worth it."""
        calls = [call for call in self._queue if call.kind == self._queue[0].kind]
        left = choose_rows(sum(call.waiting for call in calls), self._seconds)
        pixels = math.prod(calls[0].rows.shape[1:])  # of larger images fewer, so that a batch takes as much memory
        left = max(1, min(left, self._lanes[0].rows.size // pixels))
        self._queued_rows -= left
        now, parts = self._clock(), []
        for call in calls:
            if not left:
                break
            if not call.taken:
                self.queue_seconds.observe(now - call.since)
            rows = min(call.waiting, left)
            parts.append(_Part(call, call.taken, call.taken + rows))
            call.taken += rows
            left -= rows
        self._queue = deque(call for call in self._queue if call.waiting)
        return parts

    def _run_batch(self, lane: _Lane, parts: Sequence[_Part]) -> None:
        outputs = parts[0].call.outputs
        try:
            found = self._execute(lane, [part.call.rows[part.start : part.stop] for part in parts], outputs)
        except Exception as error:  # backends' exceptions have no common base
            if self.lost:
                self._fail_all(parts, error)
            else:
                logger.warning("model %s: a batch failed, its rows are run one by one (%s)", self._model, str(error))
                self._run_one_by_one(lane, parts)
            return
        if self.lost:
            logger.warning("model %s: the device runs again", self._model)
            self.lost = False
        start = 0
        for part in parts:
            rows = part.stop - part.start
            part.call.add({name: values[start : start + rows] for name, values in found.items()}, rows)
            start += rows

    def _run_one_by_one(self, lane: _Lane, parts: Sequence[_Part]) -> None:
        """Runs the rows of a failed batch alone, so that one bad row fails its own call only."""
        for call, start, stop in parts:
            for row in range(start, stop):
                if call.ended.is_set():  # it has failed, or nobody waits for it any more
                    break
                try:
                    found = self._execute(lane, [call.rows[row : row + 1]], call.outputs)
                except Exception as error:
                    self._check_device(lane, error)
                    if self.lost:
                        self._fail_all(parts, error)
                        return
                    self._fail(call, error)
                else:
                    call.add({name: values[:1] for name, values in found.items()}, 1)

    def _check_device(self, lane: _Lane, error: Exception) -> None:
        """Tells a row that cannot be run from a device that cannot run: the latter fails on the warm-up's zeros too."""
        try:
            self._execute(lane, [np.zeros_like(lane.rows[:1])], self._outputs)
        except Exception:
            self.lost = True
            logger.error("model %s: the device runs nothing any more", self._model, exc_info=error)

    def _execute(self, lane: _Lane, rows: Sequence[InputArray], outputs: Sequence[str]) -> Outputs:
        """One run on the device, of rows that are at most as many as the largest batch, filled up with the last one.

        Rows of another size than the model's own run as many as they are, and say nothing of how long a batch takes.
        """
        if rows[0].shape[1:] != lane.rows.shape[1:]:
            return self._checked(self._backend.run(np.concatenate(rows), outputs), sum(map(len, rows)), outputs)
        count = 0
        for part in rows:
            lane.rows[count : count + len(part)] = part
            count += len(part)
        size = next(size for size in self.sizes if size >= count)
        lane.rows[count:size] = lane.rows[count - 1]
        with self._changed:
            self.rows_run.observe(count)
        started = self._clock()
        lane.running = (size, started)
        try:
            found = self._backend.run(lane.rows[:size], outputs)
        finally:
            lane.running, before, self._ended = None, self._ended, self._clock()
        taken = self._ended - max(started, before)  # of a batch that waited for another one, from the end of that
        self._seconds[size] += SMOOTHING * (taken - self._seconds[size])
        return self._checked(found, size, outputs)

    @staticmethod
    def _checked(found: Outputs, size: int, outputs: Sequence[str]) -> Outputs:
        for name in outputs:
            if found[name].shape[:1] != (size,):
                raise ModelOutputError(f"output {name!r} must have {size} rows, got shape {found[name].shape}")
        return {name: found[name] for name in outputs}

    def _fail_all(self, parts: Sequence[_Part], error: Exception) -> None:
        for part in parts:
            lost = DeviceLost(f"the device runs nothing any more ({error})")
            lost.__cause__ = error
            self._fail(part.call, lost)

    def _fail(self, call: _Call, error: Exception) -> None:
        """Ends a call, unless it has ended; its rows do not reach the device any more."""
        with self._changed:
            if call.ended.is_set():
                return
            if call in self._queue:
                self._queue.remove(call)
                self._queued_rows -= call.waiting
            call.error = error
            call.ended.set()


def choose_rows(waiting: int, seconds: Mapping[int, float]) -> int:
    """How many of the waiting rows are run next: all that fit into the largest batch, as a rule.

    The smaller batch comes first where it is full and gets more done a second than the larger one with its padding.

    Args:
        waiting: rows, at least 1.
        seconds: that a batch of each size takes.
    """
    rows = min(waiting, max(seconds))
    larger = min(size for size in seconds if size >= rows)
    smaller = max((size for size in seconds if size <= rows), default=0)
    return smaller if smaller and smaller / seconds[smaller] > rows / seconds[larger] else rows


def device_batches(backend: Backend, manifest: Manifest, largest: int | None) -> tuple[int, ...]:
    """The batch sizes in which a backend should get its rows, ascending; none where it runs on the CPU.

    Args:
        backend: says the sizes itself where it is on a device.
        manifest: of the model.
        largest: size wanted; None: as large as the model allows.

    Raises:
        ConvMAEError: every size is larger than that.
    """
    sizes: Sequence[int] = getattr(backend, "batch_sizes", ())
    chosen = tuple(sorted(size for size in sizes if largest is None or size <= largest))
    if sizes and not chosen:
        raise ConvMAEError(
            f"CONVMAE_MAX_BATCH is {largest}, and the model {manifest.name} runs in batches of "
            f"{', '.join(map(str, sorted(sizes)))}; set it to one of these"
        )
    return chosen
