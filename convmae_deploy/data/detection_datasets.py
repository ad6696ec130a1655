"""Photos with objects as torch datasets: augmented for training, and as served for evaluation."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from convmae_deploy.bundle.manifest import Letterbox
from convmae_deploy.data.coco import CocoSplit, read_coco_photo
from convmae_deploy.data.detection_augmentation import DetectionAugmentation, Target
from convmae_deploy.data.determinism import MicroBatch
from convmae_deploy.data.photo_datasets import seed_sample
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.tasks.letterbox import letterbox

DetectionSample = tuple[Tensor, Target]  # image (3, H, W), its objects


class AugmentedDetections(Dataset[DetectionSample | None]):
    """Photos and their objects through a random transform, each a pure function of (seed, epoch, index).

    Keys and unreadable photos as in `photo_datasets.AugmentedPhotos`.
    """

    def __init__(self, split: CocoSplit, augmentation: DetectionAugmentation, seed: int) -> None:
        self.split = split
        self.augmentation = augmentation
        self.seed = seed

    def __len__(self) -> int:
        return len(self.split.photos)

    def __getitem__(self, key: tuple[int, int]) -> DetectionSample | None:
        epoch, index = key
        try:
            photo = read_coco_photo(self.split.photos[index])
        except ConvMAEError:
            return None
        seed_sample(self.seed, epoch, index)
        return self.augmentation(photo, self.split.objects[index])


class EvaluationDetections(Dataset[tuple[Tensor, int] | None]):
    """Photos through the runtime's own preprocessing, each with its index; unreadable ones are None."""

    def __init__(self, split: CocoSplit, preprocessing: Letterbox) -> None:
        self.split = split
        self.preprocessing = preprocessing

    def __len__(self) -> int:
        return len(self.split.photos)

    def __getitem__(self, index: int) -> tuple[Tensor, int] | None:
        try:
            photo = read_coco_photo(self.split.photos[index])
        except ConvMAEError:
            return None
        return torch.from_numpy(letterbox(photo, self.preprocessing)), index


def collate_detections(samples: Sequence[tuple[Tensor, Any] | None]) -> MicroBatch:
    """Images (B, 3, H, W), what belongs to each as a list, and how many photos were unreadable; B may be 0."""
    readable = [sample for sample in samples if sample is not None]
    images = default_collate([image for image, _ in readable]) if readable else torch.empty(0)
    return images, [extra for _, extra in readable], len(samples) - len(readable)
