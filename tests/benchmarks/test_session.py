"""The cost of a process: it loads what it measures alone, and failures are told."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.session import ROOT, SessionConfig, measure_apart
from convmae_deploy.errors import ConvMAEError
from tests.bundle_factory import make_bundle


def test_a_bundle_is_measured_without_torch() -> None:
    program = "import sys, benchmarks.session; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


def test_a_session_is_started_and_run_once(tmp_path: Path) -> None:
    cost = measure_apart(SessionConfig(bundle=make_bundle(tmp_path / "bundle"), threads=1))
    assert cost.start_seconds is not None and 0 < cost.start_seconds < 60
    assert 0.01 < cost.started_gb <= cost.peak_gb < 1


def test_a_failure_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConvMAEError, match=r"-m benchmarks.session .* ended with status 2: error: .*nothing"):
        measure_apart(SessionConfig(bundle=tmp_path / "nothing"))
