"""A run whose model is spread over processes is saved and continued like any other."""

import json
from pathlib import Path

import pytest

from tests.processes import RunProcesses


@pytest.mark.slow
def test_a_sharded_model_learns_saves_and_resumes_as_a_whole_one(tmp_path: Path, run_processes: RunProcesses) -> None:
    written = run_processes(2, "tests.engine.sharded_run", str(tmp_path / "run"))
    figures = json.loads(written.splitlines()[-1])
    assert figures["norms"][1] == pytest.approx(figures["norms"][0], rel=1e-5)
    assert figures["resumed"][0] == figures["resumed"][1]
    assert figures["weights"] < 1e-6
