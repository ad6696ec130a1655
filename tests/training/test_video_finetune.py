"""The video finetuning program and the test with views: they learn motions, resume exactly, refuse bad input."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from convmae_deploy.bundle.preprocessing import standard_clips
from convmae_deploy.checkpoints.loading import load_video_classifier
from convmae_deploy.data.augmentation import AugmentationConfig
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.convmae import MODELS, ConvMAEConfig
from convmae_deploy.models.video import VideoConfig
from tests.processes import RunProcesses
from tests.training_runs import check_resuming, flags_of, lines_of
from tests.video_folders import make_motion_folder
from training import video_finetune as program
from training import video_pretrain, video_test

pytestmark = pytest.mark.usefixtures("small_model")
TEST_MODEL = ConvMAEConfig(
    embed_dims=(8, 16, 32), depths=(1, 1, 1), mlp_ratios=(2, 2, 2), num_heads=2, image_size=(64, 64)
)
PLAIN = AugmentationConfig(
    crop_scale=(0.9, 1.0), flip=0.0, rand_augment=None, random_erasing=0.0, mixup=0.0, cutmix=0.0, label_smoothing=0.0
)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_motion_folder(tmp_path_factory.mktemp("videos") / "motions", train=12)


def config(
    videos: Path, out: Path, *, resume: bool = False, epochs: int = 2, **changes: Any
) -> program.VideoFinetuneConfig:
    preset = program.nano()
    plain = replace(
        preset,
        data=videos,
        image_size=(32, 32),
        video=VideoConfig(frames=8),
        augmentation=PLAIN,
        validation_epochs=1,
        optimisation=replace(
            preset.optimisation, epochs=epochs, warmup_epochs=0.5, batch_size=8, micro_batch_size=4, base_lr=0.2
        ),
        run=replace(preset.run, out=out, resume=resume, workers=0, precision="fp32"),
    )
    return replace(plain, **changes)


@pytest.mark.slow
def test_it_learns_which_way_things_move_and_is_tested_with_views(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program.prepare(config(videos, tmp_path / "run", epochs=30, validation_epochs=5)).fit() == 0
    assert lines_of(tmp_path / "run")[-1]["train_loss"] < 0.3
    assert max(line.get("val_top1", 0) for line in lines_of(tmp_path / "run")) == 100
    _, record = load_video_classifier(tmp_path / "run")
    assert record.classes == ("left", "right")
    assert record.preprocessing == standard_clips((32, 32), frames=8, stride=1)
    assert record.provenance["data"] == "24 training and 8 validation videos of motions"
    assert record.provenance["validation"].endswith("on 8 videos")
    tested = video_test.VideoTestConfig(
        checkpoint=tmp_path / "run", data=videos, temporal=2, precision="fp32", workers=0
    )
    assert video_test.test(tested) == 0
    assert "top-1 100.00 %, top-5 100.00 % on 8 videos, 2 x 3 views" in capsys.readouterr().out
    written = json.loads((tmp_path / "run" / "test.json").read_text())
    assert (written["top1"], written["images"], written["temporal_views"], written["spatial_views"]) == (100, 8, 2, 3)


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed = replace(PLAIN, mixup=0.8, cutmix=1.0, rand_augment="rand-m7-n4-mstd0.5-inc1")

    def start(out: Path, *, resume: bool = False) -> int:
        return program.prepare(config(videos, out, resume=resume, copies=2, augmentation=mixed)).fit()

    check_resuming(start, tmp_path, monkeypatch, (3,))


@pytest.mark.slow
def test_it_starts_from_a_pretrained_encoder_of_another_size(videos: Path, tmp_path: Path) -> None:
    preset = video_pretrain.nano()
    pretraining = replace(
        preset,
        data=videos,
        image_size=(64, 64),
        picture_epochs=0,
        video=VideoConfig(frames=4),
        model=replace(preset.model, decoder_width=16, decoder_depth=1, decoder_heads=2, mask_ratio=0.75),
        optimisation=replace(preset.optimisation, epochs=1, warmup_epochs=0.5, batch_size=8),
        run=replace(preset.run, out=tmp_path / "pretrained", workers=0, precision="fp32"),
    )
    assert video_pretrain.prepare(pretraining).fit() == 0
    started = config(videos, tmp_path / "run", epochs=1, init=tmp_path / "pretrained")
    model = program.initial_model(started, replace(TEST_MODEL, image_size=(32, 32)), 2, Console(quiet=True))
    expected = load_file(tmp_path / "pretrained" / "last" / "model.safetensors")
    assert torch.equal(model.encoder.state_dict()["blocks1.0.attn.weight"], expected["encoder.blocks1.0.attn.weight"])
    assert program.prepare(started).fit() == 0


@pytest.mark.slow
def test_segments_and_lists_are_learnt_from_too(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "clips").symlink_to(videos)
    for split in ("train", "val"):
        files = [file.relative_to(videos) for file in sorted((videos / split).rglob("*.mp4"))]
        lines = [f"clips/{file},{int(file.parent.name == 'right')}\n" for file in files]
        (tmp_path / f"{split}.csv").write_text("".join(lines))
    assert program.prepare(config(tmp_path, tmp_path / "run", epochs=1, stride=None)).fit() == 0
    _, record = load_video_classifier(tmp_path / "run")
    assert record.classes == ("0", "1")
    assert record.preprocessing == standard_clips((32, 32), frames=8, stride=None)


@pytest.mark.slow
def test_what_is_trained_on_can_be_validated_on_where_there_is_nothing_else(tmp_path: Path) -> None:
    videos = make_motion_folder(tmp_path / "motions", train=2, val=0)
    assert program.prepare(config(videos, tmp_path / "run", epochs=1, validate_on="train")).fit() == 0
    _, record = load_video_classifier(tmp_path / "run")
    assert record.provenance["data"] == "4 training videos of motions, validated on themselves"


def test_settings_and_data_that_cannot_be_are_refused(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConvMAEError, match="stride must be at least 1"):
        replace(program.nano(), stride=0)
    with pytest.raises(ConvMAEError, match="must be a run folder or a checkpoint"):
        video_test.test(video_test.VideoTestConfig(checkpoint=tmp_path, data=videos))
    with pytest.raises(ConvMAEError):
        program.prepare(config(tmp_path / "none", tmp_path / "run")).fit()
    assert not (tmp_path / "run").exists()


def test_the_flags_are_these(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["video_finetune", "nano", "--help"])
    assert flags_of(program.main, capsys) == {
        "--variant", "--data", "--init", "--inflation", "--image-size", "--frames", "--kernel-depth", "--stride",
        "--copies", "--drop-path", "--head-init-std", "--layer-decay", "--validation-epochs", "--validate-on",
        "--grad-checkpointing", "--no-grad-checkpointing", "--licence", "--epochs", "--batch-size",
        "--micro-batch-size", "--base-lr", "--min-lr", "--warmup-epochs", "--weight-decay", "--betas", "--clip-grad",
        "--crop-scale", "--flip", "--rand-augment", "--color-jitter", "--random-erasing", "--mixup", "--cutmix",
        "--label-smoothing", "--out", "--resume", "--no-resume", "--check-data", "--no-check-data",
        "--seed", "--precision", "--compile", "--no-compile",
        "--workers", "--save-minutes",
    }  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["video_test", "--help"])
    expected = {"--data", "--temporal", "--spatial", "--precision", "--batch-size", "--workers"}
    assert flags_of(video_test.main, capsys) == expected


@pytest.mark.slow
def test_two_processes_learn_what_one_does(videos: Path, tmp_path: Path, run_processes: RunProcesses) -> None:
    for count, name in ((1, "one"), (2, "two")):
        run_processes(count, "tests.training.test_video_finetune", str(videos), str(tmp_path / name))
    one, two_lines = (lines_of(tmp_path / name) for name in ("one", "two"))
    for measure in ("train_loss", "val_loss", "val_top1"):
        assert [line[measure] for line in two_lines] == pytest.approx([line[measure] for line in one], rel=1e-4)


def test_the_presets_are_the_papers_and_videomaes() -> None:
    k400, ssv2 = (program.PRESETS[name][1] for name in ("k400", "ssv2"))
    assert (k400.optimisation.epochs, ssv2.optimisation.epochs) == (100, 40)
    assert (k400.stride, ssv2.stride) == (4, None)
    assert (k400.augmentation.flip, ssv2.augmentation.flip) == (0.5, 0.0)
    assert (k400.copies, k400.layer_decay, k400.drop_path) == (2, 0.75, 0.1)
    assert k400.augmentation.rand_augment == "rand-m7-n4-mstd0.5-inc1"


if __name__ == "__main__":  # a process of the test above
    MODELS["nano"] = lambda: TEST_MODEL
    sys.exit(program.prepare(config(Path(sys.argv[1]), Path(sys.argv[2]), drop_path=0.0, copies=2)).fit())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
        ({"temporal": 0}, "temporal must be at least 1; got 0"),
        ({"temporal": 100_000_000}, "temporal and spatial must be at most 1000"),
        ({"workers": -1}, "workers must be from 0 to 1024; got -1"),
        ({"workers": 100_000}, "workers must be from 0 to 1024; got 100000"),
    ],
)
def test_a_test_with_settings_that_cannot_be_is_refused(
    changes: dict[str, Any], sentence: str, videos: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConvMAEError, match=sentence):
        video_test.test(video_test.VideoTestConfig(checkpoint=tmp_path, data=videos, **changes))
