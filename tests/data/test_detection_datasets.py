"""Photos with objects as torch datasets."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from convmae_deploy.bundle.preprocessing import Letterbox
from convmae_deploy.data.coco import CocoSplit, read_coco_photo, read_coco_split
from convmae_deploy.data.detection_augmentation import DetectionAugmentation, DetectionAugmentationConfig
from convmae_deploy.data.detection_datasets import (
    AugmentedDetections,
    DetectionSample,
    EvaluationDetections,
    collate_detections,
)
from convmae_deploy.data.unreadable import Unreadable
from convmae_deploy.tasks.letterbox import letterbox
from tests.coco_folders import make_coco_folder

SPEC = Letterbox(size=(32, 64))

BAD = Unreadable("a.jpg", "it is broken")


@pytest.fixture
def split(tmp_path: Path) -> CocoSplit:
    return read_coco_split(make_coco_folder(tmp_path), "train")


def augmented(split: CocoSplit, seed: int = 0) -> AugmentedDetections:
    return AugmentedDetections(split, DetectionAugmentation(DetectionAugmentationConfig(), SPEC), seed)


def test_a_sample_depends_on_seed_epoch_and_index_only(split: CocoSplit) -> None:
    def sample(seed: int, epoch: int, index: int) -> DetectionSample:
        torch.rand(3)  # whatever was drawn before
        drawn = augmented(split, seed)[epoch, index]
        assert not isinstance(drawn, Unreadable)
        return drawn

    image, target = sample(0, 1, 2)
    again, same_target = sample(0, 1, 2)
    assert torch.equal(image, again)
    assert all(torch.equal(value, same_target[name]) for name, value in target.items())
    for other in (sample(1, 1, 2), sample(0, 2, 2), sample(0, 1, 3)):
        assert not torch.equal(image, other[0])


def test_batches_are_images_lists_of_targets_and_the_number_of_unreadable_photos(split: CocoSplit) -> None:
    split.photos[1].path.write_bytes(b"not a photo")
    photos = augmented(split)
    images, targets, unreadable = collate_detections([photos[0, index] for index in range(4)])
    assert images.shape == (3, 3, 32, 64) and unreadable == 1
    assert [set(target) for target in targets] == [{"boxes", "labels", "masks"}] * 3
    empty, none, unreadable = collate_detections([BAD, BAD])
    assert (len(empty), none, unreadable) == (0, [], 2)


def test_evaluation_uses_the_runtimes_preprocessing_and_says_which_photo_it_is(split: CocoSplit) -> None:
    split.photos[2].path.unlink()
    images, indices, unreadable = collate_detections([EvaluationDetections(split, SPEC)[index] for index in range(4)])
    assert indices == [0, 1, 3] and unreadable == 1
    for image, index in zip(images, indices, strict=True):
        assert np.array_equal(image.numpy(), letterbox(read_coco_photo(split.photos[index]), SPEC))


@pytest.mark.slow
def test_worker_processes_give_the_same_samples(split: CocoSplit) -> None:
    photos, keys = augmented(split), [(0, index) for index in range(4)]
    loader = DataLoader(photos, batch_sampler=[keys], num_workers=1, collate_fn=collate_detections)
    images, targets, _ = next(iter(loader))
    expected, expected_targets, _ = collate_detections([photos[key] for key in keys])
    assert torch.equal(images, expected)
    for target, expected_target in zip(targets, expected_targets, strict=True):
        assert all(torch.equal(target[name], value) for name, value in expected_target.items())
