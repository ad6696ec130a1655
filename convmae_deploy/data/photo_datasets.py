"""Photos as torch datasets: augmented for training, with or without labels, and as served for evaluation."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from convmae_deploy.bundle.preprocessing import Preprocessing
from convmae_deploy.data.determinism import MicroBatch
from convmae_deploy.data.photo_folder import PhotoFolder
from convmae_deploy.data.shard_sampler import ShardPhoto
from convmae_deploy.data.unreadable import Unreadable, UnreadableCount
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.media.images import decode_image
from convmae_deploy.media.photo_files import DATASET_PHOTO_LIMITS, read_photo
from convmae_deploy.tasks.preprocess import preprocess

Source = TypeVar("Source")
Transform = Callable[[Image.Image], Tensor]  # from an RGB photo to a tensor (3, H, W)
LabelledSample = tuple[Tensor, int]  # image (3, H, W), class index
MaskedSample = tuple[Tensor, Tensor]  # image (3, H, W), noise (N,) that `models.masking` turns into a mask


def seed_sample(*key: int) -> None:
    """Seeds Python, NumPy and torch for one sample, whatever process or worker makes it."""
    state = np.random.SeedSequence(key).generate_state(1)
    random.seed(int(state[0]))
    np.random.seed(state[0])
    torch.default_generator.manual_seed(int(state[0]))  # the CPU's only: workers must not touch CUDA


def masked_sample(
    source: Source, transform: Callable[[Source], Tensor], cells: int, key: tuple[int, ...]
) -> MaskedSample:
    """An augmented image and the noise of its mask, both a pure function of what they are made of and `key`.

    Args:
        source: an RGB photo, or a video's file.
        transform: random, from the global generators.
        cells: N, of the masking strategy's grid.
        key: what tells this sample from every other of the run, the run's seed included.
    """
    seed_sample(*key)
    image = transform(source)
    return image, torch.rand(cells)


class AugmentedPhotos(Dataset[LabelledSample | Unreadable]):
    """Photos through a random transform, each sample a pure function of (seed, epoch, index).

    The key is (epoch, index), so the result depends neither on the number of workers nor on where a run was resumed.
    In place of a photo that cannot be read comes an `Unreadable`; `collate_readable` drops it.
    """

    def __init__(self, folder: PhotoFolder, transform: Transform, seed: int) -> None:
        self.folder = folder
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.folder.photos)

    def __getitem__(self, key: tuple[int, int]) -> LabelledSample | Unreadable:
        epoch, index = key
        try:
            image = read_photo(self.folder.photos[index], limits=DATASET_PHOTO_LIMITS).image
        except ConvMAEError as error:
            return Unreadable.because(self.folder.photos[index], error)
        seed_sample(self.seed, epoch, index)
        return self.transform(image), self.folder.labels[index]


class MaskedPhotos(Dataset[MaskedSample | Unreadable]):
    """Photos without labels for pretraining: image and mask noise, a pure function of (seed, epoch, index).

    Keys and unreadable photos as in `AugmentedPhotos`.
    """

    def __init__(self, photos: Sequence[Path], transform: Transform, seed: int, *, cells: int) -> None:
        self.photos = photos
        self.transform = transform
        self.seed = seed
        self.cells = cells

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, key: tuple[int, int]) -> MaskedSample | Unreadable:
        epoch, index = key
        try:
            photo = read_photo(self.photos[index], limits=DATASET_PHOTO_LIMITS).image
        except ConvMAEError as error:
            return Unreadable.because(self.photos[index], error)
        return masked_sample(photo, self.transform, self.cells, (self.seed, epoch, index))


class MaskedShardPhotos(Dataset[MaskedSample | Unreadable]):
    """Photos out of shards for pretraining: a pure function of the seed and the key, which brings the encoded photo.

    So it depends neither on the number of processes and workers nor on where a run was resumed.
    """

    def __init__(self, transform: Transform, seed: int, *, cells: int) -> None:
        self.transform = transform
        self.seed = seed
        self.cells = cells

    def __getitem__(self, key: ShardPhoto) -> MaskedSample | Unreadable:
        name = f"{key.name}, sample {key.member}"
        if key.data is None:
            return Unreadable(name, key.problem)
        try:
            photo = decode_image(key.data, limits=DATASET_PHOTO_LIMITS).image
        except ConvMAEError as error:
            return Unreadable.because(name, error)
        identity = (self.seed, key.epoch, key.shard, key.member, key.lap)
        return masked_sample(photo, self.transform, self.cells, identity)


class EvaluationPhotos(Dataset[LabelledSample | Unreadable]):
    """Photos through the runtime's own preprocessing: what is measured here is what is served."""

    def __init__(self, folder: PhotoFolder, preprocessing: Preprocessing) -> None:
        self.folder = folder
        self.preprocessing = preprocessing

    def __len__(self) -> int:
        return len(self.folder.photos)

    def __getitem__(self, index: int) -> LabelledSample | Unreadable:
        try:
            image = read_photo(self.folder.photos[index], limits=DATASET_PHOTO_LIMITS).image
        except ConvMAEError as error:
            return Unreadable.because(self.folder.photos[index], error)
        return torch.from_numpy(preprocess(image, self.preprocessing)), self.folder.labels[index]


def collate_readable(samples: Sequence[LabelledSample | MaskedSample | Unreadable]) -> MicroBatch:
    """Images (B, 3, H, W) and labels (B,) or noise (B, N) of the readable samples, and how many were not.

    B may be 0, and then all tensors are empty.
    """
    readable = [sample for sample in samples if not isinstance(sample, Unreadable)]
    unreadable = UnreadableCount.of(sample for sample in samples if isinstance(sample, Unreadable))
    if not readable:
        return torch.empty(0), torch.empty(0, dtype=torch.long), unreadable
    if readable[0][0].dtype == torch.uint8:  # pixel after pixel, as photos come: copied as they are
        pixels, extra = default_collate([(image.permute(1, 2, 0), other) for image, other in readable])
        return pixels.permute(0, 3, 1, 2), extra, unreadable
    images, extra = default_collate(readable)
    return images, extra, unreadable
