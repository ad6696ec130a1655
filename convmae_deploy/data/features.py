"""Features of photos that a frozen encoder computed once, as files and as a source of updates.

Shapes: n photos of a split, D width of a feature.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from convmae_deploy.bundle.preprocessing import Preprocessing
from convmae_deploy.data.determinism import MicroBatch, StepSampler, StepSource
from convmae_deploy.data.photo_datasets import EvaluationPhotos, LabelledSample
from convmae_deploy.data.photo_folder import PhotoFolder
from convmae_deploy.data.unreadable import Unreadable, UnreadableCount
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import atomic_file, numbered_errors

NO_FEATURES = ConvMAEError("it could not be decoded when its features were computed")
KEY = "key"  # in a file's metadata: what its features were computed from


@dataclass(frozen=True, kw_only=True)
class Features:
    """The features of a split, in the order of its photos."""

    values: Tensor  # (n, D) float32; zeros where the photo could not be read
    readable: Tensor  # (n,) bool


def write_features(path: Path, features: Features, key: str) -> None:
    """Writes a file that is there as a whole or not at all."""
    with atomic_file(path) as temporary, numbered_errors(path):
        save_file({"values": features.values, "readable": features.readable}, temporary, metadata={KEY: key})


def has_features(path: Path, key: str) -> bool:
    """Whether the file is there, whole, of this key, and holds features: (n, D) numbers and (n,) marks."""
    if not path.is_file():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            values, readable = file.get_slice("values"), file.get_slice("readable")
            fits = len(values.get_shape()) == 2 and values.get_shape()[:1] == readable.get_shape()
            kinds = values.get_dtype(), readable.get_dtype()
            return fits and kinds == ("F32", "BOOL") and (file.metadata() or {}).get(KEY) == key
    except (OSError, SafetensorError):
        return False


def read_features(path: Path) -> Features:
    """The features of a file that `has_features` found good."""
    with safe_open(path, framework="pt") as file:
        return Features(values=file.get_tensor("values"), readable=file.get_tensor("readable"))


class FeatureSource(StepSource):
    """Features in place of photos: epoch e takes those of view e modulo their number, in the order of `LoadedSource`.

    One view at a time is in memory.
    """

    def __init__(self, views: Sequence[Path], folder: PhotoFolder, sampler: StepSampler) -> None:
        """
        Args:
            views: files of features of the same photos, augmented differently.
            folder: the photos and their classes.
            sampler: of this process, over the photos' indices.
        """
        super().__init__(sampler)
        self._views = views
        self._photos = folder.photos
        self._labels = torch.tensor(folder.labels)

    def micro_batches(self, epoch: int) -> Iterator[MicroBatch]:
        """Features (B, D) instead of images."""
        features = read_features(self._views[epoch % len(self._views)])
        return (self._micro_batch(features, keys) for keys in self.steps)

    def _micro_batch(self, features: Features, keys: Sequence[tuple[int, int]]) -> MicroBatch:
        indices = torch.tensor([index for _, index in keys])
        readable = features.readable[indices]
        kept = indices[readable]
        unreadable = [Unreadable.because(self._photos[index], NO_FEATURES) for index in indices[~readable].tolist()]
        return features.values[kept], self._labels[kept], UnreadableCount.of(unreadable)


class EvaluationFeatures(EvaluationPhotos):
    """Photos whose samples are their features (D,) instead of images."""

    def __init__(self, folder: PhotoFolder, preprocessing: Preprocessing, features: Features) -> None:
        super().__init__(folder, preprocessing)
        self.features = features

    def __getitem__(self, index: int) -> LabelledSample | Unreadable:
        if not self.features.readable[index]:
            return Unreadable.because(self.folder.photos[index], NO_FEATURES)
        return self.features.values[index], self.folder.labels[index]
