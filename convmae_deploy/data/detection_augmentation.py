"""Large-scale jitter of photos with their boxes and masks: flip, random scale, crop, padding (arXiv 2012.07177).

Shapes: n objects of a photo, H W the model's input. Boxes XYXY in pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms import v2

from convmae_deploy.bundle.preprocessing import Letterbox
from convmae_deploy.data.coco import CocoObject
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.tasks.preprocess import normalise

Target = dict[str, Tensor]  # boxes (n, 4) float32, labels (n,) int64, masks (n, H, W) uint8 of 0 and 1


@dataclass(frozen=True, kw_only=True)
class DetectionAugmentationConfig:
    """Random changes to photos while training. The defaults are the authors'; scale 1 and flip 0 change nothing.

    Raises:
        ConvMAEError: a number is out of range.
    """

    scale: tuple[float, float] = (0.1, 2.0)  # the photo's, where 1 fits it into the input; what sticks out is cropped
    flip: float = 0.5  # probability of a horizontal flip

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] or not 0 <= self.flip <= 1:
            raise ConvMAEError(
                "scale must be two positive numbers in ascending order and flip between 0 and 1; "
                f"got {self.scale[0]:g} {self.scale[1]:g} and {self.flip:g}"
            )


class DetectionAugmentation:
    """From a photo and its objects to the model's input and what to predict, at random from torch's generator."""

    def __init__(self, config: DetectionAugmentationConfig, preprocessing: Letterbox) -> None:
        self.config = config
        self.preprocessing = preprocessing
        self.flip = v2.RandomHorizontalFlip(config.flip)
        self.sanitize = v2.SanitizeBoundingBoxes()

    def __call__(self, photo: Image.Image, objects: Sequence[CocoObject]) -> tuple[Tensor, Target]:
        """Objects that the crop leaves nothing of, or less than a pixel, are left out.

        Args:
            photo: RGB.
            objects: n of them.

        Returns:
            (3, H, W), normalised, and at most n objects of it.
        """
        sample = self.flip((photo, annotated(photo, objects)))
        sample = self.crop(*self.resize(*sample))
        photo, target = self.sanitize((sample[0], with_boxes_of_what_is_left(sample[1])))
        photo, target = self.pad(photo, target)
        plain = {name: value.as_subclass(Tensor) for name, value in target.items()}
        image = normalise(np.asarray(photo), self.preprocessing.mean, self.preprocessing.std)
        return torch.from_numpy(image), plain

    def resize(self, photo: Image.Image, target: dict[str, Any]) -> tuple[Image.Image, dict[str, Any]]:
        """To a random share of the size with which the photo fits into the input.

        torchvision's ScaleJitter would do but for masks, which it shifts by up to half a pixel (`nearest`), and for
        sides that round to 0.
        """
        height, width = self.preprocessing.size
        scale = torch.empty(()).uniform_(*self.config.scale).item()
        ratio = min(height / photo.height, width / photo.width) * scale
        size = [max(1, round(photo.height * ratio)), max(1, round(photo.width * ratio))]
        masks = F.interpolate(target["masks"][:, None], size, mode="nearest-exact")[:, 0]
        boxes = v2.functional.resize(target["boxes"], size)
        photo = v2.functional.resize(photo, size, v2.InterpolationMode(self.preprocessing.interpolation))
        return photo, {**target, "boxes": boxes, "masks": tv_tensors.Mask(masks)}

    def crop(self, photo: Image.Image, target: dict[str, Any]) -> tuple[Image.Image, dict[str, Any]]:
        """The input's size or, on a side where the photo is smaller, all of it, at a random place."""
        height, width = (
            min(side, whole) for side, whole in zip(self.preprocessing.size, (photo.height, photo.width), strict=True)
        )
        crop = v2.RandomCrop((height, width))
        return crop((photo, target))  # type: ignore[no-any-return]

    def pad(self, photo: Image.Image, target: dict[str, Any]) -> tuple[Image.Image, dict[str, Any]]:
        """To the input's size, at the bottom and on the right."""
        height, width = self.preprocessing.size
        padding = [0, 0, width - photo.width, height - photo.height]  # left, top, right, bottom
        fill = {Image.Image: self.preprocessing.fill, "others": 0}
        return v2.Pad(padding, fill)((photo, target))  # type: ignore[no-any-return]


def annotated(photo: Image.Image, objects: Sequence[CocoObject]) -> dict[str, Any]:
    """The objects in the form that torchvision transforms together with the photo."""
    size = photo.height, photo.width
    masks = [item.mask(*size) for item in objects]
    return {
        "boxes": tv_tensors.BoundingBoxes(
            torch.tensor([item.box for item in objects], dtype=torch.float32).reshape(-1, 4),
            format="XYXY",
            canvas_size=size,
        ),
        "labels": torch.tensor([item.label for item in objects], dtype=torch.int64),
        "masks": tv_tensors.Mask(torch.from_numpy(np.stack(masks) if masks else np.zeros((0, *size), np.uint8))),
    }


def with_boxes_of_what_is_left(target: dict[str, Any]) -> dict[str, Any]:
    """Of objects that reach the edge of a crop the box becomes that of the rest of the mask; without rest they go.

    The box of an object inside stays as it was annotated, finer than whole pixels.
    """
    kept = target["masks"].bool().flatten(1).any(1)
    boxes, labels, masks = (target[name][kept] for name in ("boxes", "labels", "masks"))
    height, width = masks.shape[-2:]
    reaching = (boxes[:, :2] <= 0).any(1) | (boxes[:, 2:] >= boxes.new_tensor([width, height])).any(1)
    around = masks_to_boxes(masks) + boxes.new_tensor([0, 0, 1, 1])  # which gives the last pixels, not their ends
    return {
        "boxes": tv_tensors.wrap(torch.where(reaching[:, None], around, boxes), like=target["boxes"]),
        "labels": labels,
        "masks": tv_tensors.Mask(masks),
    }
