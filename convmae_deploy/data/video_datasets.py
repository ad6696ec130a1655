"""Videos as torch datasets: clips augmented for training, with or without labels, and as served for evaluation.

As for photos a sample is a pure function of (seed, epoch, index), and in place of a video that cannot be decoded comes
an `Unreadable`.

Shapes: T frames of a clip, H W its size, V views, R copies.
"""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from convmae_deploy.bundle.preprocessing import ClipPreprocessing
from convmae_deploy.data.determinism import MicroBatch
from convmae_deploy.data.photo_datasets import (
    LabelledSample,
    MaskedSample,
    collate_readable,
    masked_sample,
    seed_sample,
)
from convmae_deploy.data.unreadable import Unreadable, UnreadableCount
from convmae_deploy.data.video_augmentation import ClipTransform, Frames
from convmae_deploy.data.video_folder import VideoFolder
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.media.video_file import open_video
from convmae_deploy.media.video_limits import DATASET_VIDEO_LIMITS
from convmae_deploy.tasks.clips import ClipViews, random_moments, read_clips


def random_frames(video: Path, spec: ClipPreprocessing) -> Frames:
    """T frames of a random clip, from Python's global generator.

    Raises:
        ConvMAEError: the video cannot be read or decoded.
    """
    numbers = [random.random() for _ in range(spec.frames)]
    with open_video(video, limits=DATASET_VIDEO_LIMITS) as opened:
        wanted = opened.on_screen(random_moments(spec, len(opened), numbers))
        decoded = dict(zip(np.unique(wanted).tolist(), opened.frames(wanted), strict=True))
    return [decoded[number] for number in wanted.tolist()]


class MaskedVideos(Dataset[MaskedSample | Unreadable]):
    """Clips without labels for pretraining: (3, T, H, W) and mask noise (cells,)."""

    def __init__(
        self, videos: Sequence[Path], spec: ClipPreprocessing, transform: ClipTransform, seed: int, *, cells: int
    ) -> None:
        """
        Args:
            videos: files.
            spec: which frames make a clip.
            transform: random, from frames to a clip.
            seed: of the run.
            cells: of one slot of the model's grid: a tube mask is the same in all slots.
        """
        self.videos = videos
        self.spec = spec
        self.transform = transform
        self.seed = seed
        self.cells = cells

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, key: tuple[int, int]) -> MaskedSample | Unreadable:
        epoch, index = key
        try:
            return masked_sample(self.videos[index], self._clip, self.cells, (self.seed, epoch, index))
        except ConvMAEError as error:
            return Unreadable.because(self.videos[index], error)

    def _clip(self, video: Path) -> Tensor:
        return self.transform(random_frames(video, self.spec))


class AugmentedVideos(Dataset[list[LabelledSample] | Unreadable]):
    """Clips with labels for finetuning: R copies of one random clip (repeated augmentation), augmented differently.

    A video is decoded once for all its copies; `collate_copies` makes a batch of them.
    """

    def __init__(
        self, folder: VideoFolder, spec: ClipPreprocessing, transform: ClipTransform, seed: int, *, copies: int = 1
    ) -> None:
        """
        Args:
            folder: the split.
            spec: which frames make a clip.
            transform: random, from frames to a clip.
            seed: of the run.
            copies: R; a batch of B videos has B * R clips.
        """
        if copies < 1:
            raise ConvMAEError(f"repeated augmentation needs at least 1 copy; got {copies}")
        self.folder = folder
        self.spec = spec
        self.transform = transform
        self.seed = seed
        self.copies = copies

    def __len__(self) -> int:
        return len(self.folder.videos)

    def __getitem__(self, key: tuple[int, int]) -> list[LabelledSample] | Unreadable:
        epoch, index = key
        seed_sample(self.seed, epoch, index)
        try:
            frames = random_frames(self.folder.videos[index], self.spec)
        except ConvMAEError as error:
            return Unreadable.because(self.folder.videos[index], error)
        return [(self.transform(frames), self.folder.labels[index]) for _ in range(self.copies)]


class EvaluationVideos(Dataset[LabelledSample | Unreadable]):
    """Views (V, 3, T, H, W) of a video through the runtime's own preprocessing: what is measured is what is served.

    `engine.classification.AverageOfViews` makes one answer of them.
    """

    def __init__(self, folder: VideoFolder, spec: ClipPreprocessing, views: ClipViews | None = None) -> None:
        self.folder = folder
        self.spec = spec
        self.views = views or ClipViews()

    def __len__(self) -> int:
        return len(self.folder.videos)

    def __getitem__(self, index: int) -> LabelledSample | Unreadable:
        try:
            clips = read_clips(self.folder.videos[index], self.spec, views=self.views, limits=DATASET_VIDEO_LIMITS)
        except ConvMAEError as error:
            return Unreadable.because(self.folder.videos[index], error)
        return torch.from_numpy(clips), self.folder.labels[index]


def collate_copies(samples: Sequence[list[LabelledSample] | Unreadable]) -> MicroBatch:
    """Clips (B * R, 3, T, H, W) and labels (B * R,) of the readable videos, and how many were not."""
    readable = [sample for copies in samples if not isinstance(copies, Unreadable) for sample in copies]
    clips, labels, _ = collate_readable(readable)
    return clips, labels, UnreadableCount.of(copies for copies in samples if isinstance(copies, Unreadable))
