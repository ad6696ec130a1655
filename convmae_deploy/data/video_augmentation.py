"""Training-time augmentation of clips: whatever is drawn, is drawn once and done to every frame alike.

Shapes: T frames, H W the frames' size, h w the model's.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from convmae_deploy.bundle.preprocessing import ClipPreprocessing
from convmae_deploy.data.augmentation import AugmentationConfig, training_stages
from convmae_deploy.data.photo_datasets import seed_sample
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.tasks.preprocess import FILTERS, normalise

Frames = Sequence[NDArray[np.uint8]]  # T of (H, W, 3), RGB
ClipTransform = Callable[[Frames], Tensor]  # to (3, T, h, w)

# VideoMAE's places of a crop, in quarters of the room there is: corners, centre, middles of sides, in between.
_PLACES = ((0, 0), (0, 4), (4, 0), (4, 4), (2, 2), (0, 2), (4, 2), (2, 0), (2, 4), (1, 1), (3, 1), (1, 3), (3, 3))


@dataclass(frozen=True, kw_only=True)
class ClipCropConfig:
    """What VideoMAE does to clips while pretraining, and a flip as in the image protocol."""

    scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)  # factors of a crop's sides; 1 is the largest crop that fits
    flip: float = 0.5  # probability of a horizontal flip

    def __post_init__(self) -> None:
        if not self.scales or not all(0 < scale <= 1 for scale in self.scales) or not 0 <= self.flip <= 1:
            raise ConvMAEError(f"crop scales must be in (0, 1] and flip in [0, 1]; got {self.scales} and {self.flip}")


def video_augmentation(*, flip: float) -> AugmentationConfig:
    """VideoMAE's finetuning: the paper's recipe for images with RandAugment of four weaker changes.

    Args:
        flip: probability of a horizontal flip: 0.5 on Kinetics, 0 where left and right matter (Something-Something).
    """
    return replace(AugmentationConfig(), rand_augment="rand-m7-n4-mstd0.5-inc1", flip=flip)


def clip_training_transform(
    config: AugmentationConfig, image_size: tuple[int, int], preprocessing: ClipPreprocessing
) -> ClipTransform:
    """The augmentation of photos with the same draws for every frame; random erasing takes one box out of all frames.

    The crop comes before RandAugment as for photos, where VideoMAE has it after: the same changes on fewer pixels.

    Args:
        config: what may be changed.
        image_size: (h, w).
        preprocessing: the normalisation and interpolation.
    """
    change, erase = training_stages(config, image_size, preprocessing)

    def apply(frames: Frames) -> Tensor:
        seed = random.getrandbits(64)
        changed = np.empty((len(frames), *image_size, 3), dtype=np.uint8)
        for frame, result in zip(frames, changed, strict=True):
            seed_sample(seed)
            result[:] = np.asarray(change(Image.fromarray(frame)))
        clip = normalised_clip(changed, preprocessing)
        erase(clip.flatten(0, 1))  # (3 T, h, w): a view, so in place
        return clip

    return apply


def clip_pretraining_transform(
    config: ClipCropConfig, image_size: tuple[int, int], preprocessing: ClipPreprocessing
) -> ClipTransform:
    """A crop at one of 13 places, its height and width at equal or neighbouring scales, perhaps flipped.

    Args:
        config: scales and flip.
        image_size: (h, w).
        preprocessing: the normalisation and interpolation.
    """
    height, width = image_size
    scales = config.scales
    pairs = [(high, wide) for i, high in enumerate(scales) for wide in scales[max(0, i - 1) : i + 2]]

    def apply(frames: Frames) -> Tensor:
        full_height, full_width = frames[0].shape[:2]
        unit = min(full_height / height, full_width / width)  # the largest crop's, of the model's aspect ratio
        high, wide = random.choice(pairs)
        crop_height, crop_width = max(1, int(unit * height * high)), max(1, int(unit * width * wide))
        down, across = random.choice(_PLACES)
        top, left = (full_height - crop_height) // 4 * down, (full_width - crop_width) // 4 * across
        flipped = random.random() < config.flip
        clip = np.empty((len(frames), height, width, 3), dtype=np.uint8)
        for frame, resized in zip(frames, clip, strict=True):
            crop = Image.fromarray(frame[top : top + crop_height, left : left + crop_width])
            resized[:] = np.asarray(crop.resize((width, height), FILTERS[preprocessing.interpolation]))
        return normalised_clip(clip[:, :, ::-1] if flipped else clip, preprocessing)

    return apply


def normalised_clip(clip: NDArray[np.uint8], preprocessing: ClipPreprocessing) -> Tensor:
    """(T, h, w, 3) RGB to (3, T, h, w)."""
    frames, height, width, _ = clip.shape
    flat = normalise(clip.reshape(frames * height, width, 3), preprocessing.mean, preprocessing.std)
    return torch.from_numpy(flat.reshape(3, frames, height, width))
