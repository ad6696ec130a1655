"""What a program has before its model, and how its run begins."""

import json
import math
import sys
import threading
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator, DistributedType
from rich.console import Console
from torch import nn

from convmae_deploy.checkpoints import CheckpointRecord
from convmae_deploy.data.data_check import DataCheck, SplitCheck
from convmae_deploy.data.findings import Findings
from convmae_deploy.engine import training_setup
from convmae_deploy.engine.optimisation import OptimisationConfig
from convmae_deploy.engine.run_folder import DATA_CHECK, RunFolder
from convmae_deploy.engine.training_config import RunConfig, TrainingConfig
from convmae_deploy.engine.training_loop import TrainingLoop
from convmae_deploy.engine.training_setup import DataChecked, Setup, run_preset, run_training, with_run_so_far
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models import pretraining
from convmae_deploy.models.convmae import nano
from convmae_deploy.models.depthwise import Algorithms
from convmae_deploy.models.pretraining import PretrainingConfig, build_pretraining
from convmae_deploy.models.vit import variant_config
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


SECONDS = {
    "convolution": {"convolution": 31e-5, "shifted": 1e-4},
    "gradient": {"products": 2e-4, "shifted": math.inf},
}
CHOSEN = (
    "depthwise convolution of visible cells: shifted (ms: convolution 0.31, shifted 0.1); gradient of its weight: "
    "products (ms: products 0.2, shifted does not run)"
)


def on_a_gpu(tmp_path: Path, *, main: bool) -> Setup:
    gpu = SimpleNamespace(device=torch.device("cuda"), mixed_precision="bf16", is_main_process=main)
    return Setup(config=config(tmp_path), accelerator=gpu, console=Console(quiet=True))


@pytest.mark.slow
def test_on_a_gpu_the_fastest_algorithms_to_convolve_are_taken_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []

    def measure(*what: Any) -> tuple[Algorithms, dict[str, dict[str, float]]]:
        measured.append(what)
        return Algorithms("shifted", "products"), SECONDS

    monkeypatch.setattr(pretraining, "fastest", measure)
    setup, model = on_a_gpu(tmp_path, main=True), build_pretraining(nano(), PretrainingConfig())
    setup.choose_depthwise(model, 16)
    assert measured == [((32, 1, 5, 5), 4, torch.device("cuda"), torch.bfloat16)]
    assert model.depthwise_algorithms == Algorithms("shifted", "products") and setup.choices == [CHOSEN]
    baseline = build_pretraining(variant_config("vit_nano", None), PretrainingConfig(multi_scale=False))
    setup.choose_depthwise(baseline, 16)
    setup.accelerator = Accelerator(cpu=True)
    setup.choose_depthwise(build_pretraining(nano(), PretrainingConfig()), 16)
    assert len(measured) == 1


@pytest.mark.slow
def test_other_processes_take_what_the_main_one_has_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def from_the_main_process(values: list[Any]) -> None:
        values[:] = [Algorithms("shifted", "convolution"), SECONDS]

    monkeypatch.setattr(pretraining, "fastest", lambda *_: pytest.fail("only the main process measures"))
    monkeypatch.setattr(training_setup, "broadcast_object_list", from_the_main_process)
    model = build_pretraining(nano(), PretrainingConfig())
    on_a_gpu(tmp_path, main=False).choose_depthwise(model, 16)
    assert model.depthwise_algorithms == Algorithms("shifted", "convolution")


def test_what_was_chosen_stands_in_the_run_folder(tmp_path: Path) -> None:
    setup = Setup(config=config(tmp_path), accelerator=Accelerator(cpu=True), console=Console(quiet=True))
    setup.choices.append("depthwise convolution of visible cells: shifted")
    model = nn.Linear(2, 1)
    record = CheckpointRecord(kind="classification", variant="nano", model=nano(), classes=("a",))
    run = setup.begin(record, model, torch.optim.SGD(model.parameters()), Updates(4), {"train_photos": 4})
    assert json.loads((run.folder.path / "run.json").read_text())["start"][-1] == setup.choices[0]


def test_only_programs_that_can_run_sharded_are_let(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sharded = SimpleNamespace(distributed_type=DistributedType.FSDP, is_main_process=True)
    monkeypatch.setattr(RunConfig, "accelerator", lambda _: sharded)
    assert Setup.of(config(tmp_path), may_shard=True).accelerator is sharded
    with pytest.raises(ConvMAEError, match="FSDP is for pretraining alone; start this program with torchrun"):
        Setup.of(config(tmp_path))


def begin(config: TrainingConfig, updates: Updates, *, processes: int = 1) -> None:
    """Begins a run, or resumes it, on so many processes, of which this is the main one."""
    state = SimpleNamespace(
        device=torch.device("cpu"),
        num_processes=processes,
        is_main_process=True,
        wait_for_everyone=lambda: None,
        prepare=lambda *parts: parts,
    )
    model = nn.Linear(2, 1)
    record = CheckpointRecord(kind="classification", variant="nano", model=nano(), classes=("a",))
    setup = Setup(config=config, accelerator=state, console=Console(quiet=True))
    facts = {"train_photos": updates.steps.length}
    setup.begin(record, model, torch.optim.SGD(model.parameters()), updates, facts).note_resumed()


def resumed(config: TrainingConfig, **changes: Any) -> TrainingConfig:
    run = replace(config.run, resume=True, workers=0)
    return replace(config, run=run, optimisation=replace(config.optimisation, **changes))


def test_a_run_is_resumed_for_more_epochs_and_in_smaller_micro_batches_and_says_so(tmp_path: Path) -> None:
    plain = config(tmp_path)
    begin(plain, Updates(64))
    begin(resumed(plain, epochs=120, micro_batch_size=8), Updates(64, micro_batch_size=8))
    description = RunFolder(tmp_path / "run").description()
    assert description["resumed"][0]["changed"] == {
        "optimisation.epochs": [100, 120],
        "optimisation.micro_batch_size": [128, 8],
        "run.resume": [False, True],
        "run.workers": [2, 0],
    }
    told = "\n".join(description["resumed"][0]["start"])
    assert "updates: 1 an epoch, each of 64 photos (there are no more" in told
    assert "changed from here on: --epochs 100 to 120 (the learning rate falls over that many)" in told
    assert "changed from here on: --micro-batch-size 128 to 8 (an update holds the same files;" in told
    with pytest.raises(ConvMAEError, match=r"batch_size = 1024 and is now given 32"):
        begin(resumed(plain, epochs=120, micro_batch_size=8, batch_size=32), Updates(64, batch_size=32))


def test_a_run_is_resumed_on_fewer_processes_where_its_updates_stay_what_they_were(tmp_path: Path) -> None:
    plain = config(tmp_path)
    begin(plain, Updates(64, processes=4), processes=4)
    with pytest.raises(
        ConvMAEError, match="held 64 files with 4 processes .* 63 with 3; resume with 4, or .* holds 64"
    ):
        begin(resumed(plain), Updates(64, processes=3), processes=3)
    assert "resumed" not in RunFolder(tmp_path / "run").description()
    begin(resumed(plain), Updates(64, processes=2), processes=2)
    description = RunFolder(tmp_path / "run").description()
    assert description["resumed"][0]["changed"]["processes"] == [4, 2] and description["data"]["processes"] == 2


def test_a_resumed_run_goes_on_with_the_numbers_it_has_had_unless_a_flag_says_otherwise(tmp_path: Path) -> None:
    plain = replace(config(tmp_path), optimisation=OptimisationConfig(epochs=7, micro_batch_size=2, clip_grad=0.5))
    begin(plain, Updates(64, micro_batch_size=2))
    preset = resumed(config(tmp_path), base_lr=0.25)
    kept = with_run_so_far(preset, ["program", "nano", "--resume"]).optimisation
    assert (kept.epochs, kept.micro_batch_size, kept.clip_grad, kept.base_lr) == (7, 2, 0.5, plain.optimisation.base_lr)
    for flags in (["--epochs", "100", "--base-lr", "0.25"], ["--epochs=100", "--base_lr=0.25"]):
        asked = with_run_so_far(preset, ["program", "nano", *flags]).optimisation
        assert (asked.epochs, asked.base_lr, asked.micro_batch_size) == (100, 0.25, 2)


def test_what_the_machine_refuses_a_program_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(config: TrainingConfig) -> Any:
        raise RuntimeError("DataLoader worker (pid 5) is killed by signal: Killed. ")

    monkeypatch.setattr(sys, "argv", ["program", "nano", "--data", "photos", "--out", str(tmp_path / "run")])
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    with pytest.raises(ConvMAEError, match=r"decoding processes was ended from outside \(Killed\)"):
        run_preset({"nano": ("", TrainingConfig()), "tiny": ("", TrainingConfig())}, "python -m x", prepare)


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
    setup.begin(record, model, torch.optim.SGD(model.parameters()), Updates(3), {"train_photos": 3})
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
