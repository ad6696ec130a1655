"""A device that runs batches on this machine's CPU, and does what a test tells it to."""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convmae_deploy.backends.base import Backend
from convmae_deploy.bundle.manifest import Manifest
from tests.waiting import PATIENCE_SECONDS, wait_for

POISON = -7.0  # a batch that holds a row with this mark fails
SIZES = (1, 2, 4, 8)


def marked(manifest: Manifest, *marks: float) -> NDArray[np.float32]:
    """Rows (B, ...) that say who they are: their every value is their mark."""
    shape = (len(marks), *manifest.input.shape)
    return np.ascontiguousarray(np.broadcast_to(_reshaped(np.array(marks, dtype=np.float32), len(shape)), shape))


class FakeDevice:
    """A backend for one thread at a time, whose batches end when a test lets them.

    Args:
        manifest: of the model.
        real: what computes the answers; None: every value of a row's answer is the row's mark.
        sizes: the only batches that it takes.
    """

    name = "fake"
    providers = ("FakeDevice",)

    def __init__(self, manifest: Manifest, real: Backend | None = None, sizes: Sequence[int] = SIZES) -> None:
        self.batch_sizes = tuple(sizes)
        self.manifest = manifest
        self.real = real
        self.poison = POISON
        self.lost = False
        self.failures = 0  # of the next batches
        self.free = threading.Event()  # cleared: batches do not come to their end
        self.free.set()
        self.entered = threading.Semaphore(0)  # released by each batch that begins
        self.batches: list[list[float]] = []  # the marks of each
        self.outputs: list[tuple[str, ...]] = []  # asked for by each
        self.threads: set[int] = set()
        self._one = threading.Lock()

    @property
    def busy(self) -> bool:
        """Whether a batch is on it."""
        return self._one.locked()

    def run(self, image: NDArray[np.float32], outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        """One batch, as `Backend.run`."""
        assert self._one.acquire(blocking=False), "two batches at once"
        try:
            assert len(image) in self.batch_sizes and image.flags.c_contiguous
            marks = image.reshape(len(image), -1)[:, 0].copy()
            self.batches.append(marks.tolist())
            self.outputs.append(tuple(outputs))
            self.threads.add(threading.get_ident())
            self.entered.release()
            wait_for(self.free)
            if self.lost:
                raise RuntimeError("the device fell off the bus")
            if self.failures:
                self.failures -= 1
                raise RuntimeError("not this time")
            if (marks == self.poison).any():
                raise RuntimeError("poisoned")
            if self.real is not None:
                return self.real.run(image, outputs)
            return {name: self._outputs(name, marks) for name in outputs}
        finally:
            self._one.release()

    def forget(self) -> None:
        """Forgets the batches so far, such as those of the warm-up."""
        self.batches.clear()
        self.outputs.clear()
        while self.entered.acquire(blocking=False):
            pass

    def wait_for_batch(self) -> None:
        """Returns once a batch has begun that was not waited for before."""
        assert self.entered.acquire(timeout=PATIENCE_SECONDS)

    def _outputs(self, name: str, marks: NDArray[np.float32]) -> NDArray[Any]:
        spec = self.manifest.outputs[name]
        shape = (len(marks), *spec.shape)
        return np.broadcast_to(_reshaped(marks, len(shape)), shape).astype(spec.dtype)


def _reshaped(marks: NDArray[np.float32], axes: int) -> NDArray[np.float32]:
    return marks.reshape(-1, *[1] * (axes - 1))
