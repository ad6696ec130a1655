"""What a program has before its model, and how its run begins."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator, DistributedType
from rich.console import Console
from torch import nn

from convmae_deploy.checkpoints import CheckpointRecord
from convmae_deploy.engine import training_setup
from convmae_deploy.engine.training_config import RunConfig, TrainingConfig
from convmae_deploy.engine.training_setup import Setup
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.convmae import nano
from tests.engine.updates import Updates


def config(tmp_path: Path) -> TrainingConfig:
    return TrainingConfig(data="photos", run=RunConfig(out=tmp_path / "run", precision="fp32", seed=5))


def test_a_run_on_a_cpu_keeps_the_memory_that_it_frees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(training_setup, "keep_freed_memory", lambda: calls.append("kept"))
    model = nn.Linear(2, 1)
    setup = Setup(config=config(tmp_path), accelerator=Accelerator(cpu=True), console=Console(quiet=True))
    record = CheckpointRecord(kind="classification", variant="nano", model=nano(), classes=("a",))
    setup.begin(record, model, torch.optim.SGD(model.parameters()), Updates(4), {"train_photos": 4})
    assert calls == ["kept"]


def test_fresh_weights_follow_from_the_seed(tmp_path: Path) -> None:
    drawn = []
    for _ in range(2):
        Setup.of(config(tmp_path))
        drawn.append(torch.rand(4))
    assert torch.equal(*drawn)


def test_only_programs_that_can_run_sharded_are_let(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sharded = SimpleNamespace(distributed_type=DistributedType.FSDP, is_main_process=True)
    monkeypatch.setattr(RunConfig, "accelerator", lambda _: sharded)
    assert Setup.of(config(tmp_path), may_shard=True).accelerator is sharded
    with pytest.raises(ConvMAEError, match="FSDP is for pretraining alone; start this program with torchrun"):
        Setup.of(config(tmp_path))
