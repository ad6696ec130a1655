"""The video encoder: sizes, time, equality with the image model where a clip is one, and its fixed embedding."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.classifier import build_video_classifier
from convmae_deploy.models.convmae import ConvMAEConfig, DenseConfig, base, build_convmae
from convmae_deploy.models.video import (
    VideoConfig,
    VideoConvMAE,
    build_video_convmae,
    resize_space_time_embedding,
    sinusoid_table,
)
from tests.original_files import relative_error
from tests.recorded_pretraining import needs_recorded_passes, reference_folder

CONFIG = ConvMAEConfig(embed_dims=(8, 16, 32), depths=(2, 1, 1), mlp_ratios=(2, 3, 2), num_heads=4, image_size=(64, 32))


def seeded(video: VideoConfig | None = None) -> VideoConvMAE:
    torch.manual_seed(0)
    return build_video_convmae(CONFIG, video or VideoConfig(frames=8)).eval()


def clips(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("depth", "parameters"), [(1, 85.98), (3, 86.04), (5, 86.11)])
def test_base_has_the_published_size(depth: int, parameters: float) -> None:
    with torch.device("meta"):
        model = build_video_classifier(base(), VideoConfig(kernel_depth=depth), num_classes=400)
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 2) == parameters


@pytest.mark.parametrize(("frames", "height", "width"), [(8, 64, 32), (2, 32, 96), (12, 96, 64)])
def test_maps_have_strides_4_to_32_in_space_and_2_in_time(frames: int, height: int, width: int) -> None:
    with torch.no_grad():
        maps = seeded()(clips(2, 3, frames, height, width))
    expected = [(2, dim, frames // 2, height // stride, width // stride) for dim, stride in ((8, 4), (16, 8), (32, 16))]
    assert [tuple(each.shape) for each in maps] == [*expected, (2, 32, frames // 2, height // 32, width // 32)]
    assert torch.equal(maps[3][0, 0, 0, 0, 0], maps[2][0, 0, 0, :2, :2].max())


def test_a_clip_of_one_slot_is_an_image_whose_patches_see_both_frames() -> None:
    """With a kernel of depth 1, kernels inflated by their half and the same position embedding."""
    video = seeded(VideoConfig(frames=2, kernel_depth=1))
    image = build_convmae(CONFIG).eval()
    state = video.state_dict()
    state["patch_embed1.proj.weight"] = state["patch_embed1.proj.weight"].sum(2)
    for name in [name for name in state if name.endswith("attn.weight") and "blocks3" not in name]:
        state[name] = state[name].squeeze(2)
    image.load_state_dict(state)
    photo = clips(2, 3, 64, 32)
    with torch.no_grad():
        found, expected = video(photo.unsqueeze(2).expand(-1, -1, 2, -1, -1)), image(photo)
    for each, other in zip(found, expected, strict=True):
        assert relative_error(each.squeeze(2), other) <= 1e-5


def test_the_first_stage_sees_as_many_slots_as_its_kernels_are_deep() -> None:
    model = seeded(VideoConfig(frames=16, kernel_depth=3))
    clip = clips(1, 3, 16, 32, 32)
    changed = clip.clone()
    changed[:, :, 6:8] += 1  # slot 3
    with torch.no_grad():
        before, after = (model(each)[0] for each in (clip, changed))
    differs = (before - after).abs().amax((0, 1, 3, 4)) > 1e-6  # by slot
    assert differs.tolist() == [False, True, True, True, True, True, False, False]  # 2 blocks: 2 slots to each side


def test_the_order_of_frames_matters_and_the_whole_clip_is_seen() -> None:
    model, clip = seeded(), clips(1, 3, 8, 64, 32)
    changed = clip.clone()
    changed[:, :, 7] += 1
    with torch.no_grad():
        forward, backward, other = (model(each)[2] for each in (clip, clip.flip(2), changed))
    assert relative_error(backward.flip(2), forward) > 1e-3
    assert (other - forward)[:, :, 0].abs().max() > 1e-4


def test_a_clip_of_the_stored_length_and_size_needs_no_resizing() -> None:
    embedding = sinusoid_table(4 * 4 * 2, 32)
    kept = resize_space_time_embedding(embedding, (4, (4, 2)), (4, (4, 2)))
    assert torch.equal(kept.flatten(1, 2), embedding)


def test_embeddings_are_resized_over_space_and_over_time() -> None:
    ramp = (
        torch.arange(4.0)[:, None, None, None] + 10 * torch.arange(3.0)[None, :, None, None] + torch.zeros(4, 3, 2, 5)
    )
    longer = resize_space_time_embedding(ramp.reshape(1, 24, 5), (4, (3, 2)), (8, (3, 2))).reshape(8, 3, 2, 5)
    expected = torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3])  # between centres of slots, held at the ends
    torch.testing.assert_close(longer[:, 0, 0, 0], expected)
    larger = resize_space_time_embedding(ramp.reshape(1, 24, 5), (4, (3, 2)), (4, (3, 4))).reshape(4, 3, 4, 5)
    torch.testing.assert_close(larger, ramp[:, :, :1].expand(-1, -1, 4, -1), rtol=0, atol=1e-5)


@needs_recorded_passes
def test_the_table_is_the_recorded_one() -> None:
    expected = torch.from_numpy(np.load(reference_folder() / "videomae_pieces.npz")["sinusoid_64x32"])
    assert relative_error(sinusoid_table(64, 32), expected) <= 1e-7


def test_neighbouring_channels_are_sine_and_cosine_of_one_angle() -> None:
    table = sinusoid_table(3, 8)[0].double()
    for position in range(3):
        for pair in range(4):
            angle = position / 10000 ** (pair / 4)
            np.testing.assert_allclose(
                table[position, 2 * pair : 2 * pair + 2], [np.sin(angle), np.cos(angle)], atol=1e-7
            )


@pytest.mark.parametrize("shape", [(1, 3, 3, 32, 32), (1, 3, 0, 32, 32), (1, 3, 2, 48, 32)])
def test_clips_that_do_not_fit_are_refused_in_one_sentence(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConvMAEError, match="multiple"):
        seeded()(torch.zeros(shape))


def test_configurations_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConvMAEError, match="multiple of 2; got 5"):
        VideoConfig(frames=5)
    with pytest.raises(ConvMAEError, match="odd and positive; got 2"):
        VideoConfig(kernel_depth=2)
    with pytest.raises(ConvMAEError, match="plain attention"):
        build_video_convmae(replace(CONFIG, dense=DenseConfig(window_size=2)), VideoConfig())


def test_the_classifier_averages_the_tokens_of_all_slots() -> None:
    model = build_video_classifier(CONFIG, VideoConfig(frames=8), num_classes=3).eval()
    clip = clips(2, 3, 8, 64, 32)
    with torch.no_grad():
        pooled = model.encoder(clip)[2].mean((2, 3, 4))
        expected = model.head(model.fc_norm(pooled))
        assert relative_error(model(clip), expected) <= 1e-6
