"""Pictures for people: columns of photos under captions, and rows of pictures of any size fitted into tiles."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sized

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

GAP = 4  # pixels between photos and around them
PHOTOS = 6  # photos in a picture of a split
CAPTION_HEIGHT = 20  # pixels
CAPTION_SIZE = 13
CAPTION_COLOUR = (64, 64, 64)
MIN_COLUMN_WIDTH = 112  # pixels; narrower photos are enlarged, so that captions fit


def draw_columns(columns: Mapping[str, Tensor], note: str = "") -> Image.Image:
    """Captions above columns of photos, on white.

    Args:
        columns: caption to photos (B, 3, height, width) in [0, 1], all of one shape.
        note: what a reader should know of all of them, below them in as many lines as it takes.
    """
    count, _, height, width = next(iter(columns.values())).shape
    enlarged = math.ceil(MIN_COLUMN_WIDTH / width)
    height, width = height * enlarged, width * enlarged
    right, bottom = GAP + len(columns) * (width + GAP), CAPTION_HEIGHT + count * (height + GAP)
    font = ImageFont.load_default(CAPTION_SIZE)
    lines = _wrapped(note, font, right - 2 * GAP)
    picture = Image.new("RGB", (right, bottom + len(lines) * CAPTION_HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    for index, line in enumerate(lines):
        draw.text((GAP, bottom + (index + 0.5) * CAPTION_HEIGHT), line, CAPTION_COLOUR, font, anchor="lm")
    for column, (caption, photos) in enumerate(columns.items()):
        left = GAP + column * (width + GAP)
        draw.text((left + width / 2, CAPTION_HEIGHT / 2), caption, CAPTION_COLOUR, font, anchor="mm")
        for row, photo in enumerate((photos * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()):
            tile = Image.fromarray(photo).resize((width, height), Image.Resampling.NEAREST)
            picture.paste(tile, (left, CAPTION_HEIGHT + row * (height + GAP)))
    return picture


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """A text in lines of at most so many pixels; a word that is longer has one of its own."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def first_photos(split: Sized) -> range:
    """Which photos of a split are drawn."""
    return range(min(PHOTOS, len(split)))


def draw_rows(rows: Iterable[Mapping[str, Image.Image]], size: tuple[int, int]) -> Image.Image | None:
    """Captions above columns of RGB pictures, each fitted into a tile, on white; None where there is no row.

    Args:
        rows: captions to pictures, the same captions in each.
        size: (width, height) of a tile in pixels.
    """
    columns: defaultdict[str, list[Tensor]] = defaultdict(list)
    for row in rows:
        for caption, picture in row.items():
            columns[caption].append(_tile(picture, size))
    return draw_columns({caption: torch.stack(tiles) for caption, tiles in columns.items()}) if columns else None


def _tile(picture: Image.Image, size: tuple[int, int]) -> Tensor:
    """An RGB picture fitted into `size` (width, height) in pixels, white around it, as (3, height, width) in [0, 1]."""
    fitted = picture.copy()
    fitted.thumbnail(size)
    canvas = Image.new("RGB", size, "white")
    canvas.paste(fitted, ((size[0] - fitted.width) // 2, (size[1] - fitted.height) // 2))
    return torch.from_numpy(np.array(canvas)).permute(2, 0, 1) / 255
