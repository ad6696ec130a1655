"""The finetuning program: it learns, resumes exactly, stops cleanly and refuses bad input."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from rich.console import Console

from convmae_deploy.bundle.preprocessing import Preprocessing
from convmae_deploy.checkpoints import CheckpointRecord, load_classifier, save_checkpoint
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models import build_convmae
from convmae_deploy.models.convmae import ConvMAEConfig
from tests.photo_folders import make_photo_folder
from tests.processes import RunProcesses
from tests.training_runs import check_resuming, flags_of, lines_of
from tests.waiting import PATIENCE_SECONDS, wait_until
from training import finetune as program

pytestmark = pytest.mark.usefixtures("small_model")
ROOT = Path(__file__).parents[2]
TEST_MODEL = ConvMAEConfig(
    embed_dims=(8, 16, 32), depths=(1, 1, 1), mlp_ratios=(2, 2, 2), num_heads=2, image_size=(64, 64)
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photo_folder(tmp_path_factory.mktemp("photos"))


def config(photos: Path, out: Path, *, resume: bool = False, epochs: int = 3, **changes: Any) -> program.FinetuneConfig:
    preset = program.nano()
    return replace(
        preset,
        data=photos,
        train_size=(32, 32),
        optimisation=replace(
            preset.optimisation, epochs=epochs, warmup_epochs=0.5, batch_size=4, micro_batch_size=2, base_lr=0.2
        ),
        run=replace(preset.run, out=out, resume=resume, workers=0, precision="fp32"),
        **changes,
    )


def losses(run: Path) -> list[tuple[float, float]]:
    return [(line["train_loss"], line["val_loss"]) for line in lines_of(run)]


@pytest.mark.slow
def test_it_learns_two_colours_and_its_best_checkpoint_loads(photos: Path, tmp_path: Path) -> None:
    assert program.prepare(config(photos, tmp_path / "run", epochs=6)).fit() == 0
    lines = lines_of(tmp_path / "run")
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]
    assert max(line["val_top1"] for line in lines) == 100
    model, record = load_classifier(tmp_path / "run")
    assert record.classes == ("blue", "red")
    assert isinstance(record.preprocessing, Preprocessing) and record.preprocessing.resize == (73, 73)
    assert "top-1 100.00 %" in record.provenance["validation"]
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 2)
    assert (tmp_path / "run" / "curves.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed = replace(program.nano().augmentation, mixup=0.8, cutmix=1.0)

    def start(out: Path, *, resume: bool = False) -> int:
        return program.prepare(config(photos, out, resume=resume, augmentation=mixed)).fit()

    check_resuming(start, tmp_path, monkeypatch, (1, 3, 4, 6))


@pytest.mark.slow
def test_the_number_of_workers_changes_nothing(photos: Path, tmp_path: Path) -> None:
    mixed = replace(program.nano().augmentation, mixup=0.8, cutmix=1.0)
    for workers in (0, 2):
        plain = config(photos, tmp_path / str(workers), epochs=2, augmentation=mixed)
        program.prepare(replace(plain, run=replace(plain.run, workers=workers))).fit()
    assert losses(tmp_path / "0") == losses(tmp_path / "2")


def test_half_precision_on_a_cpu_is_refused(photos: Path, tmp_path: Path) -> None:
    plain = config(photos, tmp_path / "run")
    with pytest.raises(ConvMAEError, match="fp16 needs a GPU"):
        program.prepare(replace(plain, run=replace(plain.run, precision="fp16"))).fit()


def test_an_output_that_cannot_be_made_is_refused_before_any_work(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConvMAEError, match="is not a folder that can be written to"):
        program.prepare(config(photos, tmp_path / "file" / "run")).fit()


@pytest.mark.slow
def test_a_single_image_is_trained_on_without_mixing(photos: Path, tmp_path: Path) -> None:
    plain = config(photos, tmp_path / "run", epochs=2, augmentation=replace(program.nano().augmentation, mixup=0.8))
    assert program.prepare(replace(plain, optimisation=replace(plain.optimisation, micro_batch_size=1))).fit() == 0


@pytest.mark.slow
def test_accumulated_micro_batches_equal_one_batch(photos: Path, tmp_path: Path) -> None:
    plain = replace(program.nano().augmentation, rand_augment=None, random_erasing=0.0)
    accumulated = config(photos, tmp_path / "two", epochs=1, drop_path=0.0, augmentation=plain)
    whole = replace(
        accumulated,
        optimisation=replace(accumulated.optimisation, micro_batch_size=4),
        run=replace(accumulated.run, out=tmp_path / "one"),
    )
    program.prepare(accumulated).fit()
    program.prepare(whole).fit()
    assert losses(tmp_path / "two")[0] == pytest.approx(losses(tmp_path / "one")[0], rel=1e-4)


def test_init_takes_a_pretrained_encoder_of_another_image_size(photos: Path, tmp_path: Path) -> None:
    source = replace(TEST_MODEL, image_size=(96, 96))
    encoder = build_convmae(source)
    save_checkpoint(
        tmp_path / "pretrained", encoder.state_dict(), CheckpointRecord(kind="features", variant="nano", model=source)
    )
    model = program.initial_model(
        config(photos, tmp_path / "run", init=tmp_path / "pretrained"), TEST_MODEL, 2, Console(quiet=True)
    )
    name = "blocks3.0.attn.qkv.weight"
    assert torch.equal(model.encoder.state_dict()[name], encoder.state_dict()[name])
    assert model.encoder.pos_embed.shape == (1, 16, 32)


def test_init_of_another_architecture_is_refused(photos: Path, tmp_path: Path) -> None:
    other = replace(TEST_MODEL, depths=(1, 1, 2))
    save_checkpoint(
        tmp_path / "pretrained",
        build_convmae(other).state_dict(),
        CheckpointRecord(kind="features", variant="x", model=other),
    )
    with pytest.raises(ConvMAEError, match="initial weights must be an encoder of .* holds"):
        program.prepare(config(photos, tmp_path / "run", init=tmp_path / "pretrained")).fit()
    assert not (tmp_path / "run").exists()


def test_splits_with_different_classes_are_refused(tmp_path: Path) -> None:
    make_photo_folder(tmp_path / "photos", per_class=1)
    (tmp_path / "photos" / "val" / "red").rename(tmp_path / "photos" / "val" / "green")
    with pytest.raises(ConvMAEError, match="val has photos of 'green', of which there are none to train on"):
        program.prepare(config(tmp_path / "photos", tmp_path / "run")).fit()


def test_the_papers_recipe_is_the_base_preset() -> None:
    _, base = program.PRESETS["base"]
    optimisation, augmentation = base.optimisation, base.augmentation
    assert optimisation.learning_rate == pytest.approx(2e-3)
    assert (optimisation.epochs, optimisation.batch_size, optimisation.warmup_epochs) == (100, 1024, 5)
    assert (optimisation.min_lr, optimisation.weight_decay, base.layer_decay) == (1e-6, 0.05, 0.65)
    assert (augmentation.mixup, augmentation.cutmix, augmentation.label_smoothing) == (0.8, 1.0, 0.1)
    assert (augmentation.rand_augment, augmentation.random_erasing) == ("rand-m9-mstd0.5-inc1", 0.25)
    assert (base.drop_path, base.head_init_std) == (0.1, 2e-5)


def test_larger_models_have_the_recipe_of_mae_for_their_size() -> None:
    """The commands of MAE's FINETUNE.md: epochs, rate for 256 images, layer decay, drop path."""
    found = {
        name: (preset.optimisation.epochs, preset.optimisation.base_lr, preset.layer_decay, preset.drop_path)
        for name, (_, preset) in program.PRESETS.items()
    }
    assert found["large"] == (50, 1e-3, 0.75, 0.2) and found["huge"] == (50, 1e-3, 0.75, 0.3)
    for name in ("small", "base", "base_kernel7", "base_kernel9", "base_plus", "vit_base"):
        assert found[name] == (100, 5e-4, 0.65, 0.1)


def test_the_flags_are_these(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["finetune", "nano", "--help"])
    assert flags_of(program.main, capsys) == {
        "--variant", "--data", "--init", "--image-size", "--train-size", "--drop-path", "--head-init-std", "--licence",
        "--epochs", "--batch-size", "--micro-batch-size", "--base-lr", "--min-lr", "--warmup-epochs", "--weight-decay",
        "--layer-decay", "--betas", "--clip-grad", "--crop-scale", "--flip", "--rand-augment", "--color-jitter",
        "--random-erasing", "--mixup", "--cutmix", "--label-smoothing", "--out", "--resume", "--no-resume",
        "--check-data", "--no-check-data", "--seed",
        "--precision", "--workers", "--save-minutes", "--compile", "--no-compile", "--validation-epochs",
    }  # fmt: skip


@pytest.mark.slow
def test_two_processes_of_torchrun_learn_what_one_does(
    photos: Path, tmp_path: Path, run_processes: RunProcesses
) -> None:
    flags = ["training.finetune", "nano", "--data", str(photos), "--epochs", "2", "--batch-size", "4"]
    flags += ["--drop-path", "0", "--warmup-epochs", "0", "--image-size", "32", "32", "--train-size", "32", "32"]
    flags += ["--workers", "0", "--precision", "fp32"]
    run_processes(1, *flags, "--out", str(tmp_path / "one"))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    done = subprocess.run(
        [sys.executable, *launch, *flags, "--out", str(tmp_path / "two")],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "two")[1] == pytest.approx(losses(tmp_path / "one")[1], rel=1e-3)


@pytest.mark.slow
def test_the_command_stops_on_sigterm_with_a_checkpoint_and_refuses_to_overwrite_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = make_photo_folder(tmp_path / "photos", per_class=20)
    flags = ["nano", "--data", str(photos), "--out", str(tmp_path / "run"), "--batch-size", "4", "--workers", "0"]
    command = [sys.executable, "-m", "training.finetune", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    wait_until(lambda: (tmp_path / "run" / "last").exists() or process.poll() is not None)
    process.terminate()
    output, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 143, errors
    assert "continue with --resume" in output
    monkeypatch.setattr(sys, "argv", ["finetune", *flags])
    for state in (PartialState, AcceleratorState):  # earlier tests of this process may have set another precision
        monkeypatch.setattr(state, "_shared_state", {})
    with pytest.raises(ConvMAEError, match="add --resume"):
        program.main()


@pytest.mark.slow
def test_a_start_that_is_refused_leaves_the_run_as_it_was(photos: Path, tmp_path: Path) -> None:
    assert program.prepare(config(photos, tmp_path / "run", epochs=2)).fit() == 0
    before = (tmp_path / "run" / "run.json").read_bytes()
    with pytest.raises(ConvMAEError, match="has done .* updates already"):
        program.prepare(config(photos, tmp_path / "run", epochs=1, resume=True)).fit()
    assert (tmp_path / "run" / "run.json").read_bytes() == before


def test_an_encoder_with_a_tensor_missing_is_one_sentence(photos: Path, tmp_path: Path) -> None:
    state = build_convmae(TEST_MODEL).state_dict()
    del state["patch_embed1.proj.weight"]
    save_checkpoint(tmp_path / "broken", state, CheckpointRecord(kind="features", variant="x", model=TEST_MODEL))
    with pytest.raises(ConvMAEError, match="does not fit its config: 1 tensors differ, first patch_embed1.proj.weight"):
        program.prepare(config(photos, tmp_path / "run", init=tmp_path / "broken"))
