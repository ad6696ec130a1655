"""Initial weights of video encoders: from videos at another size and length, and from images with inflated kernels."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from convmae_deploy.bundle.preprocessing import standard_clips
from convmae_deploy.checkpoints.loading import load_encoder_state, load_video_classifier, load_video_pretraining
from convmae_deploy.checkpoints.native import CheckpointRecord, save_checkpoint
from convmae_deploy.checkpoints.video_initial import Inflation, load_initial_video_encoder
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.classifier import build_classifier, build_video_classifier
from convmae_deploy.models.convmae import ConvMAEConfig, build_convmae
from convmae_deploy.models.video import VideoConfig, build_video_convmae, resize_space_time_embedding
from convmae_deploy.models.video_pretraining import VideoPretrainingConfig, build_video_pretraining
from tests.original_files import relative_error

CONFIG = ConvMAEConfig(embed_dims=(8, 16, 32), depths=(1, 1, 1), mlp_ratios=(2, 3, 2), num_heads=4, image_size=(64, 32))
VIDEO = VideoConfig(frames=8)
DECODER = VideoPretrainingConfig(decoder_width=16, decoder_depth=1, decoder_heads=2)


@pytest.fixture
def image_checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = build_classifier(CONFIG, num_classes=2)
    record = CheckpointRecord(kind="classification", variant="custom", model=CONFIG, classes=("a", "b"))
    save_checkpoint(tmp_path / "image", model.state_dict(), record)
    return tmp_path / "image"


@pytest.fixture
def video_checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = build_video_pretraining(CONFIG, VIDEO, DECODER)
    record = CheckpointRecord(
        kind="video-pretraining",
        variant="custom",
        model=CONFIG,
        video=VIDEO,
        video_pretraining=DECODER,
        preprocessing=standard_clips((64, 32), frames=8),
    )
    save_checkpoint(tmp_path / "video", model.state_dict(), record)
    return tmp_path / "video"


def stages(state: dict[str, Tensor], clip: Tensor) -> tuple[Tensor, Tensor]:
    model = build_video_convmae(CONFIG, VIDEO).eval()
    model.load_state_dict(state)
    with torch.no_grad():
        e1, e2, _, _ = model(clip)
    return e1, e2


@pytest.mark.parametrize(
    ("inflation", "slots"),  # of stages 1 and 2 that see nothing beyond the clip's ends; each block reaches one slot
    [("centre", ([0, 1, 2, 3], [0, 1, 2, 3])), ("mean", ([1, 2], []))],
)
def test_a_still_clip_has_the_maps_of_its_photo_away_from_the_clips_ends(
    image_checkpoint: Path, inflation: Inflation, slots: tuple[list[int], list[int]]
) -> None:
    state, report = load_initial_video_encoder(image_checkpoint, CONFIG, VIDEO, inflation)
    photo = torch.randn(2, 3, 64, 32, generator=torch.Generator().manual_seed(1))
    image = build_convmae(CONFIG).eval()
    image.load_state_dict(load_encoder_state(image_checkpoint, (64, 32))[1])
    with torch.no_grad():
        expected = image(photo)[:2]
    for found, wanted, away in zip(
        stages(state, photo.unsqueeze(2).expand(-1, -1, 8, -1, -1)), expected, slots, strict=True
    ):
        for slot in away:
            assert relative_error(found[:, :, slot], wanted) <= 1e-5
    assert report[-1].startswith(f"inflated the kernels of an image model ({inflation}); the paper trains")


def test_the_kernels_of_an_image_model_are_the_sum_of_the_inflated_ones(image_checkpoint: Path) -> None:
    image = load_encoder_state(image_checkpoint, (64, 32))[1]
    for inflation, share in (("centre", 1.0), ("mean", 1 / 3)):
        state, _ = load_initial_video_encoder(image_checkpoint, CONFIG, VIDEO, inflation)  # type: ignore[arg-type]
        kernel = state["blocks1.0.attn.weight"]
        torch.testing.assert_close(kernel.sum(2), image["blocks1.0.attn.weight"])
        torch.testing.assert_close(kernel[:, :, 1], share * image["blocks1.0.attn.weight"])
        torch.testing.assert_close(state["patch_embed1.proj.weight"].sum(2), image["patch_embed1.proj.weight"])


def test_the_encoder_of_a_video_model_fits_clips_of_another_size_and_length(video_checkpoint: Path) -> None:
    larger, longer = replace(CONFIG, image_size=(96, 64)), replace(VIDEO, frames=16)
    state, report = load_initial_video_encoder(video_checkpoint, larger, longer, "centre")
    build_video_convmae(larger, longer).load_state_dict(state)
    stored = build_video_convmae(CONFIG, VIDEO).pos_embed
    expected = resize_space_time_embedding(stored, (4, (4, 2)), (8, (6, 4))).flatten(1, 2)
    assert torch.equal(state["pos_embed"], expected)
    assert "position embedding: from (4, (4, 2)) to (8, (6, 4))" in report[0]
    assert load_initial_video_encoder(video_checkpoint, CONFIG, VIDEO, "centre")[1] == []


def test_other_encoders_are_refused_in_one_sentence(video_checkpoint: Path) -> None:
    with pytest.raises(ConvMAEError, match="initial weights must be an encoder of"):
        load_initial_video_encoder(video_checkpoint, CONFIG, replace(VIDEO, kernel_depth=1), "centre")
    with pytest.raises(ConvMAEError, match="must hold a model of images and holds: video pretraining model"):
        load_encoder_state(video_checkpoint, (64, 32))
    with pytest.raises(ConvMAEError, match="must hold a video classifier and holds: video pretraining"):
        load_video_classifier(video_checkpoint)


def test_a_loaded_model_gives_the_loss_of_the_saved_one(video_checkpoint: Path) -> None:
    torch.manual_seed(0)
    expected = build_video_pretraining(CONFIG, VIDEO, DECODER)
    model, record = load_video_pretraining(video_checkpoint)
    clips, kept = torch.randn(1, 3, 8, 64, 32), torch.tensor([[3, 5]])
    assert torch.equal(model(clips, kept), expected(clips, kept))
    assert (record.video, record.video_pretraining) == (VIDEO, DECODER)


def test_a_model_for_another_size_equals_one_that_resizes_as_it_runs(video_checkpoint: Path) -> None:
    model, record = load_video_pretraining(video_checkpoint, image_size=(64, 64))
    stored, _ = load_video_pretraining(video_checkpoint)
    clips, kept = torch.randn(1, 3, 8, 64, 64), torch.tensor([[3, 5, 14]])
    assert relative_error(model(clips, kept), stored(clips, kept)) <= 1e-6
    assert record.preprocessing == standard_clips((64, 64), frames=8)


def test_a_classifier_is_saved_and_loaded_whole(tmp_path: Path) -> None:
    model = build_video_classifier(CONFIG, VIDEO, num_classes=2).eval()
    record = CheckpointRecord(
        kind="video-classification", variant="custom", model=CONFIG, video=VIDEO, classes=("left", "right")
    )
    save_checkpoint(tmp_path / "classifier", model.state_dict(), record)
    loaded, found = load_video_classifier(tmp_path / "classifier")
    clip = torch.randn(1, 3, 8, 64, 32)
    with torch.no_grad():
        assert torch.equal(loaded(clip), model(clip))
    assert found.classes == ("left", "right")
    save_checkpoint(tmp_path / "damaged", model.state_dict(), record.model_copy(update={"video": None}))
    with pytest.raises(ConvMAEError, match="must say in config.json what its video is"):
        load_video_classifier(tmp_path / "damaged")
