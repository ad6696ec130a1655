"""Augmentation: what each switch of the configuration does."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from convmae_deploy.bundle.manifest import Preprocessing
from convmae_deploy.data.augmentation import AugmentationConfig, batch_mixing, training_transform
from convmae_deploy.errors import ConvMAEError

SPEC = Preprocessing(resize=(36, 36), crop=(32, 32))
OFF = AugmentationConfig(crop_scale=(1.0, 1.0), flip=0.0, rand_augment=None, random_erasing=0.0, mixup=0.0, cutmix=0.0)


def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, size=(32, 32, 3), dtype=np.uint8))


def test_with_everything_off_a_photo_of_the_right_size_is_only_normalised() -> None:
    image = photo()
    tensor = training_transform(OFF, (32, 32), SPEC)(image)
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (SPEC.mean, SPEC.std))
    expected = (torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255 - mean) / std
    assert torch.allclose(tensor, expected, atol=1e-6)


def test_the_papers_recipe_changes_photos_and_gives_the_size_asked_for() -> None:
    transform = training_transform(AugmentationConfig(), (64, 32), SPEC)
    assert transform(photo()).shape == (3, 64, 32)
    assert not torch.equal(transform(photo()), transform(photo()))


def test_colour_jitter_beside_rand_augment_is_refused_where_timm_would_ignore_it() -> None:
    with pytest.raises(ConvMAEError, match="exclude each other"):
        AugmentationConfig(color_jitter=0.3)
    alone = replace(OFF, color_jitter=0.3)
    assert "ColorJitter" in str(training_transform(alone, (32, 32), SPEC))


def test_mixing_is_off_only_when_both_are() -> None:
    assert batch_mixing(OFF, 4) is None
    mixing = batch_mixing(AugmentationConfig(mixup=0.0, cutmix=1.0, label_smoothing=0.1), 4)
    assert mixing is not None
    _, targets = mixing(torch.randn(6, 3, 32, 32), torch.arange(6) % 4)
    assert targets.shape == (6, 4)
    assert torch.allclose(targets.sum(dim=1), torch.ones(6))
    assert float(targets.min()) >= 0.1 / 4 - 1e-6


def test_cutmix_cuts_the_same_box_out_of_every_frame_of_a_clip() -> None:
    clips = torch.zeros(4, 3, 6, 32, 48)
    clips[2:] = 1.0
    mixing = batch_mixing(AugmentationConfig(mixup=0.0, cutmix=1.0, label_smoothing=0.0), 2)
    assert mixing is not None
    for seed in range(8):
        np.random.seed(seed)
        mixed, targets = mixing(clips.clone(), torch.tensor([0, 0, 1, 1]))
        assert mixed.shape == clips.shape
        box = mixed[0, 0, 0]
        assert torch.equal(mixed[0], box.expand(3, 6, 32, 48))  # all colours and frames alike
        rows, columns = (torch.nonzero(box.sum(dim=axis)).flatten() for axis in (1, 0))
        assert int(box.sum()) == len(rows) * len(columns)  # a rectangle of the frame
        assert float(targets[0, 1]) == pytest.approx(float(box.mean()), abs=1e-6)


def test_mixup_blends_whole_clips() -> None:
    clips = torch.arange(4.0).reshape(4, 1, 1, 1, 1).expand(4, 3, 6, 8, 8).clone()
    mixing = batch_mixing(AugmentationConfig(mixup=0.8, cutmix=0.0, label_smoothing=0.0), 4)
    assert mixing is not None
    mixed, targets = mixing(clips, torch.arange(4))
    assert torch.allclose(mixed, mixed[:, :1, :1, :1, :1].expand_as(mixed))
    assert torch.allclose(mixed[:, 0, 0, 0, 0], targets @ torch.arange(4.0))
