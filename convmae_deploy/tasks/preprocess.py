"""From an RGB photo to a classifier's input: timm's evaluation transform, bit for bit, without torch."""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convmae_deploy.backends.base import InputArray
from convmae_deploy.bundle.preprocessing import AnyPreprocessing, ClipPreprocessing, Preprocessing

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def preprocess(image: Image.Image, spec: Preprocessing | ClipPreprocessing) -> InputArray:
    """Resizes to cover `spec.resize`, cuts out the centre `spec.crop`, and gives what `graph_input` does.

    Args:
        image: an RGB photo, or a frame of a clip, of any size.
        spec: the numbers of the model.

    Returns:
        (3, crop height, crop width).
    """
    return graph_input(cropped_views(image, spec, 1)[0], spec)


def cropped_views(image: Image.Image, spec: Preprocessing | ClipPreprocessing, views: int) -> list[NDArray[np.uint8]]:
    """Resizes to cover `spec.resize` and cuts out `spec.crop`, once or several times.

    Args:
        image: an RGB photo of any size.
        spec: the numbers of the model.
        views: one in the centre, or several from end to end of the axis where more is cut off, equally far apart.

    Returns:
        RGB pixels (crop height, crop width, 3) of each view.
    """
    height, width = spec.crop
    resized = image.resize(covering_size(image.size, spec.resize), FILTERS[spec.interpolation])
    spare_x, spare_y = resized.width - width, resized.height - height
    cropped = []
    for view in range(views):
        share = view / (views - 1) if views > 1 else 0.5
        # Rounding half to even, as torchvision's centre crop does.
        left = round(spare_x * (share if spare_x >= spare_y else 0.5))
        top = round(spare_y * (share if spare_y > spare_x else 0.5))
        cropped.append(np.asarray(resized.crop((left, top, left + width, top + height))))
    return cropped


def graph_input(levels: NDArray[np.uint8], spec: AnyPreprocessing) -> InputArray:
    """RGB pixels (H, W, 3) as the graph takes them, (3, H, W): normalised, or levels as they are where it does that."""
    if spec.dtype == "uint8":
        return np.ascontiguousarray(levels.transpose(2, 0, 1))
    return normalise(levels, spec.mean, spec.std)


def nearest_levels(values: NDArray[np.floating[Any]], spec: AnyPreprocessing) -> NDArray[np.uint8]:
    """The levels 0 to 255 that come nearest to normalised values, (..., 3, H, W) or (..., 3, T, H, W)."""
    axes = (3, *(1 for _ in spec.input_axes))
    mean, std = (np.array(numbers, np.float32).reshape(axes) for numbers in (spec.mean, spec.std))
    levels: NDArray[np.uint8] = np.rint(255 * (values * std + mean)).clip(0, 255).astype(np.uint8)
    return levels


def normalise(
    levels: NDArray[np.uint8], mean: tuple[float, float, float], std: tuple[float, float, float]
) -> NDArray[np.float32]:
    """RGB pixels (H, W, 3), scaled to [0, 1] and normalised per channel, as (3, H, W)."""
    output = np.empty((3, *levels.shape[:2]), dtype=np.float32)
    for channel, table in enumerate(_tables(mean, std)):
        # Every index fits the table; mode="clip" only spares numpy a checking pass and a buffer.
        np.take(table, levels[:, :, channel], out=output[channel], mode="clip")
    return output


def covering_size(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of the photo resized so that it covers `target` (height, width).

    timm computes square targets with torchvision's Resize (the long side is cut to whole pixels) and others with its
    own ResizeKeepRatio (both sides are rounded); the two differ by a pixel for some photos, so both are followed.
    """
    width, height = size
    if target[0] == target[1]:
        short, long = min(size), max(size)
        new_long = int(target[0] * long / short)
        return (target[0], new_long) if width <= height else (new_long, target[0])
    ratio = min(height / target[0], width / target[1])
    return round(width / ratio), round(height / ratio)


@lru_cache(maxsize=16)
def _tables(mean: tuple[float, ...], std: tuple[float, ...]) -> NDArray[np.float32]:
    """The normalised value of each 8-bit level, (3, 256), in torch's order of float32 operations."""
    scaled = np.arange(256, dtype=np.float32) / np.float32(255)
    centred = scaled[None, :] - np.array(mean, dtype=np.float32)[:, None]
    tables: NDArray[np.float32] = centred / np.array(std, dtype=np.float32)[:, None]
    tables.flags.writeable = False  # shared between threads
    return tables
