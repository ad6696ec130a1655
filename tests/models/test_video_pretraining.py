"""The video pretraining model: equal to the dense masked computation, blind to what is hidden, and its loss."""

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.dense_masked_video import DenseMaskedVideo
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.convmae import ConvMAEConfig
from convmae_deploy.models.masking import keep_tubes
from convmae_deploy.models.video import VideoConfig
from convmae_deploy.models.video_pretraining import (
    VideoPretraining,
    VideoPretrainingConfig,
    build_video_pretraining,
    cube_statistics,
    cubify,
    uncubify,
)
from convmae_deploy.models.visible import VisibleTubes
from tests.models.gradients import assert_gradients_equal, gradients
from tests.original_files import relative_error
from tests.recorded_pretraining import needs_recorded_passes, reference_folder

ENCODER = ConvMAEConfig(
    embed_dims=(8, 16, 32), depths=(2, 2, 1), mlp_ratios=(2, 3, 2), num_heads=4, image_size=(64, 64)
)
DECODER = VideoPretrainingConfig(decoder_width=16, decoder_depth=1, decoder_heads=2, mask_ratio=0.75)


def seeded(video: dict[str, Any] | None = None, **pretraining: Any) -> VideoPretraining:
    """A small model whose trained parameters all differ from their initial zeros and ones."""
    torch.manual_seed(0)
    model = build_video_pretraining(
        ENCODER, VideoConfig(**{"frames": 8} | (video or {})), replace(DECODER, **pretraining)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def seeded_clips(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def seeded_mask(batch: int, size: tuple[int, int] = (64, 64), mask_ratio: float = 0.75) -> Tensor:
    cells = size[0] // 16 * (size[1] // 16)
    return keep_tubes(torch.rand(batch, cells, generator=torch.Generator().manual_seed(2)), mask_ratio)


def torch_depthwise(convolution: nn.Conv3d, map_bthwc: Tensor) -> Tensor:
    """PyTorch's own, on channels in front."""
    result: Tensor = convolution(map_bthwc.permute(0, 4, 1, 2, 3).contiguous()).permute(0, 2, 3, 4, 1)
    return result


@pytest.mark.parametrize(
    ("batch", "frames", "size", "mask_ratio", "video", "pretraining"),
    [
        (1, 8, (64, 64), 0.75, {}, {}),
        (3, 8, (64, 64), 0.9, {}, {}),
        (2, 8, (32, 96), 0.5, {}, {"multi_scale": False}),
        (2, 2, (64, 32), 0.6, {}, {}),  # one slot: the kernel's depth reaches over both ends
        (1, 4, (64, 64), 0.75, {"kernel_depth": 5}, {}),
        (2, 8, (64, 64), 0.75, {"kernel_depth": 1}, {"norm_pix_loss": False}),
        (1, 12, (96, 64), 0.75, {}, {}),
    ],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_visible_tubes_alone_give_the_loss_and_gradients_of_the_dense_masked_computation(
    batch: int,
    frames: int,
    size: tuple[int, int],
    mask_ratio: float,
    video: dict[str, Any],
    pretraining: dict[str, Any],
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    model = seeded(video, **pretraining).to(dtype)
    dense = DenseMaskedVideo(model, torch_depthwise)
    clips, kept = seeded_clips(batch, 3, frames, *size).to(dtype), seeded_mask(batch, size, mask_ratio)
    latent = model.encode(clips, VisibleTubes(kept, (size[0] // 16, size[1] // 16)))
    assert relative_error(latent.transpose(1, 2), dense.latent(clips, kept)) <= tolerance
    found, expected = model(clips, kept), dense(clips, kept)
    assert found.dtype == dtype
    assert relative_error(found, expected) <= tolerance
    assert_gradients_equal(gradients(model, found), gradients(model, expected), tolerance)


def test_the_dense_encoder_with_nothing_hidden_is_the_visible_one() -> None:
    model, clips = seeded(), seeded_clips(2, 3, 8, 64, 64)
    everything = torch.arange(16).expand(2, -1)
    with torch.no_grad():
        _, _, tokens = model.encoder.forward_visible(clips, VisibleTubes(everything, (4, 4)))
        e3 = model.encoder(clips)[2]
    assert relative_error(tokens.permute(0, 3, 2, 1).reshape(e3.shape), e3) <= 1e-5


def test_hidden_pixels_have_no_influence_on_the_latent() -> None:
    model, clips, kept = seeded(), seeded_clips(2, 3, 8, 64, 64), seeded_mask(2)
    hidden = VisibleTubes(kept, (4, 4)).removed().reshape(2, 1, 1, 4, 4).bool()
    hidden = hidden.repeat_interleave(16, 3).repeat_interleave(16, 4)
    changed = torch.where(hidden, 100 * torch.randn_like(clips), clips)
    with torch.no_grad():
        before, after = (model.encode(each, VisibleTubes(kept, (4, 4))) for each in (clips, changed))
    assert torch.equal(before, after)


def test_every_visible_frame_has_an_influence_on_the_latent() -> None:
    model, clips, kept = seeded(), seeded_clips(1, 3, 8, 64, 64).requires_grad_(), seeded_mask(1)
    model.encode(clips, VisibleTubes(kept, (4, 4))).square().sum().backward()  # type: ignore[no-untyped-call]
    assert clips.grad is not None
    assert (clips.grad.abs().sum((0, 1, 3, 4)) > 0).all()


def test_the_order_in_which_cells_are_named_does_not_matter() -> None:
    model, clips, kept = seeded(), seeded_clips(2, 3, 8, 64, 64), seeded_mask(2)
    with torch.no_grad():
        assert relative_error(model(clips, kept.flip(1)), model(clips, kept)) <= 1e-6


@pytest.mark.parametrize(("cells", "mask_ratio", "kept"), [(196, 0.9, 20), (196, 0.75, 49), (64, 0.9, 7)])
def test_a_tube_mask_hides_as_many_cells_as_videomae(cells: int, mask_ratio: float, kept: int) -> None:
    chosen = keep_tubes(torch.rand(3, cells), mask_ratio)
    assert chosen.shape == (3, kept)
    assert (chosen.diff(dim=1) > 0).all()


def test_masks_that_hide_nothing_or_everything_are_refused() -> None:
    for ratio in (0.0, 1.0):
        with pytest.raises(ConvMAEError, match="hide some of 16 cells"):
            keep_tubes(torch.rand(1, 16), ratio)


@needs_recorded_passes
def test_the_recorded_mask_hides_as_many_cells_the_same_in_all_slots() -> None:
    mask = torch.from_numpy(np.load(reference_folder() / "videomae_pieces.npz")["tube_mask"]).reshape(8, 196)
    assert (mask == mask[0]).all()
    assert 196 - int(mask[0].sum()) == keep_tubes(torch.rand(1, 196), 0.9).shape[1]


@needs_recorded_passes
def test_the_target_is_the_recorded_one() -> None:
    recorded = np.load(reference_folder() / "videomae_pieces.npz")
    video = torch.from_numpy(recorded["video"]).float()
    mean, std = (torch.tensor(each)[:, None, None, None] for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    for clip in (video * std + mean, video):  # in pixel values as there, and as the model sees it
        cubes = cubify(clip)
        average, deviation = cube_statistics(cubes)
        target = (cubes - average) / (deviation + 1e-6)
        assert relative_error(target, torch.from_numpy(recorded["norm_target"])) <= 1e-4


def test_cubes_hold_frame_row_column_colour_and_can_be_put_back() -> None:
    clips = seeded_clips(2, 3, 6, 32, 64)
    cubes = cubify(clips)
    assert cubes.shape == (2, 3 * 2 * 4, 2 * 16 * 16 * 3)
    cube = cubes[1, 1 * 8 + 1 * 4 + 2].reshape(2, 16, 16, 3)  # slot 1, row 1, column 2
    assert torch.equal(cube.permute(3, 0, 1, 2), clips[1, :, 2:4, 16:32, 32:48])
    assert torch.equal(uncubify(cubes, (2, 4)), clips)


def test_statistics_are_those_of_each_colour() -> None:
    cubes = cubify(seeded_clips(1, 3, 2, 32, 32))
    mean, deviation = cube_statistics(cubes)
    green = cubes[0, 3, 1::3].double()
    torch.testing.assert_close(mean[0, 3, 1::3].double(), green.mean().expand(512), rtol=0, atol=1e-6)
    torch.testing.assert_close(deviation[0, 3, 1::3].double(), green.std().expand(512), rtol=0, atol=1e-6)


def test_the_loss_is_that_of_hidden_cubes_alone() -> None:
    model, clips, kept = seeded(norm_pix_loss=False), seeded_clips(1, 3, 8, 64, 64), seeded_mask(1)
    hidden = VisibleTubes(kept, (4, 4)).removed().repeat(1, 4).unsqueeze(2)
    prediction = cubify(clips) + 2 * hidden + 100 * (1 - hidden)
    assert model.loss(clips, prediction, hidden).item() == pytest.approx(4, rel=1e-5)


def test_recomputing_activations_changes_no_gradient() -> None:
    model, clips, kept = seeded(), seeded_clips(1, 3, 4, 64, 64), seeded_mask(1)
    expected = gradients(model, model(clips, kept))
    model.set_grad_checkpointing()
    assert_gradients_equal(gradients(model, model(clips, kept)), expected, 1e-6)


def test_under_autocast_the_loss_is_that_of_float32_within_its_precision() -> None:
    model, clips, kept = seeded(), seeded_clips(2, 3, 4, 64, 64), seeded_mask(2)
    expected = model(clips, kept)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(clips, kept)
    found.backward()
    assert found.dtype == torch.float32
    assert relative_error(found, expected) <= 0.02
    assert all(
        each.grad is not None and each.grad.isfinite().all() for each in model.parameters() if each.requires_grad
    )


@pytest.mark.slow
def test_compiled_it_gives_the_same() -> None:
    model, clips, kept = seeded(), seeded_clips(1, 3, 4, 32, 64), seeded_mask(1, (32, 64))
    expected = model(clips, kept)
    expected_gradients = gradients(model, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = torch.compile(model, backend="aot_eager")(clips, kept)
        assert relative_error(found, expected) <= 1e-5
        assert_gradients_equal(gradients(model, found), expected_gradients, 1e-4)
