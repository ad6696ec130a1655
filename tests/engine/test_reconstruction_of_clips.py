"""Strips of reconstructions: which frame, what is grey, and what is taken from the prediction."""

import pytest
import torch
from torch import Tensor

from convmae_deploy.bundle.preprocessing import standard_clips
from convmae_deploy.engine.reconstruction import reconstruction_rows, reconstruction_strip
from convmae_deploy.models.convmae import ConvMAEConfig
from convmae_deploy.models.pretraining import Reconstruction
from convmae_deploy.models.video import VideoConfig
from convmae_deploy.models.video_pretraining import (
    DEVIATION_EPS,
    VideoPretraining,
    VideoPretrainingConfig,
    build_video_pretraining,
    cube_statistics,
    cubify,
)

CONFIG = ConvMAEConfig(embed_dims=(8, 8, 16), depths=(1, 1, 1), mlp_ratios=(1, 1, 1), num_heads=2, image_size=(64, 32))
SPEC = standard_clips((64, 32), frames=4)
KEPT = torch.tensor([[0, 5], [2, 7]])  # of 4 x 2 cells


def clips() -> Tensor:
    """Pixel values in [0, 1], normalised."""
    values = torch.rand(2, 3, 4, 64, 32, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(each)[:, None, None, None] for each in (SPEC.mean, SPEC.std))
    return (values - mean) / std


def model(*, norm_pix_loss: bool) -> VideoPretraining:
    decoder = VideoPretrainingConfig(decoder_width=16, decoder_depth=1, decoder_heads=2, norm_pix_loss=norm_pix_loss)
    return build_video_pretraining(CONFIG, VideoConfig(frames=4), decoder)


def hidden_places() -> Tensor:
    """(B, 1, 1, height, width), a cell at a time from the definition of KEPT."""
    hidden = torch.ones(2, 1, 1, 64, 32, dtype=torch.bool)
    for clip, cells in enumerate(KEPT.tolist()):
        for cell in cells:
            row, column = divmod(cell, 2)
            hidden[clip, :, :, row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] = False
    return hidden


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_a_perfect_prediction_gives_the_first_frame_of_every_slot(
    norm_pix_loss: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, inputs = model(norm_pix_loss=norm_pix_loss), clips()

    def perfect(images: Tensor, kept: Tensor) -> Reconstruction:
        _, hidden, loss = VideoPretraining.reconstruct(network, images, kept)
        cubes = cubify(images)
        mean, deviation = cube_statistics(cubes)
        return Reconstruction((cubes - mean) / (deviation + DEVIATION_EPS) if norm_pix_loss else cubes, hidden, loss)

    monkeypatch.setattr(network, "reconstruct", perfect)
    original, masked, pasted = reconstruction_rows(network, inputs, KEPT, SPEC)
    mean, std = (torch.tensor(each)[:, None, None, None] for each in (SPEC.mean, SPEC.std))
    frames = (inputs * std + mean)[:, :, [0, 2]].transpose(1, 2)  # (B, T, 3, height, width)
    torch.testing.assert_close(original, frames, rtol=0, atol=1e-5)
    torch.testing.assert_close(pasted, frames, rtol=0, atol=1e-4)
    expected = torch.where(hidden_places(), torch.tensor(0.5), frames)
    torch.testing.assert_close(masked, expected, rtol=0, atol=1e-5)


def test_what_is_visible_is_not_taken_from_the_prediction_and_the_mode_is_left_alone() -> None:
    network = model(norm_pix_loss=True).train()
    original, _, pasted = reconstruction_rows(network, clips(), KEPT, SPEC)
    hidden = hidden_places().expand_as(original)
    assert torch.equal(pasted[~hidden], original[~hidden])
    assert (pasted[hidden] - original[hidden]).abs().max() > 0.1
    assert network.training


def test_a_strip_has_three_rows_for_each_clip_and_a_column_for_each_slot() -> None:
    picture = reconstruction_strip(model(norm_pix_loss=True), clips(), KEPT, SPEC)
    tile_width = 4 * 32  # enlarged so that captions fit
    assert 2 * tile_width < picture.width < 3 * tile_width
    assert 6 * 4 * 64 < picture.height < 7 * 4 * 64
