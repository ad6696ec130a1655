"""Runs whose model is spread over processes are saved and continued like any other."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_sharded_model_learns_saves_and_resumes_as_a_whole_one(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "tests.engine.sharded_run"]
    done = subprocess.run(
        [*command, str(tmp_path / "run")],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["norms"][1] == pytest.approx(figures["norms"][0], rel=1e-5)
    assert figures["resumed"][0] == figures["resumed"][1]
    assert figures["weights"] < 1e-6
