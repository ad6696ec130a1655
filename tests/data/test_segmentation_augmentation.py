"""Photos and labels are changed together; what one pixel says of the other is kept."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from convmae_deploy.data.photo_datasets import seed_sample
from convmae_deploy.data.segmentation_augmentation import SegmentationAugmentation, SegmentationAugmentationConfig
from convmae_deploy.data.segmentation_datasets import AugmentedSegmentation
from convmae_deploy.data.segmentation_folder import IGNORE, LabelError, SegmentationFolder
from convmae_deploy.data.unreadable import Unreadable
from convmae_deploy.errors import ConvMAEError

PLAIN = SegmentationAugmentationConfig(short_side=40, long_side=200, scale=(1.0, 1.0), colours=False)
UNCHANGED = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def augmentation(config: SegmentationAugmentationConfig, crop: tuple[int, int] = (32, 32)) -> SegmentationAugmentation:
    return SegmentationAugmentation(config, crop, mean=UNCHANGED[0], std=UNCHANGED[1])


def striped(height: int = 40, width: int = 64) -> tuple[Image.Image, NDArray[np.uint8]]:
    """A photo whose red level is 10 times its label: vertical stripes of 16 pixels, labels 0 to 3."""
    labels = np.repeat(np.arange(width) // 16, height).reshape(width, height).T.astype(np.uint8)
    pixels = np.stack([labels * 10, np.zeros_like(labels), np.full_like(labels, 200)], axis=-1)
    return Image.fromarray(pixels), labels


def test_labels_stay_on_their_pixels_through_crop_and_flip() -> None:
    seen = set()
    for seed in range(20):
        seed_sample(seed)
        image, labels = augmentation(PLAIN)(*striped())
        assert image.shape == (3, 32, 32) and labels.shape == (32, 32) and labels.dtype == torch.int64
        assert torch.equal((image[0] * 25.5).round().long(), labels)
        seen.add(tuple(labels[0].tolist()))
    assert len(seen) > 10
    assert any(row[0] > row[-1] for row in seen) and any(row[0] < row[-1] for row in seen)  # flipped and not


def test_the_size_is_random_and_within_the_limits() -> None:
    config = SegmentationAugmentationConfig(short_side=20, long_side=24, scale=(0.5, 2.0), colours=False)
    widths = []
    for seed in range(30):
        seed_sample(seed)
        _, labels = augmentation(config, (128, 128))(*striped())
        inside = labels != IGNORE
        height, width = int(inside[:, 0].sum()), int(inside[0].sum())
        assert inside.sum() == height * width  # at the top left
        assert abs(height / width - 40 / 64) < 0.05
        widths.append(width)
    assert 12 <= min(widths) < 18 < 40 < max(widths) <= 48  # 24 at scale 1: the long side limits it


def test_labels_are_resized_without_a_shift() -> None:
    config = SegmentationAugmentationConfig(short_side=80, long_side=400, scale=(1.0, 1.0), flip=0.0, colours=False)
    photo, half = striped()
    _, doubled = augmentation(config, (80, 128))(photo, half)
    assert torch.equal(doubled, torch.from_numpy(half).long().repeat_interleave(2, 0).repeat_interleave(2, 1))


def test_a_small_photo_is_padded_with_zeros_and_no_class() -> None:
    image, labels = augmentation(PLAIN, (64, 96))(*striped())
    assert (labels[40:] == IGNORE).all() and (labels[:, 64:] == IGNORE).all()
    assert not image[:, 40:].any() and not image[:, :, 64:].any() and image[2, :40, :64].min() > 0.7


def test_crops_of_nearly_one_class_are_avoided() -> None:
    labels = np.zeros((40, 120), np.uint8)
    labels[:, :60] = 1
    photo = Image.new("RGB", (120, 40))
    shares = {}
    for limit in (0.75, 1.0):
        config = SegmentationAugmentationConfig(
            short_side=40, long_side=400, scale=(1.0, 1.0), largest_share=limit, colours=False
        )
        found = []
        for seed in range(40):
            seed_sample(seed)
            crop = augmentation(config, (32, 32))(photo, labels)[1]
            found.append(0.25 < (crop == 1).float().mean().item() < 0.75)
        shares[limit] = sum(found) / len(found)
    assert shares[0.75] > 2 * shares[1.0] > 0


def test_colours_change_the_photo_alone() -> None:
    config = SegmentationAugmentationConfig(short_side=40, long_side=200, scale=(1.0, 1.0), flip=0.0)
    photo, labels = striped()
    results = []
    for seed in range(8):
        seed_sample(seed)
        results.append(augmentation(config, (40, 64))(photo, labels))
    assert len({result.numpy().tobytes() for result, _ in results}) > 4
    assert all(torch.equal(found, torch.from_numpy(labels).long()) for _, found in results)
    assert all(0 <= result.min() and result.max() <= 1 for result, _ in results)


def test_values_are_normalised_by_channel() -> None:
    photo, labels = striped()
    whole = SegmentationAugmentation(PLAIN, (40, 64), mean=(0.5, 0.25, 0.0), std=(0.5, 0.5, 2.0))
    image, _ = whole(photo, labels)
    assert (image[1] == -0.5).all() and image[2].numpy() == pytest.approx(100 / 255)


@pytest.mark.parametrize("wrong", [{"short_side": 600, "long_side": 500}, {"scale": (2.0, 1.0)}, {"flip": 1.5}])
def test_impossible_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConvMAEError, match="must be"):
        SegmentationAugmentationConfig(**wrong)  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> SegmentationFolder:
    photo, labels = striped()
    photo.save(tmp_path / "a.png")
    Image.fromarray(labels).save(tmp_path / "a_labels.png")
    (tmp_path / "damaged.jpg").write_bytes(b"no photo")
    return SegmentationFolder(
        photos=(tmp_path / "a.png", tmp_path / "damaged.jpg"),
        label_maps=(tmp_path / "a_labels.png",) * 2,
        classes=("a", "b", "c", "d"),
    )


def test_a_sample_is_a_function_of_seed_epoch_and_index(folder: SegmentationFolder) -> None:
    photos = AugmentedSegmentation(folder, augmentation(SegmentationAugmentationConfig()), seed=3)
    first, again, other = photos[(1, 0)], photos[(1, 0)], photos[(2, 0)]
    assert not isinstance(first, Unreadable) and not isinstance(again, Unreadable) and not isinstance(other, Unreadable)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert isinstance(photos[(0, 1)], Unreadable)  # an unreadable photo is left out and counted


def test_a_wrong_label_map_ends_the_training(folder: SegmentationFolder) -> None:
    Image.fromarray(np.full((40, 64), 9, np.uint8)).save(folder.label_maps[0])
    with pytest.raises(LabelError, match="found 9"):
        AugmentedSegmentation(folder, augmentation(PLAIN), seed=3)[(0, 0)]
