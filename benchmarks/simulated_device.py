"""The server with a device that only takes time: `python -m benchmarks.simulated_device BATCH_MS PHOTO_MS`.

A batch takes BATCH_MS and PHOTO_MS more for each of its photos, as on a GPU, and its answers are zeros. Everything else
is the server as it is, with its settings from the environment.
"""

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from convmae_deploy.bundle.loading import Bundle
from convmae_deploy.bundle.manifest import Manifest
from serving import __main__
from serving.api import models

BATCH_SIZES: Final = (1, 2, 4, 8, 16, 32)


class SimulatedDevice:
    """A backend that computes nothing and takes as long as it is told.

    Args:
        manifest: of the model.
        seconds: of each batch.
        row_seconds: of each of its rows, on top.
        sleep: lets so many seconds pass.
    """

    name = "simulated device"
    providers = ("none",)
    batch_sizes = BATCH_SIZES

    def __init__(
        self,
        manifest: Manifest,
        seconds: float,
        row_seconds: float,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._outputs = manifest.outputs
        self._seconds, self._row_seconds = seconds, row_seconds
        self._sleep = sleep

    def run(self, image: NDArray[np.float32], outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Zeros for a batch, each output (B, ...)."""
        self._sleep(self._seconds + self._row_seconds * len(image))
        specs = ((name, self._outputs[name]) for name in outputs)
        return {name: np.zeros((len(image), *spec.shape), dtype=spec.dtype) for name, spec in specs}


def main(batch_ms: float, photo_ms: float) -> int:
    """Serves until a signal."""

    def start(bundle: Bundle, **_: Any) -> SimulatedDevice:
        return SimulatedDevice(bundle.manifest, batch_ms / 1000, photo_ms / 1000)

    models.start_backend = start  # type: ignore[attr-defined]
    return __main__.main()


if __name__ == "__main__":
    sys.exit(main(*map(float, sys.argv[1:])))
