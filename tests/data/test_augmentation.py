"""Augmentation: what each switch of the configuration does."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment, create_transform
from timm.data.auto_augment import RandAugment

from convmae_deploy.bundle.preprocessing import Preprocessing
from convmae_deploy.data.augmentation import (
    AugmentationConfig,
    batch_mixing,
    crop_transform,
    normalised,
    posterize_any,
    training_transform,
)
from convmae_deploy.data.photo_datasets import Transform, seed_sample
from convmae_deploy.errors import ConvMAEError

SPEC = Preprocessing(resize=(36, 36), crop=(32, 32))
OFF = AugmentationConfig(crop_scale=(1.0, 1.0), flip=0.0, rand_augment=None, random_erasing=0.0, mixup=0.0, cutmix=0.0)


def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, size=(32, 32, 3), dtype=np.uint8))


def test_with_everything_off_a_photo_of_the_right_size_is_only_normalised() -> None:
    image = photo()
    tensor = normalised(training_transform(OFF, (32, 32), SPEC)(image), SPEC)
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (SPEC.mean, SPEC.std))
    expected = (torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255 - mean) / std
    assert torch.allclose(tensor, expected, atol=1e-6)


@pytest.mark.parametrize("config", [OFF, replace(OFF, crop_scale=(0.2, 1.0), flip=0.5, rand_augment="rand-m9-inc1")])
def test_levels_that_are_normalised_afterwards_are_timms_transform_bit_for_bit(config: AugmentationConfig) -> None:
    timms = create_transform(
        input_size=(32, 64),
        is_training=True,
        scale=config.crop_scale,
        hflip=config.flip,
        auto_augment=config.rand_augment,
        color_jitter=0.0,
        interpolation=SPEC.interpolation,
        mean=SPEC.mean,
        std=SPEC.std,
        re_prob=0.0,
    )
    transform = training_transform(config, (32, 64), SPEC)
    for seed in range(8):
        seed_sample(seed)
        levels = transform(photo())
        seed_sample(seed)
        assert levels.dtype == torch.uint8 and torch.equal(normalised(levels[None], SPEC)[0], timms(photo()))


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_a_crop_by_aten_is_that_of_pillow_but_for_rounding(flip: float) -> None:
    smooth, config = photo().resize((200, 150)), replace(OFF, crop_scale=(0.2, 1.0), flip=flip)
    for seed in range(8):
        found, expected = (
            seeded(seed, make(config, (64, 32), SPEC), smooth) for make in (crop_transform, training_transform)
        )
        assert found.dtype == torch.uint8 and found.shape == (3, 64, 32)
        difference = (found.int() - expected.int()).abs()
        assert difference.float().mean() < 0.1 and difference.max() <= 7


@pytest.mark.parametrize("size", [(1, 1), (1, 20), (20, 1), (2, 2)])
def test_a_photo_of_a_few_pixels_is_cropped_too(size: tuple[int, int]) -> None:
    white = Image.new("RGB", size, "white")
    transform = crop_transform(replace(OFF, crop_scale=(0.01, 1.0)), (32, 32), SPEC)
    for seed in range(50):
        levels = seeded(seed, transform, white)
        assert levels.shape == (3, 32, 32) and (levels == 255).all()


def seeded(seed: int, transform: Transform, image: Image.Image) -> torch.Tensor:
    """What a transform makes of a photo from a seed."""
    seed_sample(seed)
    return transform(image)


def test_the_papers_recipe_changes_photos_and_gives_the_size_asked_for() -> None:
    transform = training_transform(AugmentationConfig(), (64, 32), SPEC)
    assert transform(photo()).shape == (3, 64, 32)
    assert not torch.equal(transform(photo()), transform(photo()))


def test_colour_jitter_beside_rand_augment_is_refused_where_timm_would_ignore_it() -> None:
    with pytest.raises(ConvMAEError, match="exclude each other"):
        AugmentationConfig(color_jitter=0.3)
    alone = replace(OFF, color_jitter=0.3)
    assert "ColorJitter" in str(training_transform(alone, (32, 32), SPEC))


@pytest.mark.parametrize("strength", range(0, 31, 2))
@pytest.mark.parametrize("increasing", [0, 1])
def test_every_operation_of_rand_augment_works_at_every_strength(increasing: int, strength: int) -> None:
    transform = training_transform(
        replace(OFF, rand_augment=f"rand-m{strength}-n15-p1-mmax30-inc{increasing}"), (32, 32), SPEC
    )
    operations = next(part for part in transform.transforms if isinstance(part, RandAugment)).ops  # type: ignore[attr-defined]
    assert len(operations) == 15
    for operation in operations:
        changed = operation(photo())
        assert changed.mode == "RGB" and changed.size == (32, 32), operation.name


def test_no_operation_of_the_papers_rand_augment_leaves_a_photo_as_it_is() -> None:
    transform = training_transform(replace(OFF, rand_augment="rand-m9-n1-p1-inc1"), (32, 32), SPEC)
    operations = next(part for part in transform.transforms if isinstance(part, RandAugment)).ops  # type: ignore[attr-defined]
    pale = photo().point(lambda level: 40 + level // 2)  # so that there is contrast to gain
    unchanged = [operation.name for operation in operations if operation(pale).tobytes() == pale.tobytes()]
    assert len(operations) == 15 and not unchanged


@pytest.mark.parametrize("bits", range(-2, 10))
def test_posterizing_keeps_the_highest_bits_and_without_any_the_picture_is_black(bits: int) -> None:
    levels = np.asarray(photo())
    mask = 255 - (2 ** (8 - min(max(bits, 0), 8)) - 1)
    assert np.array_equal(np.asarray(posterize_any(photo(), bits, fillcolor=(1, 2, 3))), levels & mask)


@pytest.mark.parametrize("name", ["rand-m9-inc1", "augmix-m10-mstd0", "v0", "original"])
def test_only_the_operations_of_this_transform_are_changed_and_none_of_timms_own(name: str) -> None:
    training_transform(replace(OFF, rand_augment=name), (32, 32), SPEC)
    assert auto_augment.NAME_TO_OP["PosterizeIncreasing"] is auto_augment.posterize
    (operation,) = auto_augment.rand_augment_ops(transforms=["PosterizeIncreasing"])
    assert operation.aug_fn is auto_augment.posterize


@pytest.mark.parametrize(("name", "some"), [("rand-m10-n1-p1-inc1", 3), ("rand-m0-n1-p1", 3), ("v0", 1)])
def test_a_photo_of_which_no_bit_is_kept_is_black(name: str, some: int) -> None:
    """Pillow 13 raised here, Pillow 12 did not."""
    transform = training_transform(replace(OFF, rand_augment=name), (32, 32), SPEC)
    found = 0
    for seed in range(100):
        seed_sample(seed)
        found += not transform(photo()).any()
    assert some <= found < 20


def test_mixed_with_others_a_black_picture_is_one_of_several() -> None:
    transform = training_transform(replace(OFF, rand_augment="augmix-m10-mstd0"), (32, 32), SPEC)
    for seed in range(40):
        seed_sample(seed)
        assert transform(photo()).float().std() > 1


UNKNOWN = ("rand-m9-x5", "RAND-m9", "rand-m9.5", "nothing", "original-m9", "augmix-n2")
FAILING_LATER = ("rand-n20-tweights", "augmix-m5-w3-d1-a0")


@pytest.mark.parametrize("name", [*UNKNOWN, *FAILING_LATER])
def test_a_string_that_timm_cannot_draw_with_is_refused_in_one_sentence(name: str) -> None:
    with pytest.raises(ConvMAEError, match=f"timm's strings, such as rand-m9-mstd0.5-inc1, or None; got '{name}'"):
        training_transform(replace(OFF, rand_augment=name), (32, 32), SPEC)


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop_scale": (0.0, 1.0)},
        {"crop_scale": (0.9, 0.1)},
        {"crop_scale": (0.5, 1.5)},
        {"flip": 1.5},
        {"random_erasing": -0.1},
        {"label_smoothing": 2.0},
        {"mixup": -1.0},
        {"cutmix": -1.0},
        {"color_jitter": -0.4, "rand_augment": None},
    ],
)
def test_numbers_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConvMAEError, match=rf"{next(iter(wrong))}.*; got "):
        AugmentationConfig(**wrong)


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
