"""Training-time augmentation: timm's transforms and batch mixing under one typed configuration.

Workers hand over the levels 0 to 255 of an augmented photo where they can, a quarter of the bytes; `normalised` makes
the model's input of them on its device.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import Mixup, create_transform
from timm.data.auto_augment import AugmentOp, AugMixAugment, AutoAugment, RandAugment, posterize
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision.transforms.v2 import Compose, InterpolationMode, PILToTensor
from torchvision.transforms.v2.functional import resize

from convmae_deploy.bundle.preprocessing import AnyPreprocessing, ClipPreprocessing, Preprocessing
from convmae_deploy.errors import ConvMAEError


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    """Random changes to photos and batches while training. The defaults are the paper's finetuning recipe."""

    crop_scale: tuple[float, float] = (0.08, 1.0)  # share of the photo's area that a random crop covers
    flip: float = 0.5  # probability of a horizontal flip
    rand_augment: str | None = "rand-m9-mstd0.5-inc1"  # timm's RandAugment string
    color_jitter: float = 0.0  # strength of brightness, contrast and saturation jitter
    random_erasing: float = 0.25  # probability of erasing one rectangle
    mixup: float = 0.8  # alpha of mixup; 0 switches it off
    cutmix: float = 1.0  # alpha of cutmix; 0 switches it off
    label_smoothing: float = 0.1  # share of the target spread over all classes

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1 or self.color_jitter < 0 or self.mixup < 0 or self.cutmix < 0:
            raise ConvMAEError(
                "crop_scale must be two numbers in (0, 1] in ascending order, and color_jitter, mixup and cutmix at "
                f"least 0; got {low:g} {high:g}, {self.color_jitter:g}, {self.mixup:g} and {self.cutmix:g}"
            )
        shares = self.flip, self.random_erasing, self.label_smoothing
        if not all(0 <= share <= 1 for share in shares):
            raise ConvMAEError(
                "flip, random_erasing and label_smoothing must be between 0 and 1; "
                f"got {shares[0]:g}, {shares[1]:g} and {shares[2]:g}"
            )
        if self.color_jitter and self.rand_augment is not None:
            raise ConvMAEError(
                "color_jitter and rand_augment exclude each other, RandAugment changes colours itself; "
                f"got {self.color_jitter} and {self.rand_augment!r}, switch one off"
            )


def training_transform(
    config: AugmentationConfig, image_size: tuple[int, int], preprocessing: Preprocessing
) -> Callable[[Image.Image], Tensor]:
    """From a decoded RGB photo to an augmented tensor (3, *image_size), bit for bit timm's once it is `normalised`.

    The tensor is uint8; with random erasing, which fills with what normalised pixels are like, float32 and normalised.

    Raises:
        ConvMAEError: `config.rand_augment` is not one of timm's strings.
    """
    if config.random_erasing:
        (whole,) = _timm_stages(
            config,
            image_size,
            preprocessing,
            re_prob=config.random_erasing,
            re_mode="pixel",
            mean=preprocessing.mean,
            std=preprocessing.std,
        )
        steps = whole.transforms
    else:
        shape, change, _ = _timm_stages(config, image_size, preprocessing, mean=preprocessing.mean, separate=True)
        steps = [*shape.transforms, *change.transforms, PILToTensor()]
    transform: Callable[[Image.Image], Tensor] = Compose(steps)
    return transform


def crop_transform(
    config: AugmentationConfig, image_size: tuple[int, int], preprocessing: Preprocessing
) -> Callable[[Image.Image], Tensor]:
    """The random crop and flip of `training_transform` alone, resized by ATen in place of Pillow, which is faster.

    The same crops for the same draws. ATen rounds its weights to other fractions than Pillow: of photos 97 % of the
    levels are equal, and they differ by 0.03 of 255 in the mean and by 10 at most (`benchmarks.loader`).

    Returns:
        From a decoded RGB photo to a uint8 tensor (3, *image_size).
    """
    crop = RandomResizedCropAndInterpolation(image_size, config.crop_scale)  # type: ignore[no-untyped-call]
    interpolation = InterpolationMode(preprocessing.interpolation)

    def apply(photo: Image.Image) -> Tensor:
        top, left, height, width = crop.get_params(photo, crop.scale, crop.ratio)  # type: ignore[no-untyped-call]
        top, left = min(top, photo.height - 1), min(left, photo.width - 1)
        # of a photo of a few pixels timm may take no row or column
        cut = photo.crop((left, top, left + max(1, width), top + max(1, height)))
        levels = torch.from_numpy(np.array(cut)).permute(2, 0, 1)  # channels last, for which ATen has a fast way
        cropped: Tensor = resize(levels, list(image_size), interpolation=interpolation, antialias=True)
        return cropped.flip(-1) if float(torch.rand(1)) < config.flip else cropped

    return apply


def normalised(images: Tensor, preprocessing: AnyPreprocessing | None) -> Tensor:
    """Levels 0 to 255 (B, 3, H, W) in uint8 as float32, scaled to [0, 1] and normalised; other tensors as they are."""
    if images.dtype != torch.uint8:
        return images
    assert preprocessing is not None  # whoever trains on photos has decided
    mean, std = (
        # filled there: numbers that are copied to a GPU wait for it
        torch.stack([torch.full((1, 1), value, device=images.device) for value in values])
        for values in (preprocessing.mean, preprocessing.std)
    )
    levels = images.to(torch.float32, memory_format=torch.contiguous_format)
    return levels.div_(255).sub_(mean).div_(std)


def training_stages(
    config: AugmentationConfig, image_size: tuple[int, int], preprocessing: ClipPreprocessing
) -> tuple[Callable[[Image.Image], Image.Image], Callable[[Tensor], Tensor]]:
    """The two halves of `training_transform`, for who normalises between them.

    Returns:
        What is done to an RGB picture, and what is done to a normalised tensor (C, *image_size), in place.

    Raises:
        ConvMAEError: `config.rand_augment` is not one of timm's strings.
    """
    shape, change, _ = _timm_stages(config, image_size, preprocessing, mean=preprocessing.mean, separate=True)
    erase = RandomErasing(config.random_erasing, mode="pixel", device="cpu")  # type: ignore[no-untyped-call]
    return lambda picture: change(shape(picture)), erase


def _timm_stages(
    config: AugmentationConfig,
    image_size: tuple[int, int],
    preprocessing: Preprocessing | ClipPreprocessing,
    **options: Any,
) -> tuple[Any, ...]:
    """timm's training transform: one stage, or its three where `options` has `separate`.

    Raises:
        ConvMAEError: `config.rand_augment` is not one of timm's strings.
    """
    try:
        made = create_transform(
            input_size=image_size,
            is_training=True,
            scale=config.crop_scale,
            hflip=config.flip,
            auto_augment=config.rand_augment,
            color_jitter=config.color_jitter,
            interpolation=preprocessing.interpolation,
            **options,
        )
        stages = made if isinstance(made, tuple) else (made,)
        _check_draws(stages)
    except (AssertionError, ValueError, KeyError):  # how timm refuses a string; all else was checked before
        raise ConvMAEError(
            f"rand_augment must be one of timm's strings, such as {AugmentationConfig.rand_augment}, or None; "
            f"got {config.rand_augment!r}"
        ) from None
    for operation in _automatic_operations(stages):
        if operation.aug_fn is posterize:
            operation.aug_fn = posterize_any
    return stages


def _check_draws(stages: tuple[Any, ...]) -> None:
    """Raises ValueError for strings that timm takes and that then fail at the first photo."""
    for transform in (part for stage in stages for part in stage.transforms):
        if isinstance(transform, RandAugment) and transform.choice_weights is not None:
            if transform.num_layers > len(transform.ops):  # weighted operations are drawn without replacement
                raise ValueError("more operations than there are")
        elif isinstance(transform, AugMixAugment) and transform.alpha <= 0:
            raise ValueError("a Dirichlet distribution needs a positive alpha")


def _automatic_operations(stages: tuple[Any, ...]) -> Iterator[AugmentOp]:
    """The operations that RandAugment and its relatives choose from."""
    for transform in (part for stage in stages for part in stage.transforms):
        if isinstance(transform, AutoAugment):
            yield from (operation for operations in transform.policy for operation in operations)
        elif isinstance(transform, RandAugment | AugMixAugment):
            yield from transform.ops


def posterize_any(picture: Image.Image, bits_to_keep: int, **others: Any) -> Image.Image:
    """timm's `posterize`, which asks Pillow for 0 bits at its strongest: a black picture.

    Up to version 12 Pillow made it, or any with less than 0 bits; since 13 it refuses.
    """
    if bits_to_keep < 1:
        return Image.new(picture.mode, picture.size)
    return posterize(picture, bits_to_keep, **others)  # type: ignore[no-any-return, no-untyped-call]


def batch_mixing(config: AugmentationConfig, num_classes: int) -> Mixup | None:
    """timm's mixup and cutmix (one or the other a batch, half and half), or None where both are off.

    It takes photos (B, 3, H, W) and clips (B, 3, T, H, W), and smooths its targets itself; without it the loss does.
    """
    if not (config.mixup or config.cutmix):
        return None
    return _BatchMixing(  # type: ignore[no-untyped-call]
        mixup_alpha=config.mixup,
        cutmix_alpha=config.cutmix,
        label_smoothing=config.label_smoothing,
        num_classes=num_classes,
    )


class _BatchMixing(Mixup):
    """timm's own cuts its box out of axes 2 and 3, which of a clip are time and height."""

    def __call__(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        mixed, targets = super().__call__(x.flatten(1, -3), target)  # type: ignore[no-untyped-call]
        return mixed.reshape(x.shape), targets
