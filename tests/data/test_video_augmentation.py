"""Augmentation of clips: every frame alike."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from convmae_deploy.bundle.preprocessing import standard_clips
from convmae_deploy.data.augmentation import AugmentationConfig
from convmae_deploy.data.photo_datasets import seed_sample
from convmae_deploy.data.video_augmentation import (
    ClipCropConfig,
    clip_pretraining_transform,
    clip_training_transform,
    normalised_clip,
    video_augmentation,
)
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.media.video_file import open_video
from convmae_deploy.tasks.clips import read_clips
from tests.video_files import make_video

SPEC = standard_clips((32, 32), frames=6, stride=1)
OFF = AugmentationConfig(crop_scale=(1.0, 1.0), flip=0.0, rand_augment=None, random_erasing=0.0, mixup=0.0, cutmix=0.0)


def picture(height: int = 40, width: int = 60) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, size=(height, width, 3), dtype=np.uint8)


def ramp(height: int, width: int) -> NDArray[np.uint8]:
    """Red grows to the right, green downwards."""
    rows, columns = np.indices((height, width))
    return np.stack([columns, rows, np.zeros_like(rows)], axis=-1).astype(np.uint8)


def levels(clip: Tensor) -> NDArray[np.float64]:
    """(3, T, h, w) normalised to (T, h, w, 3) in [0, 255]."""
    mean, std = (np.array(values)[:, None, None, None] for values in (SPEC.mean, SPEC.std))
    return np.asarray((clip.numpy() * std + mean) * 255).transpose(1, 2, 3, 0)


@pytest.mark.parametrize(
    "config", [replace(video_augmentation(flip=0.5), random_erasing=0.0), replace(OFF, crop_scale=(0.1, 1.0), flip=0.5)]
)
def test_equal_frames_stay_equal_whatever_is_drawn(config: AugmentationConfig) -> None:
    transform = clip_training_transform(config, (32, 32), SPEC)
    clips = []
    for seed in range(20):
        seed_sample(seed)
        clip = transform([picture()] * 6)
        assert clip.shape == (3, 6, 32, 32) and clip.dtype == torch.float32
        assert torch.equal(clip, clip[:, :1].expand_as(clip)), seed
        clips.append(clip)
    assert len({float(clip.sum()) for clip in clips}) == 20


def test_random_erasing_takes_the_same_box_out_of_every_frame() -> None:
    transform = clip_training_transform(replace(OFF, random_erasing=1.0), (32, 32), SPEC)
    whole = clip_training_transform(OFF, (32, 32), SPEC)([picture(32, 32)] * 6)
    boxes = set()
    for seed in range(10):
        seed_sample(seed)
        erased = (transform([picture(32, 32)] * 6) != whole).any(dim=0)  # (T, h, w)
        assert torch.equal(erased, erased[:1].expand_as(erased))
        rows, columns = (torch.nonzero(erased[0].any(dim=axis)).flatten() for axis in (1, 0))
        assert int(erased[0].sum()) == len(rows) * len(columns) > 0
        boxes.add((int(rows[0]), int(columns[0]), len(rows), len(columns)))
    assert len(boxes) > 5


def test_frames_keep_their_order_and_their_differences() -> None:
    frames = [np.full((40, 60, 3), 30 * number, dtype=np.uint8) for number in range(6)]
    clip = clip_training_transform(replace(OFF, crop_scale=(0.3, 1.0), flip=0.5), (32, 32), SPEC)(frames)
    assert levels(clip).mean(axis=(1, 2, 3)) == pytest.approx([30 * number for number in range(6)], abs=0.01)
    clip = clip_pretraining_transform(ClipCropConfig(), (32, 32), SPEC)(frames)
    assert levels(clip).mean(axis=(1, 2, 3)) == pytest.approx([30 * number for number in range(6)], abs=0.01)


def test_without_augmentation_a_clip_is_what_is_served() -> None:
    data = make_video(frames=6, size=(32, 32))
    clip = clip_training_transform(OFF, (32, 32), SPEC)
    with open_video(data) as video:
        frames = list(video.frames(range(6)))
    served = torch.from_numpy(read_clips(data, SPEC)[0])
    assert torch.allclose(clip(frames), served, atol=1e-6)
    assert torch.equal(normalised_clip(np.stack(frames), SPEC), served)


def test_the_flip_can_be_switched_off_and_mirrors_whole_clips() -> None:
    for flip, expected in ((0.0, {False}), (1.0, {True}), (0.5, {False, True})):
        transform = clip_pretraining_transform(ClipCropConfig(flip=flip), (32, 32), SPEC)
        found = set()
        for seed in range(20):
            seed_sample(seed)
            red = levels(transform([ramp(40, 60)] * 6))[..., 0]
            falling = {bool(frame[:, 0].mean() > frame[:, -1].mean()) for frame in red}
            assert len(falling) == 1
            found |= falling
        assert found == expected


def test_pretraining_crops_have_videomaes_scales_and_places() -> None:
    transform = clip_pretraining_transform(ClipCropConfig(flip=0.0), (32, 32), SPEC)
    sizes, corners = set(), set()
    for seed in range(400):
        seed_sample(seed)
        frame = levels(transform([ramp(100, 140)]))[0]
        # The ramps tell where the first and the last pixel of the crop were.
        width = (frame[16, 24, 0] - frame[16, 8, 0]) * 2
        height = (frame[24, 16, 1] - frame[8, 16, 1]) * 2
        sizes.add((min((100, 87, 75, 66), key=lambda side: abs(side - height)), round(width)))
        left = frame[16, 16, 0] - width / 2
        corners.add(round(float(left) / max(140 - float(width), 1) * 4))
    heights = {height for height, _ in sizes}
    assert heights == {100, 87, 75, 66}
    for height, width in sizes:
        steps = [100, 87, 75, 66]
        nearest = min(steps, key=lambda side: abs(side - width))
        assert abs(steps.index(height) - steps.index(nearest)) <= 1 and abs(width - nearest) <= 2
    assert corners == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("size", [(33, 33), (20, 200), (64, 32)])
def test_crops_of_any_video_fit_any_model(size: tuple[int, int]) -> None:
    for seed in range(30):
        random.seed(seed)
        clip = clip_pretraining_transform(ClipCropConfig(), (32, 64), SPEC)([ramp(*size)] * 2)
        assert clip.shape == (3, 2, 32, 64)


def test_the_recipe_is_videomaes() -> None:
    config = video_augmentation(flip=0.0)
    assert (config.rand_augment, config.flip, config.random_erasing) == ("rand-m7-n4-mstd0.5-inc1", 0.0, 0.25)
    assert (config.mixup, config.cutmix, config.label_smoothing) == (0.8, 1.0, 0.1)
    with pytest.raises(ConvMAEError, match="crop scales must be in"):
        ClipCropConfig(scales=(1.2,))
