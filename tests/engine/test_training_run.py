"""Runs keep memory on a CPU, and those whose model is spread over processes are saved and continued like any other."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from convmae_deploy.checkpoints import CheckpointRecord
from convmae_deploy.engine import training_run
from convmae_deploy.engine.training_run import RunConfig, TrainingRun
from convmae_deploy.models.convmae import nano

ROOT = Path(__file__).parents[2]


def test_a_run_on_a_cpu_keeps_the_memory_that_it_frees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(training_run, "keep_freed_memory", lambda: calls.append("kept"))
    config, model = RunConfig(out=tmp_path / "run"), nn.Linear(2, 1)
    TrainingRun.begin(
        config,
        run=config,
        accelerator=Accelerator(cpu=True),
        record=CheckpointRecord(kind="classifier", variant="nano", model=nano(), classes=("a",)),
        model=model,
        optimizer=torch.optim.SGD(model.parameters()),
        micro_batches=1,
        facts={},
    )
    assert calls == ["kept"]


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
