"""What making a file takes: time, and the most memory that the process had meanwhile."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from convmae_deploy.bundle.numerics import ExportCost
from convmae_deploy.machine import peak_memory_bytes


class CostMeter:
    """Collects the cost of one file, step by step."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._peak = 0

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Measures what is done meanwhile, as "export" or "verification"."""
        forget_peak_memory()
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start
            self._peak = max(self._peak, peak_memory_bytes())

    @property
    def cost(self) -> ExportCost:
        """All steps so far."""
        return ExportCost(
            seconds=round(self._seconds.get("export", 0.0), 2),
            verification_seconds=round(self._seconds.get("verification", 0.0), 2),
            peak_bytes=self._peak,
        )


def forget_peak_memory() -> None:
    """Lets the peak begin anew with what is in use now, where the system can do so (Linux); elsewhere it only grows."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
