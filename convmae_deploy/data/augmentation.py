"""Training-time augmentation: timm's transforms and batch mixing under one typed configuration."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from PIL import Image
from timm.data import Mixup, create_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from convmae_deploy.bundle.manifest import ClipPreprocessing, Preprocessing
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
        if self.color_jitter and self.rand_augment is not None:
            raise ConvMAEError(
                "color_jitter and rand_augment exclude each other, RandAugment changes colours itself; "
                f"got {self.color_jitter} and {self.rand_augment!r}, switch one off"
            )


def training_transform(
    config: AugmentationConfig, image_size: tuple[int, int], preprocessing: Preprocessing
) -> Callable[[Image.Image], Tensor]:
    """From a decoded RGB photo to an augmented, normalised tensor (3, *image_size)."""
    transform = create_transform(
        **_picture_options(config, image_size, preprocessing),
        re_prob=config.random_erasing,
        re_mode="pixel",
        mean=preprocessing.mean,
        std=preprocessing.std,
    )
    return cast(Callable[[Image.Image], Tensor], transform)


def training_stages(
    config: AugmentationConfig, image_size: tuple[int, int], preprocessing: ClipPreprocessing
) -> tuple[Callable[[Image.Image], Image.Image], Callable[[Tensor], Tensor]]:
    """The two halves of `training_transform`, for who normalises between them.

    Returns:
        What is done to an RGB picture, and what is done to a normalised tensor (C, *image_size), in place.
    """
    shape, change, _ = create_transform(
        **_picture_options(config, image_size, preprocessing), mean=preprocessing.mean, separate=True
    )
    erase = RandomErasing(config.random_erasing, mode="pixel", device="cpu")  # type: ignore[no-untyped-call]
    return lambda picture: change(shape(picture)), erase


def _picture_options(
    config: AugmentationConfig, image_size: tuple[int, int], preprocessing: Preprocessing | ClipPreprocessing
) -> dict[str, Any]:
    """timm's arguments for what is done before normalisation."""
    return {
        "input_size": image_size,
        "is_training": True,
        "scale": config.crop_scale,
        "hflip": config.flip,
        "auto_augment": config.rand_augment,
        "color_jitter": config.color_jitter,
        "interpolation": preprocessing.interpolation,
    }


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
