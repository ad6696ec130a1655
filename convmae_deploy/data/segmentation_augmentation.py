"""Random changes to photos with their label maps: size, crop, flip, colours, padding, as in mmsegmentation.

Shapes: H W a photo, h w the crop.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from convmae_deploy.data.segmentation_folder import IGNORE
from convmae_deploy.errors import ConvMAEError

CROP_TRIES = 10  # for a crop that is not nearly all of one class
# mmsegmentation's strengths by torchvision's operations: brightness there is added (32 of 255), here multiplied
BRIGHTNESS, CONTRAST, SATURATION, HUE = 32 / 255, 0.5, 0.5, 0.1


@dataclass(frozen=True, kw_only=True)
class SegmentationAugmentationConfig:
    """Random changes to photos while training. The defaults are the authors' for ADE20K.

    Raises:
        ConvMAEError: a number is out of range.
    """

    short_side: int | None = 512  # pixels of a photo's short side at scale 1 and in use; None: the photo's own
    long_side: int = 2048  # most pixels of its long side at scale 1
    scale: tuple[float, float] = (0.5, 2.0)  # random factor of the size
    largest_share: float = 0.75  # most of a crop that one class may take, tried ten times; 1: any crop will do
    flip: float = 0.5  # probability of a horizontal flip
    colours: bool = True  # change brightness, contrast, saturation and hue, each with probability 1/2

    def __post_init__(self) -> None:
        short_side = 1 if self.short_side is None else self.short_side
        if not 1 <= short_side <= self.long_side or not 0 < self.scale[0] <= self.scale[1]:
            raise ConvMAEError(
                "short_side must be at least 1 and at most long_side, and scale two positive numbers in ascending "
                f"order; got {self.short_side}, {self.long_side} and {self.scale[0]:g} {self.scale[1]:g}"
            )
        if not 0 <= self.flip <= 1 or not 0 < self.largest_share <= 1:
            raise ConvMAEError(
                f"flip and largest_share must be between 0 and 1; got {self.flip:g} and {self.largest_share:g}"
            )


class SegmentationAugmentation:
    """From a photo and its labels to a crop of both, at random from torch's generator."""

    def __init__(
        self,
        config: SegmentationAugmentationConfig,
        crop: tuple[int, int],
        *,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
    ) -> None:
        """
        Args:
            config: what changes.
            crop: (h, w) in pixels.
            mean: by channel, of values in [0, 1].
            std: by channel.
        """
        self.config = config
        self.crop = crop
        self.mean, self.std = list(mean), list(std)
        self.flip = v2.RandomHorizontalFlip(config.flip)
        strengths = (
            {"brightness": BRIGHTNESS},
            {"contrast": CONTRAST},
            {"saturation": SATURATION},
            {"hue": HUE},
        )
        self.colours = v2.Compose([v2.RandomApply([v2.ColorJitter(**strength)]) for strength in strengths])

    def __call__(self, photo: Image.Image, labels: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        """An RGB photo with its labels (H, W) to an image (3, h, w), normalised, and labels (h, w) int64.

        Where the resized photo is smaller than the crop, normalised zeros and `IGNORE` fill it at the bottom and right.
        """
        image = tv_tensors.Image(v2.functional.pil_to_tensor(photo))
        sample = self.resize(image, tv_tensors.Mask(torch.from_numpy(labels)[None]))
        image, mask = self.flip(self.take_crop(*sample))
        if self.config.colours:
            image = self.colours(image)
        pixels = v2.functional.to_dtype(image.as_subclass(Tensor), torch.float32, scale=True)
        pixels = v2.functional.normalize(pixels, self.mean, self.std)
        padding = [0, 0, self.crop[1] - pixels.shape[2], self.crop[0] - pixels.shape[1]]  # left, top, right, bottom
        labels_hw = v2.functional.pad(mask.as_subclass(Tensor), padding, fill=IGNORE)[0].long()
        return v2.functional.pad(pixels, padding), labels_hw

    def resize(self, image: tv_tensors.Image, mask: tv_tensors.Mask) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        """To a random size of the same aspect ratio; torchvision's own resize shifts labels by half a pixel."""
        height, width = image.shape[-2:]
        scale = torch.empty(()).uniform_(*self.config.scale).item()
        short_side = self.config.short_side or min(height, width)
        fit = min(short_side / min(height, width), self.config.long_side / max(height, width)) * scale
        size = [max(1, round(height * fit)), max(1, round(width * fit))]
        resized = v2.functional.resize(image.as_subclass(Tensor), size, v2.InterpolationMode.BILINEAR)
        labels = v2.functional.resize(mask.as_subclass(Tensor), size, v2.InterpolationMode.NEAREST_EXACT)
        return tv_tensors.Image(resized), tv_tensors.Mask(labels)

    def take_crop(self, image: tv_tensors.Image, mask: tv_tensors.Mask) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        """A random place of the crop's size (or, on a side where the photo is smaller, all of it).

        Of several classes none may take more than `largest_share` of it; the last of ten tries is taken as it is.
        """
        height, width = (min(side, whole) for side, whole in zip(self.crop, image.shape[-2:], strict=True))
        for _ in range(CROP_TRIES):
            top = int(torch.randint(image.shape[-2] - height + 1, ()))
            left = int(torch.randint(image.shape[-1] - width + 1, ()))
            labels = mask[:, top : top + height, left : left + width]
            if self.is_varied(labels):
                break
        return tv_tensors.wrap(image[:, top : top + height, left : left + width], like=image), tv_tensors.Mask(labels)

    def is_varied(self, labels: Tensor) -> bool:
        """Whether a crop has several classes and none of them takes more than `largest_share` of its labels."""
        if self.config.largest_share == 1:
            return True
        counts = torch.bincount(labels.flatten(), minlength=IGNORE + 1)[:IGNORE]
        return bool((counts > 0).sum() > 1 and counts.max() < self.config.largest_share * counts.sum())
