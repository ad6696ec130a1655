"""Labelled photos as torch datasets: augmented for training, and as the runtime sees them for evaluation."""

import random
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from convmae_deploy.data.photo_folder import PhotoFolder
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.runtime.extraction import read_photo
from convmae_deploy.runtime.manifest import Preprocessing
from convmae_deploy.runtime.preprocess import preprocess

Sample = tuple[Tensor, int]  # image (3, H, W), class index


class AugmentedPhotos(Dataset[Sample | None]):
    """Photos through a random transform, each sample a pure function of (seed, epoch, index).

    The key is (epoch, index), so the result depends neither on the number of workers nor on where a run was resumed.
    A photo that cannot be read is None; `collate_readable` drops it.
    """

    def __init__(self, folder: PhotoFolder, transform: Callable[[Image.Image], Tensor], seed: int) -> None:
        self.folder = folder
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.folder.photos)

    def __getitem__(self, key: tuple[int, int]) -> Sample | None:
        epoch, index = key
        try:
            image = read_photo(self.folder.photos[index]).image
        except ConvMAEError:
            return None
        state = np.random.SeedSequence((self.seed, epoch, index)).generate_state(1)
        random.seed(int(state[0]))
        np.random.seed(state[0])
        torch.default_generator.manual_seed(int(state[0]))  # the CPU's only: workers must not touch CUDA
        return self.transform(image), self.folder.labels[index]


class EvaluationPhotos(Dataset[Sample | None]):
    """Photos through the runtime's own preprocessing: what is measured here is what is served."""

    def __init__(self, folder: PhotoFolder, preprocessing: Preprocessing) -> None:
        self.folder = folder
        self.preprocessing = preprocessing

    def __len__(self) -> int:
        return len(self.folder.photos)

    def __getitem__(self, index: int) -> Sample | None:
        try:
            image = read_photo(self.folder.photos[index]).image
        except ConvMAEError:
            return None
        return torch.from_numpy(preprocess(image, self.preprocessing)), self.folder.labels[index]


def collate_readable(samples: list[Sample | None]) -> tuple[Tensor, Tensor, int]:
    """Images (B, 3, H, W) and labels (B,) of the readable samples (B may be 0), and how many were not."""
    readable = [sample for sample in samples if sample is not None]
    unreadable = len(samples) - len(readable)
    if not readable:
        return torch.empty(0), torch.empty(0, dtype=torch.long), unreadable
    images, labels = default_collate(readable)
    return images, labels, unreadable
