"""Labelled photos in folders, `ROOT/{train,val}/<class>/*`, read augmented or as for evaluation."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.runtime.images import ImageError, decode_image
from convmae_deploy.runtime.manifest import Preprocessing
from convmae_deploy.runtime.preprocess import preprocess

PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
Sample = tuple[Tensor, int]  # image (3, H, W), class index


@dataclass(frozen=True, kw_only=True)
class PhotoFolder:
    """One split: photo paths with their class indices, and what each class is called."""

    photos: tuple[Path, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]


def read_photo_folder(root: Path, split: str) -> PhotoFolder:
    """Lists `root/split/<class>/*`; classes in sorted order of their folder names.

    A `root/classes.json` of the form {"folder name": "class name"} gives the names, unchanged; otherwise the folder's
    own name is the class's.

    Raises:
        ConvMAEError: the split or its photos are missing, or classes.json does not name every folder.
    """
    directory = root / split
    folders = sorted(entry for entry in directory.iterdir() if entry.is_dir()) if directory.is_dir() else []
    if not folders:
        raise ConvMAEError(f"{root} must hold photos as {split}/<class>/*; found no class folder in {directory}")
    names = _class_names(root / "classes.json")
    unnamed = [folder.name for folder in folders if names and folder.name not in names]
    if unnamed:
        raise ConvMAEError(
            f"{root / 'classes.json'} must name every class folder of {directory}; {unnamed[0]} is missing"
        )
    found = [
        (photo, label)
        for label, folder in enumerate(folders)
        for photo in sorted(folder.rglob("*"))
        if photo.suffix.lower() in PHOTO_SUFFIXES
    ]
    if not found:
        raise ConvMAEError(f"{directory} holds no photo; expected files such as {folders[0].name}/photo.jpg")
    return PhotoFolder(
        photos=tuple(photo for photo, _ in found),
        labels=tuple(label for _, label in found),
        classes=tuple(names.get(folder.name, folder.name) for folder in folders),
    )


def _class_names(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConvMAEError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ConvMAEError(f'{path} must be an object of the form {{"folder name": "class name"}}')
    return names


class AugmentedPhotos(Dataset[Sample | None]):
    """Photos through a random transform, each sample a pure function of (seed, epoch, index).

    The key is (epoch, index), so the result depends neither on the number of workers nor on where a run was resumed.
    A photo that cannot be decoded is None; `collate_readable` drops it.
    """

    def __init__(self, folder: PhotoFolder, transform: Callable[[Image.Image], Tensor], seed: int) -> None:
        self.folder = folder
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.folder.photos)

    def __getitem__(self, key: tuple[int, int]) -> Sample | None:
        epoch, index = key
        image = _read(self.folder.photos[index])
        if image is None:
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
        image = _read(self.folder.photos[index])
        if image is None:
            return None
        return torch.from_numpy(preprocess(image, self.preprocessing)), self.folder.labels[index]


def _read(path: Path) -> Image.Image | None:
    try:
        return decode_image(path.read_bytes()).image
    except ImageError:
        return None


def collate_readable(samples: list[Sample | None]) -> tuple[Tensor, Tensor, int]:
    """Images (B, 3, H, W), labels (B,) of the readable samples, and how many were not."""
    readable = [sample for sample in samples if sample is not None]
    unreadable = len(samples) - len(readable)
    if not readable:
        raise ConvMAEError(f"none of the {unreadable} photos of a batch could be decoded; check the data folder")
    images, labels = default_collate(readable)
    return images, labels, unreadable
