"""The benchmark of batches: its device, and one short run."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.batching import checked
from benchmarks.load import ROOT, Load
from benchmarks.simulated_device import SimulatedDevice
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.tasks import load_bundle
from tests.bundle_factory import make_bundle


def test_the_device_takes_the_stated_time_and_answers_in_the_models_shapes(tmp_path: Path) -> None:
    slept: list[float] = []
    device = SimulatedDevice(load_bundle(make_bundle(tmp_path / "tiny")).manifest, 0.02, 0.01, slept.append)
    found = device.run(np.zeros((4, 3, 64, 64), dtype=np.float32), ["logits", "e1"])
    assert slept == [pytest.approx(0.02 + 4 * 0.01)]
    assert {name: values.shape for name, values in found.items()} == {"logits": (4, 3), "e1": (4, 4, 16, 16)}


def test_figures_of_requests_that_failed_are_not_shown() -> None:
    with pytest.raises(ConvMAEError, match="2 of 3 requests failed; use fewer clients"):
        checked(Load(1.0, [0.1, 0.2, 0.3], 2))


@pytest.mark.slow
def test_a_short_run_shows_how_many_photos_a_batch_holds(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "tiny")
    command = ["--bundle", str(bundle), "--rounds", "1", "--seconds", "0.5", "--clients", "8", "--batch-ms", "100"]
    finished = subprocess.run(
        [sys.executable, "-m", "benchmarks.batching", *command], cwd=ROOT, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr
    rows = re.findall(r"^ +8  (one by one|in batches) .* ([\d.]+)$", finished.stdout, re.MULTILINE)
    sizes = {way: float(size) for way, size in rows}
    assert sizes["one by one"] == 1.0 and sizes["in batches"] >= 1.0
