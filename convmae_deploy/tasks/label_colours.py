"""Label maps as colours, over a photo and with a legend.

Shapes: K classes, H W a photo.
"""

import colorsys
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

UNLABELLED = (0, 0, 0)  # pixels of no class
OPACITY = 0.6  # how much the colours hide of a photo
TONES = ((0.85, 0.95), (0.6, 0.7), (0.4, 1.0))  # saturation and brightness, in turn
LEGEND_TEXT = 13  # size of the font
LEGEND_LINE = 20  # pixels
SWATCH = 12  # pixels along the side of a square of colour
GAP = 6  # pixels around squares and names
LEGEND_COLOUR = (32, 32, 32)


@lru_cache
def palette(classes: int) -> NDArray[np.uint8]:
    """(K + 1, 3) RGB: a colour for each class, the same whatever K is; `UNLABELLED` behind them.

    Hues follow one another at the golden ratio of the circle, so that neighbours differ and none repeats.
    """
    colours = [colorsys.hsv_to_rgb(index * 0.618034 % 1, *TONES[index // 5 % len(TONES)]) for index in range(classes)]
    table = np.round(np.array([*colours, UNLABELLED]) * 255).astype(np.uint8)
    table.flags.writeable = False
    return table


def coloured(labels: NDArray[np.integer], classes: int) -> NDArray[np.uint8]:
    """(H, W, 3): the colour of each label; what is no class, as 255 in data with fewer, is `UNLABELLED`."""
    colours: NDArray[np.uint8] = palette(classes)[np.minimum(labels.astype(np.intp), classes)]
    return colours


def overlay(photo: Image.Image, labels: NDArray[np.integer], classes: int) -> Image.Image:
    """An RGB photo under the colours of its labels (H, W)."""
    colours = Image.fromarray(coloured(labels, classes))
    return Image.blend(photo, colours, OPACITY)


def with_legend(picture: Image.Image, names: Sequence[str], shown: Sequence[int], scale: int = 1) -> Image.Image:
    """A picture, and below it the colours of some classes with their names, in as many lines as they need.

    Args:
        picture: RGB.
        names: of all classes, K.
        shown: which of them, in the order of the legend.
        scale: how many times larger than usual the legend is.
    """
    font = ImageFont.load_default(LEGEND_TEXT * scale)
    swatch, gap, line_height = SWATCH * scale, GAP * scale, LEGEND_LINE * scale
    places, left, line = [], gap, 0
    for label in shown:
        width = swatch + gap + round(font.getlength(names[label])) + 2 * gap
        if left > gap and left + width > picture.width:
            left, line = gap, line + 1
        places.append((label, left, line))
        left += width
    height = gap + (line + 1) * line_height if shown else 0
    result = Image.new("RGB", (picture.width, picture.height + height), "white")
    result.paste(picture)
    draw = ImageDraw.Draw(result)
    for label, left, line in places:
        middle = picture.height + gap + line * line_height + line_height // 2
        box = (left, middle - swatch // 2, left + swatch - 1, middle - swatch // 2 + swatch - 1)
        draw.rectangle(box, fill=tuple(palette(len(names))[label].tolist()))
        draw.text((left + swatch + gap, middle), names[label], LEGEND_COLOUR, font, anchor="lm")
    return result


def class_areas(labels: NDArray[np.integer], classes: int) -> dict[int, int]:
    """Pixels of each class that a label map of any shape has, the largest first."""
    counts = np.bincount(labels.ravel(), minlength=classes)[:classes]
    return {int(label): int(counts[label]) for label in np.argsort(-counts, kind="stable") if counts[label]}
