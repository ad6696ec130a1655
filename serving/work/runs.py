"""Runs of a model for a request: timed, counted, ended with it, put together with others on a device."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import numpy as np

from convmae_deploy.backends.base import InputArray, Outputs
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.tasks.base import Predictor, Run
from serving.errors import ApiError, ClientGone
from serving.work.batching import BatchingBackend
from serving.work.pool import Ticket

FAILURES_UNTIL_NOT_READY: Final = 3


class Timings:
    """Seconds spent in each phase of a request, in the order in which they were first entered."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.intervals: list[tuple[str, float, float]] = []  # phase, start by time.perf_counter(), seconds

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time spent inside to the phase `name`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, started, time.perf_counter() - started)

    def add(self, name: str, started: float, seconds: float) -> None:
        """Adds to the phase `name` what began at `started` by time.perf_counter()."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        self.intervals.append((name, started, seconds))

    def header(self) -> str:
        """The value of a Server-Timing header, in milliseconds."""
        return ", ".join(f"{name};dur={1000 * value:.2f}" for name, value in self.seconds.items())


class Health:
    """Whether the model runs: not ready after three failures in a row, ready again after one success."""

    def __init__(self) -> None:
        self.failures_in_a_row = 0

    @property
    def ready(self) -> bool:
        """Whether requests are likely to be answered."""
        return self.failures_in_a_row < FAILURES_UNTIL_NOT_READY


@contextmanager
def counted(predictor: Predictor, health: Health) -> Iterator[None]:
    """Runs the model inside, and keeps count of its failures.

    Raises:
        ApiError: 500 `inference_failed`.
        ClientGone: nobody waits for the results any more.
    """
    try:
        yield
    except ClientGone:
        raise
    except Exception as error:
        # ConvMAEError refuses what it was given; only others say that the model does not run.
        health.failures_in_a_row += not isinstance(error, ConvMAEError)
        error.add_note(f"model {predictor.manifest.name}")
        message = "the model failed on this request; the server's log says why under this request id"
        raise ApiError(500, "inference_failed", message) from error
    health.failures_in_a_row = 0


def run_for(predictor: Predictor, ticket: Ticket) -> Run:
    """Runs of the model for a job, which end with it."""
    return _in_parts(predictor, ticket) if predictor.ONE_BY_ONE else _whole(predictor, ticket)


def _run(predictor: Predictor, batch: InputArray, outputs: Sequence[str]) -> Outputs:
    try:
        return predictor.run(batch, outputs)
    except Exception as error:
        error.add_note(f"a batch of shape {batch.shape}")
        raise


def _whole(predictor: Predictor, ticket: Ticket) -> Run:
    """For a job that holds its photos, and of several a batch: while it waits for a device, another has its core."""
    specs = predictor.manifest.outputs

    def run(batch: InputArray, outputs: Sequence[str]) -> Outputs:
        if not _on_device(predictor):
            return _run(predictor, batch, outputs)
        row = sum(math.prod(specs[name].shape) * np.dtype(specs[name].dtype).itemsize for name in outputs)
        inputs = batch.nbytes * (1 if len(batch) == 1 else 2)
        with ticket.away(inputs + len(batch) * row):
            return _run(predictor, batch, outputs)

    return run


def _in_parts(predictor: Predictor, ticket: Ticket) -> Run:
    """For many rows of one file: between two parts the work ends when nobody waits for it any more."""
    limits = predictor.manifest.input
    # One clip is work enough for a CPU; on a device it can end in the queue.
    size = limits.min_batch if predictor.MEDIUM == "video" and not _on_device(predictor) else limits.max_batch

    def run(batch: InputArray, outputs: Sequence[str]) -> Outputs:
        parts = []
        for start in range(0, len(batch), size):
            ticket.check()
            parts.append(_run(predictor, batch[start : start + size], outputs))
        return {name: np.concatenate([part[name] for part in parts]) for name in outputs}

    return run


def _on_device(predictor: Predictor) -> bool:
    """Whether the model's runs are put together with those of other requests, away from this machine's cores."""
    return isinstance(predictor.backend, BatchingBackend)
