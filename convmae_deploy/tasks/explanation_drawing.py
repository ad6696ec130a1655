"""Pictures of explanations: what each cell adds, over the photo, in two colours that everybody can tell apart."""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from convmae_deploy.bundle.preprocessing import Preprocessing
from convmae_deploy.tasks.drawing import drawing_scale
from convmae_deploy.tasks.explanation import MEANING, Explanation, seen_box

FOR, AGAINST = (230, 97, 1), (45, 90, 200)  # orange, blue
OPACITY: Final = 0.75  # of the cell that adds or takes most
MOST_SIDE: Final = 1600  # pixels of a picture's longer side
UNSEEN: Final = 0.35  # brightness that is left where the model does not look
MARGIN: Final = 8


def small_copy(photo: Image.Image) -> Image.Image:
    """The photo, not larger than pictures are."""
    scale = min(1.0, MOST_SIDE / max(photo.size))
    width, height = (max(1, round(side * scale)) for side in photo.size)
    return photo.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)


def draw_explanation(photo: Image.Image, explanation: Explanation, spec: Preprocessing) -> Image.Image:
    """An RGB photo with its cells in orange where they speak for the class and in blue where they speak against it.

    The stronger the colour the more; what lies outside the crop that the model sees is dark. Below stands what it is.

    Args:
        photo: upright; not changed.
        explanation: of this photo.
        spec: how the model sees it.
    """
    scale = min(drawing_scale(photo), MOST_SIDE / max(photo.size))
    size = max(1, round(photo.width * scale)), max(1, round(photo.height * scale))
    pixels = np.asarray(photo.resize(size, Image.Resampling.BICUBIC), dtype=np.float64)
    left, top, right, bottom = (round(edge * scale) for edge in seen_box((photo.height, photo.width), spec))
    left, top, right, bottom = max(0, left), max(0, top), min(size[0], right), min(size[1], bottom)
    picture = pixels * UNSEEN
    picture[top:bottom, left:right] = _coloured(pixels[top:bottom, left:right], explanation)
    return _with_words(Image.fromarray(np.round(picture).astype(np.uint8)), explanation)


def _coloured(seen: NDArray[np.float64], explanation: Explanation) -> NDArray[np.float64]:
    """The part that the model sees, (H, W, 3), under the colours of its cells, which are drawn as they are."""
    cells = explanation.contributions
    rows, columns = (np.arange(new) * old // new for new, old in zip(seen.shape[:2], cells.shape, strict=True))
    largest = float(np.abs(cells).max()) or 1.0
    strength = cells[rows[:, None], columns][..., None].astype(np.float64) / largest  # (H, W, 1)
    colour = np.where(strength > 0, np.array(FOR), np.array(AGAINST))
    opacity = OPACITY * np.abs(strength)
    mixed: NDArray[np.float64] = seen * (1 - opacity) + colour * opacity
    return mixed


def _with_words(picture: Image.Image, explanation: Explanation) -> Image.Image:
    """The picture, and below it what it shows."""
    font = ImageFont.load_default(max(12, round(max(picture.size) / 45)))
    text = (
        f"{explanation.label}: logit {explanation.logit:.2f} = {explanation.of_cells:.2f} of the cells "
        f"{explanation.bias:+.2f} bias; orange for it, blue against it; {MEANING}"
    )
    lines = _lines(text, font, picture.width - 2 * MARGIN)
    height = font.getbbox("Ag")[3] + 4
    result = Image.new("RGB", (picture.width, picture.height + round(height * len(lines)) + 2 * MARGIN), "white")
    result.paste(picture)
    draw = ImageDraw.Draw(result)
    for number, line in enumerate(lines):
        draw.text((MARGIN, picture.height + MARGIN + number * height), line, (16, 16, 16), font)
    return result


def _lines(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> list[str]:
    """The words in lines of that many pixels; a longer word stands alone."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
