"""Pictures of results: objects with boxes, masks and labels; what pictures of all tasks share.

Colours are those of the classes in `label_colours`; the same results give the same picture.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from convmae_deploy.files import atomic_file
from convmae_deploy.tasks.label_colours import palette
from convmae_deploy.tasks.objects import Detection

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Place = tuple[int, int, int, int]  # left, top, right, bottom in pixels of the picture

MASK_OPACITY = 0.45
MIN_SIDE = 480  # pixels; the longer side of a smaller photo is drawn at least this long, or its labels would cover it
JPEG_QUALITY = 92
DARK, LIGHT = (16, 16, 16), (255, 255, 255)
LIGHT_FROM = 140  # brightness of a colour from which text on it is dark


def draw_detections(photo: Image.Image, detections: Sequence[Detection], classes: int) -> Image.Image:
    """An RGB photo with its objects: translucent masks, and boxes with label and score, the best on top.

    Args:
        photo: upright; not changed.
        detections: objects in its pixels.
        classes: how many the model knows.
    """
    colours = [tuple(int(level) for level in palette(classes)[detection.index]) for detection in detections]
    picture = _with_masks(photo, detections, colours)
    scale = drawing_scale(photo)
    size = round(photo.width * scale), round(photo.height * scale)
    picture = picture.resize(size, Image.Resampling.BICUBIC) if scale > 1 else picture
    line = max(2, round(max(size) / 400))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(max(13, round(max(size) / 55)))
    for detection, colour in list(zip(detections, colours, strict=True))[::-1]:
        left, top, right, bottom = (round(edge * scale) for edge in detection.box)
        draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour, width=line)
    tags = _place_tags(draw, detections, scale, size, font)
    for (text, place), colour in list(zip(tags, colours, strict=True))[::-1]:
        _draw_tag(draw, text, place, colour, font)
    return picture


def save_picture(picture: Image.Image, path: Path) -> None:
    """Writes a JPEG whose colours are sharp, for text; a reader finds all of it or nothing."""
    with atomic_file(path) as temporary:
        picture.save(temporary, format="JPEG", quality=JPEG_QUALITY, subsampling=0)


def drawing_scale(photo: Image.Image) -> float:
    """How many times larger than the photo its picture is: at least 1, and so that its longer side has `MIN_SIDE`."""
    return max(1.0, MIN_SIDE / max(photo.size))


def _with_masks(photo: Image.Image, detections: Sequence[Detection], colours: Sequence[tuple[int, ...]]) -> Image.Image:
    pixels = np.array(photo)
    for detection, colour in list(zip(detections, colours, strict=True))[::-1]:
        rows, columns, inside = detection.mask.cut()
        part = pixels[rows, columns]
        part[inside] = np.round(part[inside] * (1 - MASK_OPACITY) + np.array(colour) * MASK_OPACITY)
    return Image.fromarray(pixels)


def _place_tags(
    draw: ImageDraw.ImageDraw, detections: Sequence[Detection], scale: float, size: tuple[int, int], font: Font
) -> list[tuple[str, Place]]:
    """Text and place of each object's tag: above its box, inside at the top, inside at the bottom, or below.

    It takes the first of these that lies within the picture and on no tag of a better object, else above.
    """
    tags: list[tuple[str, Place]] = []
    for detection in detections:
        text = f"{detection.label} {detection.score:.2f}"
        left, top, right, bottom = draw.textbbox((0, 0), text, font)
        gap = _gap(font)
        width, height = round(right - left) + 2 * gap, round(bottom - top) + 2 * gap
        left, top, _, bottom = (round(edge * scale) for edge in detection.box)
        x = max(0, min(left, size[0] - width))
        possible = [(x, y, x + width, y + height) for y in (top - height, top, bottom - height, bottom)]
        inside = [place for place in possible if place[1] >= 0 and place[3] <= size[1]]
        free = [place for place in inside if not any(_overlap(place, taken) for _, taken in tags)]
        tags.append((text, (free or inside or possible)[0]))
    return tags


def _overlap(first: Place, second: Place) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]


def _draw_tag(draw: ImageDraw.ImageDraw, text: str, place: Place, colour: tuple[int, ...], font: Font) -> None:
    left, top, right, bottom = place
    draw.rectangle((left, top, right - 1, bottom - 1), fill=colour)
    brightness = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    text_left, text_top, *_ = draw.textbbox((0, 0), text, font)
    corner = left + _gap(font) - text_left, top + _gap(font) - text_top
    draw.text(corner, text, DARK if brightness >= LIGHT_FROM else LIGHT, font)


def _gap(font: Font) -> int:
    """Pixels between the text and the edge of its tag."""
    return max(2, round(font.getbbox("x")[3] / 5))
