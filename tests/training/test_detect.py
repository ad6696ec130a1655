"""The detection program: it learns, resumes exactly, starts from other weights and refuses bad input."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from convmae_deploy.bundle.preprocessing import Letterbox
from convmae_deploy.checkpoints import CheckpointRecord, save_checkpoint
from convmae_deploy.checkpoints.loading import load_detector
from convmae_deploy.data.detection_augmentation import DetectionAugmentationConfig
from convmae_deploy.engine.optimisation import build_adamw
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models import build_convmae
from convmae_deploy.models.convmae import ConvMAEConfig
from convmae_deploy.models.detector import DETECTORS, DetectorConfig, base_simple, build_detector
from tests.coco_folders import edit_annotations, make_coco_folder
from tests.processes import RunProcesses
from tests.training_runs import check_resuming, flags_of, lines_of, stop_after
from training import detect as program

TEST_MODEL = ConvMAEConfig(
    embed_dims=(8, 12, 16), depths=(1, 1, 1), mlp_ratios=(2, 2, 2), num_heads=2, image_size=(96, 128)
)
TEST_DETECTOR = DetectorConfig(channels=16, fc_width=16, norm="layer", regions_per_image=32)


@pytest.fixture(autouse=True)
def small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DETECTORS, "nano_fpn", lambda: (TEST_MODEL, TEST_DETECTOR))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_coco_folder(tmp_path_factory.mktemp("photos") / "things")


def config(photos: Path, out: Path, *, resume: bool = False, epochs: int = 2, **changes: Any) -> program.DetectConfig:
    preset = program.nano()
    plain = replace(
        preset,
        data=photos,
        layer_decay=None,
        validation_epochs=1,
        picture_epochs=0,
        optimisation=replace(
            preset.optimisation, epochs=epochs, batch_size=2, micro_batch_size=1, warmup_steps=2, base_lr=0.6
        ),
        run=replace(preset.run, out=out, resume=resume, workers=0, precision="fp32"),
    )
    return replace(plain, **changes)


@pytest.mark.slow
def test_it_learns_and_its_best_checkpoint_loads(photos: Path, tmp_path: Path) -> None:
    still = DetectionAugmentationConfig(scale=(1, 1), flip=0)
    plain = config(photos, tmp_path / "run", epochs=30, validation_epochs=10, picture_epochs=30, augmentation=still)
    slow = replace(plain.optimisation, base_lr=0.15)  # at higher rates the rounding of the machine decides the AP
    assert program.prepare(replace(plain, validate_on="train", drop_path=0.0, optimisation=slow)).fit() == 0
    lines = lines_of(tmp_path / "run")
    assert lines[-1]["train_loss"] < 0.65 * lines[0]["train_loss"]
    validated = [line for line in lines if "val_mask_ap" in line]
    assert [line["epoch"] for line in validated] == [10, 20, 30]
    assert max(line["val_mask_ap50"] for line in validated) > 40
    model, record = load_detector(tmp_path / "run")
    assert (record.kind, record.variant, record.detector) == ("detection", "nano", TEST_DETECTOR)
    assert record.classes == ("red thing", "blue thing")
    assert record.preprocessing == Letterbox(size=(96, 128))
    assert re.search(r"box AP .* mask AP .* on 4 photos", record.provenance["validation"])
    assert {"boxes", "scores", "labels", "masks"} == model(torch.zeros(1, 3, 96, 128))[0].keys()
    described = json.loads((tmp_path / "run" / "run.json").read_text())["data"]
    assert described["category_ids"] == [3, 7] and described["train_objects"] == 6
    for name in ("curves.png", "pictures/epoch-0030.png"):
        assert (tmp_path / "run" / name).stat().st_size > 10_000


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(out: Path, *, resume: bool = False) -> int:
        return program.prepare(config(photos, out, resume=resume)).fit()

    check_resuming(start, tmp_path, monkeypatch, (1, 2, 3))


@pytest.mark.slow
def test_photos_that_cannot_be_decoded_are_counted(tmp_path: Path) -> None:
    photos = make_coco_folder(tmp_path / "things")
    for split in ("train", "val"):
        (photos / "images" / split / "20.png").write_bytes(b"not a photo")
    assert program.prepare(config(photos, tmp_path / "run", epochs=1)).fit() == 0
    (line,) = lines_of(tmp_path / "run")
    assert (line["unreadable_train"], line["unreadable_val"]) == (1, 1)
    listed = (tmp_path / "run" / "unreadable.txt").read_text().splitlines()
    assert [Path(entry.partition("\t")[0]).parent.name for entry in listed] == ["train", "val"]


def test_init_takes_a_pretrained_encoder_of_another_image_size(photos: Path, tmp_path: Path) -> None:
    source = replace(TEST_MODEL, image_size=(64, 64))
    encoder = build_convmae(source)
    save_checkpoint(
        tmp_path / "pretrained", encoder.state_dict(), CheckpointRecord(kind="features", variant="nano", model=source)
    )
    plain = config(photos, tmp_path / "run", init=tmp_path / "pretrained", freeze_positions=True)
    record, _ = program.initial_record(plain, ("a", "b"))
    model = program.initial_model(plain, record, Console(quiet=True))
    name = "blocks3.0.attn.qkv.weight"
    assert torch.equal(model.encoder.state_dict()[name], encoder.state_dict()[name])
    assert model.encoder.pos_embed.shape == (1, 48, 16) and not model.encoder.pos_embed.requires_grad
    trained = build_adamw(model, plain.optimisation).param_groups
    assert all(parameter is not model.encoder.pos_embed for group in trained for parameter in group["params"])


@pytest.mark.slow
def test_frozen_positions_stay_and_resuming_keeps_them(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        program.prepare(config(photos, tmp_path / "run", freeze_positions=True)).fit()
    before = load_file(tmp_path / "run" / "last" / "model.safetensors")
    assert program.prepare(config(photos, tmp_path / "run", freeze_positions=True, resume=True)).fit() == 0
    after = load_file(tmp_path / "run" / "last" / "model.safetensors")
    assert torch.equal(before["encoder.pos_embed"], after["encoder.pos_embed"])
    assert not torch.equal(before["encoder.patch_embed1.proj.weight"], after["encoder.patch_embed1.proj.weight"])


def test_the_photos_to_train_and_validate_on_can_be_restricted(photos: Path, tmp_path: Path) -> None:
    def ids(**changes: Any) -> tuple[list[int], list[int]]:
        splits = program.read_splits(config(photos, tmp_path, **changes))
        return [photo.id for photo in splits[0].photos], [photo.id for photo in splits[1].photos]

    assert ids() == ([10, 20, 30, 40], [10, 20, 30, 40])
    assert ids(train_images=2) == ([10, 20], [10, 20, 30, 40])
    assert ids(licences=(4, 5, 7), validate_on="train") == ([20, 40], [20, 40])
    train, val = program.read_splits(config(photos, tmp_path))
    assert train.photos[0].path.parent.name == "train" and val.photos[0].path.parent.name == "val"


def test_splits_with_different_categories_are_refused(tmp_path: Path) -> None:
    photos = make_coco_folder(tmp_path / "things")
    edit_annotations(photos, "val", lambda content: content["categories"][0].update(name="green thing"))
    with pytest.raises(ConvMAEError, match="has objects of the category 'green thing', which .* has not"):
        program.prepare(config(photos, tmp_path / "run")).fit()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"picture_epochs": -1}, "picture_epochs must be at least 0; got -1"),
        ({"train_images": 0}, "train_images must be at least 1; got 0"),
    ],
)
def test_numbers_out_of_range_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConvMAEError, match=sentence):
        replace(program.nano(), **changes)


@pytest.mark.parametrize(("name", "epochs"), [("base-25", 25), ("base-50", 50), ("base-100", 100)])
def test_the_papers_recipe_is_the_base_presets(name: str, epochs: int) -> None:
    _, base = program.PRESETS[name]
    optimisation = base.optimisation
    assert (optimisation.epochs, optimisation.batch_size) == (epochs, 32)
    assert optimisation.learning_rate == pytest.approx(8e-5)
    assert (optimisation.schedule, optimisation.warmup_steps, optimisation.warmup_factor) == ("cosine", 461, 1e-3)
    assert (optimisation.weight_decay, optimisation.betas, optimisation.clip_grad) == (0.1, (0.9, 0.999), None)
    assert (base.detector, base.drop_path, base.layer_decay, base.freeze_positions) == ("base_fpn", 0.1, None, True)
    assert (base.augmentation.scale, base.augmentation.flip) == ((0.1, 2.0), 0.5)
    assert program.initial_record(base, ("a",))[1] == Letterbox(size=(1024, 1024))


def test_the_second_recipe_is_the_vitdet_preset() -> None:
    _, vitdet = program.PRESETS["vitdet-base"]
    optimisation = vitdet.optimisation
    assert (optimisation.epochs, optimisation.batch_size, optimisation.schedule) == (25, 16, "steps")
    assert optimisation.learning_rate == pytest.approx(1e-4)
    assert (optimisation.warmup_steps, optimisation.warmup_factor, optimisation.weight_decay) == (250, 1e-3, 0.1)
    assert (vitdet.detector, vitdet.layer_decay, vitdet.freeze_positions) == ("base_simple", 0.8, False)
    with torch.device("meta"):
        model = build_detector(*base_simple(), num_classes=80)
    optimizer = build_adamw(model, optimisation, layer_decay=vitdet.layer_decay, decay_biases=True)
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}

    def of(name: str) -> tuple[float, float]:
        group = groups[id(model.get_parameter(name))]
        return group["lr_scale"], group["weight_decay"]

    assert of("encoder.patch_embed1.proj.weight") == of("encoder.blocks2.1.conv1.bias") == pytest.approx((0.8**12, 0.1))
    assert of("encoder.blocks3.10.attn.qkv.weight") == pytest.approx((0.8, 0.1))
    assert of("encoder.blocks3.0.norm1.weight") == pytest.approx((0.8**11, 0))
    assert of("encoder.pos_embed") == pytest.approx((1, 0))  # upstream ViTDet has it at the bottom
    assert of("roi_heads.box_predictor.cls_score.bias") == pytest.approx((1, 0.1))


def test_inputs_of_another_size_resize_what_depends_on_them() -> None:
    record, letterbox = program.initial_record(replace(program.base_25(), image_size=(512, 640)), ("a",))
    assert letterbox.size == record.model.image_size == (512, 640)
    record, letterbox = program.initial_record(replace(program.vitdet_base(), image_size=(512, 640)), ("a",))
    assert letterbox.size == record.model.dense.relative_size == (512, 640)
    assert record.model.image_size == (224, 224)  # of the position embedding, as in the authors' file


def test_the_flags_are_these(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["detect", "nano", "--help"])
    assert flags_of(program.main, capsys) == {
        "--detector", "--data", "--init", "--image-size", "--drop-path", "--layer-decay", "--freeze-positions",
        "--no-freeze-positions", "--grad-checkpointing", "--no-grad-checkpointing", "--licences", "--train-images",
        "--empty-photos", "--no-empty-photos", "--validate-on", "--validation-epochs", "--picture-epochs", "--licence",
        "--epochs", "--batch-size", "--micro-batch-size", "--base-lr", "--min-lr", "--weight-decay", "--betas",
        "--clip-grad", "--schedule", "--milestones", "--warmup-steps", "--warmup-factor", "--scale", "--flip", "--out",
        "--resume", "--no-resume", "--check-data", "--no-check-data",
        "--seed", "--precision", "--compile", "--no-compile", "--workers", "--save-minutes",
    }  # fmt: skip


@pytest.mark.slow
def test_two_processes_train_together_also_on_photos_without_objects(
    tmp_path: Path, run_processes: RunProcesses
) -> None:
    photos = make_coco_folder(tmp_path / "things")

    def keep_one_photo_with_objects(content: dict[str, Any]) -> None:
        content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] == 20]

    edit_annotations(photos, "train", keep_one_photo_with_objects)
    flags = ["training.detect", "nano", "--data", str(photos), "--out", str(tmp_path / "run"), "--empty-photos"]
    flags += ["--epochs", "2", "--batch-size", "2", "--micro-batch-size", "1", "--image-size", "64", "64"]
    flags += ["--workers", "0", "--precision", "fp32", "--picture-epochs", "1", "--validation-epochs", "1"]
    run_processes(2, *flags)
    lines = lines_of(tmp_path / "run")
    assert all(line["train_loss"] > 0 and line["skipped_updates"] == 0 for line in lines)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["data"]["processes"] == 2
    _, record = load_detector(tmp_path / "run" / "last")
    assert record.classes == ("red thing", "blue thing")
