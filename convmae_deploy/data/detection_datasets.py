"""Photos with objects as torch datasets: augmented for training, and as served for evaluation."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from convmae_deploy.bundle.preprocessing import Letterbox
from convmae_deploy.data.coco import CocoSplit, read_coco_photo
from convmae_deploy.data.detection_augmentation import DetectionAugmentation, Target
from convmae_deploy.data.determinism import MicroBatch
from convmae_deploy.data.photo_datasets import seed_sample
from convmae_deploy.data.unreadable import Unreadable, UnreadableCount
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.tasks.letterbox import letterbox

DetectionSample = tuple[Tensor, Target]  # image (3, H, W), its objects


class AugmentedDetections(Dataset[DetectionSample | Unreadable]):
    """Photos and their objects through a random transform, each a pure function of (seed, epoch, index).

    Keys and unreadable photos as in `photo_datasets.AugmentedPhotos`.
    """

    def __init__(self, split: CocoSplit, augmentation: DetectionAugmentation, seed: int) -> None:
        self.split = split
        self.augmentation = augmentation
        self.seed = seed

    def __len__(self) -> int:
        return len(self.split.photos)

    def __getitem__(self, key: tuple[int, int]) -> DetectionSample | Unreadable:
        epoch, index = key
        try:
            photo = read_coco_photo(self.split.photos[index])
        except ConvMAEError as error:
            return Unreadable.because(self.split.photos[index].path, error)
        seed_sample(self.seed, epoch, index)
        return self.augmentation(photo, self.split.objects[index])


class EvaluationDetections(Dataset[tuple[Tensor, int] | Unreadable]):
    """Photos through the runtime's own preprocessing, each with its index; `Unreadable` where it cannot be read."""

    def __init__(self, split: CocoSplit, preprocessing: Letterbox) -> None:
        self.split = split
        self.preprocessing = preprocessing

    def __len__(self) -> int:
        return len(self.split.photos)

    def __getitem__(self, index: int) -> tuple[Tensor, int] | Unreadable:
        try:
            photo = read_coco_photo(self.split.photos[index])
        except ConvMAEError as error:
            return Unreadable.because(self.split.photos[index].path, error)
        return torch.from_numpy(letterbox(photo, self.preprocessing)), index


def collate_detections(samples: Sequence[tuple[Tensor, Any] | Unreadable]) -> MicroBatch:
    """Images (B, 3, H, W), what belongs to each as a list, and how many photos were unreadable; B may be 0."""
    readable = [sample for sample in samples if not isinstance(sample, Unreadable)]
    images = default_collate([image for image, _ in readable]) if readable else torch.empty(0)
    unreadable = UnreadableCount.of(sample for sample in samples if isinstance(sample, Unreadable))
    return images, [extra for _, extra in readable], unreadable
