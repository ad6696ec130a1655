"""The video pretraining program: it learns, resumes exactly, survives bad videos, and has the paper's recipes."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from convmae_deploy.bundle.preprocessing import standard_clips
from convmae_deploy.checkpoints.loading import load_video_pretraining
from convmae_deploy.checkpoints.native import CheckpointRecord, save_checkpoint
from convmae_deploy.engine.reconstruction import ReconstructionRecipe
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.convmae import MODELS, ConvMAEConfig, build_convmae
from convmae_deploy.models.video import VideoConfig
from tests.processes import RunProcesses
from tests.training_runs import check_resuming, flags_of, lines_of, not_a_number
from tests.video_folders import make_motion_folder
from training import video_pretrain as program

pytestmark = pytest.mark.usefixtures("small_model")
TEST_MODEL = ConvMAEConfig(
    embed_dims=(8, 16, 32), depths=(1, 1, 1), mlp_ratios=(2, 2, 2), num_heads=2, image_size=(64, 64)
)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_motion_folder(tmp_path_factory.mktemp("videos") / "motions", train=4)


def config(
    videos: Path, out: Path, *, resume: bool = False, epochs: int = 3, **changes: Any
) -> program.VideoPretrainConfig:
    preset = program.nano()
    return replace(
        preset,
        data=videos,
        image_size=(64, 64),
        picture_epochs=0,
        video=VideoConfig(frames=8),
        model=replace(preset.model, decoder_width=16, decoder_depth=1, decoder_heads=2, mask_ratio=0.75),
        optimisation=replace(
            preset.optimisation, epochs=epochs, warmup_epochs=0.5, batch_size=4, micro_batch_size=2, base_lr=0.1
        ),
        run=replace(preset.run, out=out, resume=resume, workers=0, precision="fp32"),
        **changes,
    )


@pytest.mark.slow
def test_it_learns_draws_strips_and_its_checkpoint_can_be_loaded(videos: Path, tmp_path: Path) -> None:
    run = replace(config(videos, tmp_path / "run", epochs=10), picture_epochs=5)
    assert program.prepare(run).fit() == 0
    lines = lines_of(tmp_path / "run")
    assert lines[-1]["train_loss"] < 0.97 * lines[0]["train_loss"]
    _, record = load_video_pretraining(tmp_path / "run")
    assert record.video == VideoConfig(frames=8)
    assert record.preprocessing == standard_clips((64, 64), frames=8, stride=1)
    pictures = sorted((tmp_path / "run" / "pictures").iterdir())
    assert [picture.name for picture in pictures] == ["epoch-0005.png", "epoch-0010.png"]
    with Image.open(pictures[0]) as picture:
        assert picture.width > 4 * 64 and picture.height > 3 * 2 * 64  # four slots; three rows of two clips
    facts = json.loads((tmp_path / "run" / "run.json").read_text())["data"]
    assert facts.items() >= {"train_videos": 8, "processes": 1}.items()


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(out: Path, *, resume: bool = False) -> int:
        return program.prepare(config(videos, out, resume=resume)).fit()

    check_resuming(start, tmp_path, monkeypatch, (1, 4))


@pytest.mark.slow
def test_videos_that_cannot_be_decoded_are_counted(tmp_path: Path) -> None:
    videos = make_motion_folder(tmp_path / "motions", train=4)
    broken = videos / "train" / "left" / "0.mp4"
    broken.write_bytes(broken.read_bytes()[:300])
    assert program.prepare(config(videos, tmp_path / "run", epochs=2)).fit() == 0
    assert [line["unreadable_train"] for line in lines_of(tmp_path / "run")] == [1, 2]


@pytest.mark.slow
def test_updates_that_are_not_finite_are_skipped(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = ReconstructionRecipe.loss, 0

    def sometimes(self: ReconstructionRecipe, clips: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return not_a_number(self.run.model) if calls == 4 else original(self, clips, noise)

    monkeypatch.setattr(ReconstructionRecipe, "loss", sometimes)
    assert program.prepare(config(videos, tmp_path / "run")).fit() == 0
    assert lines_of(tmp_path / "run")[-1]["skipped_updates"] == 1


@pytest.mark.slow
def test_it_can_start_from_an_image_encoder(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = CheckpointRecord(kind="features", variant="nano", model=TEST_MODEL)
    save_checkpoint(tmp_path / "image", build_convmae(TEST_MODEL).state_dict(), record)
    assert program.prepare(config(videos, tmp_path / "run", epochs=1, init=tmp_path / "image")).fit() == 0
    assert "inflated the kernels of an image model (centre); the paper trains" in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes_train_to_the_losses_of_one(videos: Path, tmp_path: Path, run_processes: RunProcesses) -> None:
    for count, name in ((1, "one"), (2, "two")):
        run_processes(count, "tests.training.test_video_pretrain", str(videos), str(tmp_path / name))
    found, expected = ([line["train_loss"] for line in lines_of(tmp_path / out)] for out in ("two", "one"))
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"stride": 0}, "stride must be at least 1"),
        ({"picture_epochs": -1}, "at least 0"),
        ({"image_size": (60, 64)}, "32"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConvMAEError, match=sentence):
        replace(program.nano(), **changes)


def test_data_that_are_not_there_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConvMAEError):
        program.prepare(config(tmp_path / "none", tmp_path / "run")).fit()
    assert not (tmp_path / "run").exists()


def test_the_flags_are_these(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["video_pretrain", "nano", "--help"])
    assert flags_of(program.main, capsys) == {
        "--variant", "--data", "--init", "--inflation", "--image-size", "--frames", "--kernel-depth", "--stride",
        "--grad-checkpointing", "--no-grad-checkpointing", "--picture-epochs", "--licence", "--decoder-width",
        "--decoder-depth", "--decoder-heads", "--decoder-mlp-ratio", "--mask-ratio", "--multi-scale",
        "--no-multi-scale", "--norm-pix-loss", "--no-norm-pix-loss", "--scales", "--flip", "--epochs", "--batch-size",
        "--micro-batch-size", "--base-lr", "--min-lr", "--warmup-epochs", "--weight-decay", "--betas", "--clip-grad",
        "--out", "--resume", "--no-resume", "--check-data", "--no-check-data",
        "--seed", "--precision", "--compile", "--no-compile", "--workers",
        "--save-minutes",
    }  # fmt: skip


def test_the_presets_are_the_papers_and_videomaes() -> None:
    k400, ssv2 = (program.PRESETS[name][1] for name in ("k400", "ssv2"))
    assert (k400.stride, ssv2.stride, ssv2.augmentation.flip) == (4, 2, 0.0)
    assert k400.video == VideoConfig(frames=16, kernel_depth=3)
    assert (k400.model.decoder_width, k400.model.decoder_depth, k400.model.mask_ratio) == (384, 4, 0.9)
    assert k400.optimisation.learning_rate == pytest.approx(1.2e-3)
    assert k400.optimisation.min_lr == pytest.approx(8e-5)
    assert (k400.optimisation.epochs, k400.optimisation.warmup_epochs, k400.optimisation.betas) == (
        800,
        40,
        (0.9, 0.95),
    )


if __name__ == "__main__":  # a process of the test above
    MODELS["nano"] = lambda: TEST_MODEL
    sys.exit(program.prepare(config(Path(sys.argv[1]), Path(sys.argv[2]))).fit())
