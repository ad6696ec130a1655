"""What a program has before its model, and how its run begins."""

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator, DistributedType
from rich.console import Console
from torch import nn

from convmae_deploy.checkpoints import CheckpointRecord
from convmae_deploy.data.data_check import DataCheck, SplitCheck
from convmae_deploy.data.findings import Findings
from convmae_deploy.engine import training_setup
from convmae_deploy.engine.run_folder import DATA_CHECK, RunFolder
from convmae_deploy.engine.training_config import RunConfig, TrainingConfig
from convmae_deploy.engine.training_loop import TrainingLoop
from convmae_deploy.engine.training_setup import DataChecked, Setup, run_training
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.convmae import nano


def config(tmp_path: Path) -> TrainingConfig:
    return TrainingConfig(data="photos", run=RunConfig(out=tmp_path / "run", precision="fp32", seed=5))


def test_a_run_on_a_cpu_keeps_the_memory_that_it_frees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(training_setup, "keep_freed_memory", lambda: calls.append("kept"))
    model = nn.Linear(2, 1)
    setup = Setup(config=config(tmp_path), accelerator=Accelerator(cpu=True), console=Console(quiet=True))
    record = CheckpointRecord(kind="classification", variant="nano", model=nano(), classes=("a",))
    setup.begin(record, model, torch.optim.SGD(model.parameters()), 1, {})
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


def checked() -> DataCheck:
    return DataCheck(data="photos", splits=[SplitCheck(name="train", facts={}, words="3 photos", findings=Findings())])


def setup_of(tmp_path: Path, console: Console, **changes: bool) -> Setup:
    plain = config(tmp_path)
    changed = replace(plain, run=replace(plain.run, **changes))  # type: ignore[arg-type]
    return Setup(config=changed, accelerator=Accelerator(cpu=True), console=console)


def test_the_check_of_the_data_is_said_and_written_where_a_run_begins(tmp_path: Path) -> None:
    console = Console(record=True, quiet=False, file=StringIO())
    setup = setup_of(tmp_path, console)
    setup.check_data(checked)
    assert console.export_text() == "data photos\n  train: 3 photos\n" and not (tmp_path / "run").exists()
    model = nn.Linear(2, 1)
    record = CheckpointRecord(kind="classification", variant="nano", model=nano(), classes=("a",))
    setup.begin(record, model, torch.optim.SGD(model.parameters()), 1, {})
    assert json.loads((tmp_path / "run" / DATA_CHECK).read_text())["splits"][0]["words"] == "3 photos"
    setup_of(tmp_path, console, resume=True).check_data(lambda: pytest.fail("a resumed run was checked before"))


def test_to_check_the_data_alone_ends_before_the_model_and_leaves_room_for_the_run(tmp_path: Path) -> None:
    console = Console(record=True, file=StringIO())
    for _ in range(2):  # nothing is in the way of a second look
        with pytest.raises(DataChecked):
            setup_of(tmp_path, console, check_data=True).check_data(checked)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [DATA_CHECK]
    RunFolder(tmp_path / "run").check_is_new()
    (tmp_path / "run" / "run.json").write_text("{}")
    with pytest.raises(ConvMAEError, match="holds a run already"):
        setup_of(tmp_path, console, check_data=True).check_data(checked)
    with pytest.raises(DataChecked):
        setup_of(tmp_path, console, check_data=True, resume=True).check_data(checked)


def test_the_status_says_whether_training_would_refuse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refusing(config: TrainingConfig) -> TrainingLoop:
        raise ConvMAEError("no photos")

    def checking(config: TrainingConfig) -> TrainingLoop:
        raise DataChecked

    plain = config(tmp_path)
    only = replace(plain, run=replace(plain.run, check_data=True))
    assert run_training(only, checking) == 0
    assert run_training(only, refusing) == 1
    assert capsys.readouterr().out == "training would refuse: no photos\n"
    with pytest.raises(ConvMAEError, match="no photos"):
        run_training(plain, refusing)
