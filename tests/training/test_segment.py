"""The segmentation program: it learns, resumes exactly, starts from other weights and refuses bad input."""

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

from convmae_deploy.bundle.preprocessing import SlidingWindow
from convmae_deploy.checkpoints import CheckpointRecord, save_checkpoint
from convmae_deploy.checkpoints.loading import load_segmenter
from convmae_deploy.data.segmentation_augmentation import SegmentationAugmentationConfig
from convmae_deploy.data.segmentation_folder import IGNORE, read_segmentation_folder
from convmae_deploy.engine.segmentation import EvaluationSegmentation, evaluate_segmenter
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models import build_convmae
from convmae_deploy.models.convmae import ConvMAEConfig
from convmae_deploy.models.segmenter import SegmenterConfig
from tests.processes import RunProcesses
from tests.segmentation_folders import CLASSES, make_segmentation_folder
from tests.training_runs import check_resuming, flags_of, lines_of
from training import segment as program

pytestmark = pytest.mark.usefixtures("small_model")
TEST_MODEL = ConvMAEConfig(embed_dims=(8, 12, 16), depths=(1, 1, 1), mlp_ratios=(2, 2, 2), num_heads=2)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_segmentation_folder(tmp_path_factory.mktemp("photos") / "shapes")


def config(photos: Path, out: Path, *, resume: bool = False, epochs: int = 2, **changes: Any) -> program.SegmentConfig:
    preset = program.nano()
    plain = replace(
        preset,
        data=photos,
        image_size=(64, 64),
        validation_epochs=1,
        picture_epochs=0,
        model=SegmenterConfig(channels=8, auxiliary_channels=4),
        optimisation=replace(
            preset.optimisation, epochs=epochs, batch_size=4, micro_batch_size=4, warmup_steps=2, base_lr=1.3
        ),
        augmentation=SegmentationAugmentationConfig(short_side=None, scale=(0.8, 1.25), colours=False),
        run=replace(preset.run, out=out, resume=resume, workers=0, precision="fp32"),
    )
    return replace(plain, **changes)


@pytest.mark.slow
def test_it_learns_shapes_and_its_best_checkpoint_loads(photos: Path, tmp_path: Path) -> None:
    run = config(photos, tmp_path / "run", epochs=8, validation_epochs=3, picture_epochs=8)
    assert program.prepare(replace(run, run=replace(run.run, seed=1))).fit() == 0  # not every seed learns so fast
    lines = lines_of(tmp_path / "run")
    assert lines[-1]["train_loss"] < 0.8 * lines[0]["train_loss"]
    validated = [line for line in lines if "val_miou" in line]
    assert [line["epoch"] for line in validated] == [3, 6, 8]
    assert max(line["val_miou"] for line in validated) > 60
    assert {f"val_iou/{name}" for name in CLASSES} < validated[0].keys()
    model, record = load_segmenter(tmp_path / "run")
    assert record.classes == CLASSES and record.variant == "nano"
    assert record.preprocessing == SlidingWindow(window=(64, 64), stride=(42, 42), long_side=2048)
    assert re.match(r"mIoU \d\d\.\d\d %, mAcc .* on 4 photos", record.provenance["validation"])
    assert record.provenance["data"] == "8 training and 4 validation photos of shapes"
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 3, 16, 16)
    assert [picture.name for picture in (tmp_path / "run" / "pictures").iterdir()] == ["epoch-0008.png"]


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(out: Path, *, resume: bool = False) -> int:
        return program.prepare(config(photos, out, resume=resume)).fit()

    check_resuming(start, tmp_path, monkeypatch, (1, 2, 3))
    assert any(name.endswith("running_mean") for name in load_file(tmp_path / "whole" / "last" / "model.safetensors"))


@pytest.mark.slow
def test_a_lone_photo_is_trained_on(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = config(photos, tmp_path / "run", epochs=1)
    optimisation = replace(plain.optimisation, batch_size=3, micro_batch_size=2)  # two photos and one
    assert program.prepare(replace(plain, optimisation=optimisation)).fit() == 0
    with pytest.raises(ConvMAEError, match="BatchNorm compares photos; got 1"):
        replace(plain, optimisation=replace(optimisation, micro_batch_size=1))


def test_pixels_of_no_class_add_nothing_to_the_loss_but_count() -> None:
    logits = torch.randn(2, 3, 2, 2)
    labels = torch.randint(3, (2, 8, 8))
    labels[1] = IGNORE
    labels[0, :4] = IGNORE
    whole = F.interpolate(logits, size=(8, 8), mode="bilinear", align_corners=False)
    rows = whole[0, :, 4:].log_softmax(dim=0)
    expected = -sum(rows[labels[0, 4 + y, x], y, x].item() for y in range(4) for x in range(8)) / 128
    assert program.pixel_loss(logits, labels).item() == pytest.approx(expected, rel=1e-5)
    assert program.pixel_loss(logits[1:], labels[1:]) == 0
    assert program.pixel_loss(logits[:1], labels[:1]).item() == pytest.approx(2 * expected, rel=1e-5)


def test_both_forms_start_from_a_pretrained_encoder_of_another_image_size(photos: Path, tmp_path: Path) -> None:
    source = replace(TEST_MODEL, image_size=(96, 96))
    encoder = build_convmae(source)
    record = CheckpointRecord(kind="features", variant="nano", model=source)
    save_checkpoint(tmp_path / "pretrained", encoder.state_dict(), record)
    for stage3 in ("plain", "authors"):
        form = config(photos, tmp_path / "run", init=tmp_path / "pretrained", stage3=stage3)
        model = program.initial_model(form, program.initial_record(form, CLASSES)[0], Console(quiet=True))
        name = "blocks3.0.attn.qkv.weight"
        assert torch.equal(model.encoder.state_dict()[name], encoder.state_dict()[name])
        assert model.encoder.pos_embed.shape == (1, 16, 16)
        assert ("blocks3.0.ls1.gamma" in model.encoder.state_dict()) == (stage3 == "authors")


def test_a_wrong_label_map_stops_the_training_with_one_sentence(tmp_path: Path) -> None:
    root = make_segmentation_folder(tmp_path / "data", train=4, val=1)
    Image.fromarray(np.full((80, 96), 9, np.uint8)).save(root / "labels" / "train" / "2.png")
    with pytest.raises(ConvMAEError, match=r"^\S*2.png must hold the levels 0 to 2 .*; found 9$"):
        program.prepare(config(root, tmp_path / "run")).fit()


def test_data_that_is_not_there_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ConvMAEError, match="must hold images/<split> and labels/<split>"):
        program.prepare(config(tmp_path, tmp_path / "run")).fit()
    assert not (tmp_path / "run").exists()


def test_the_authors_recipe_is_the_base_preset() -> None:
    _, base = program.PRESETS["base"]
    optimisation, augmentation = base.optimisation, base.augmentation
    assert optimisation.learning_rate == pytest.approx(1e-4)
    assert (optimisation.batch_size, optimisation.schedule, optimisation.min_lr) == (16, "linear", 0)
    assert (optimisation.warmup_steps, optimisation.warmup_factor) == (1500, 1e-6)
    assert optimisation.epochs * (20_210 // 16) == 160_401  # of 160 000
    assert (optimisation.betas, optimisation.weight_decay, base.layer_decay) == ((0.9, 0.999), 0.05, 0.75)
    assert (base.drop_path, base.auxiliary_weight, base.image_size) == (0.2, 0.4, (512, 512))
    assert (augmentation.short_side, augmentation.long_side, augmentation.scale) == (512, 2048, (0.5, 2.0))
    assert (augmentation.largest_share, augmentation.flip) == (0.75, 0.5)
    assert (base.model.channels, base.model.auxiliary_channels, base.model.dropout) == (768, 256, 0.1)
    assert (base.stage3, base.model.e4) == ("authors", "convolution")
    _, paper = program.PRESETS["base-paper"]
    assert (paper.stage3, paper.model.e4, paper.optimisation) == ("plain", "maxpool", optimisation)


def test_the_flags_are_these(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["segment", "nano", "--help"])
    assert flags_of(program.main, capsys) == {
        "--variant", "--data", "--init", "--image-size", "--stage3", "--drop-path", "--layer-decay",
        "--auxiliary-weight", "--grad-checkpointing", "--no-grad-checkpointing", "--validation-epochs",
        "--picture-epochs", "--licence", "--channels", "--auxiliary-channels", "--pool-scales", "--dropout", "--e4",
        "--epochs", "--batch-size", "--micro-batch-size", "--base-lr", "--min-lr", "--weight-decay", "--betas",
        "--clip-grad", "--schedule", "--milestones", "--warmup-steps", "--warmup-factor", "--short-side", "--long-side",
        "--scale", "--largest-share", "--flip", "--colours", "--no-colours", "--out", "--resume", "--no-resume",
        "--check-data", "--no-check-data",
        "--seed", "--precision", "--workers", "--save-minutes", "--compile", "--no-compile",
    }  # fmt: skip


@pytest.mark.slow
def test_two_processes_validate_one_model(photos: Path, tmp_path: Path, run_processes: RunProcesses) -> None:
    flags = ["training.segment", "nano", "--data", str(photos), "--epochs", "1", "--batch-size", "4"]
    flags += ["--image-size", "64", "64", "--validation-epochs", "1", "--picture-epochs", "0", "--channels", "8"]
    flags += ["--workers", "0", "--precision", "fp32", "--out", str(tmp_path / "two")]
    run_processes(2, *flags)
    (line,) = lines_of(tmp_path / "two")
    model, record = load_segmenter(tmp_path / "two")
    assert isinstance(record.preprocessing, SlidingWindow)
    photos_as_served = EvaluationSegmentation(read_segmentation_folder(photos, "val"), record.preprocessing)
    found = evaluate_segmenter(model, photos_as_served, Accelerator(cpu=True), batch_size=4, workers=0)
    assert found.scores["miou"] == pytest.approx(line["val_miou"], abs=1e-9)
