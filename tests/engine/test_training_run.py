"""Runs keep memory on a CPU, and those whose model is spread over processes are saved and continued like any other."""

import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from rich.console import Console
from torch import nn

from convmae_deploy.checkpoints import CheckpointRecord
from convmae_deploy.engine import training_setup
from convmae_deploy.engine.training_config import RunConfig, TrainingConfig
from convmae_deploy.engine.training_setup import Setup
from convmae_deploy.models.convmae import nano
from tests.processes import RunProcesses


def test_a_run_on_a_cpu_keeps_the_memory_that_it_frees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(training_setup, "keep_freed_memory", lambda: calls.append("kept"))
    config, model = TrainingConfig(data="photos", run=RunConfig(out=tmp_path / "run")), nn.Linear(2, 1)
    setup = Setup(config=config, accelerator=Accelerator(cpu=True), console=Console(quiet=True))
    record = CheckpointRecord(kind="classifier", variant="nano", model=nano(), classes=("a",))
    setup.begin(record, model, torch.optim.SGD(model.parameters()), 1, {})
    assert calls == ["kept"]


@pytest.mark.slow
def test_a_sharded_model_learns_saves_and_resumes_as_a_whole_one(tmp_path: Path, run_processes: RunProcesses) -> None:
    written = run_processes(2, "tests.engine.sharded_run", str(tmp_path / "run"))
    figures = json.loads(written.splitlines()[-1])
    assert figures["norms"][1] == pytest.approx(figures["norms"][0], rel=1e-5)
    assert figures["resumed"][0] == figures["resumed"][1]
    assert figures["weights"] < 1e-6
