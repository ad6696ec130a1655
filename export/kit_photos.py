"""Five photos that are easily read in a wrong way, drawn here: nobody else has rights in them, and none are claimed.

Each is a scene with no two alike corners and no two alike channels, so that nothing that is turned, mirrored, swapped
or cut elsewhere looks the same, and with lines so fine that leaving out the antialiasing shows.
"""

import io
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convmae_deploy.conformance.kit import KitPhoto

ORIENTATION_TAG, TURNED_LEFT = 0x0112, 6  # of EXIF: the first row of the file is the right side of the photo
LARGE = (3000, 2000)  # (width, height) in pixels


@lru_cache(maxsize=1)
def kit_photos() -> tuple[KitPhoto, ...]:
    """The five, each as a file."""
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = TURNED_LEFT
    upright = Image.fromarray(_scene(480, 640))
    levels = _scene(320, 240)
    alpha = np.add.outer(np.arange(240), np.arange(320)) % 256
    alpha[:, :80] = 0  # what is under it has colours all the same
    inks = np.stack(
        [255 - levels[..., 0], 255 - levels[..., 1], 255 - levels[..., 2], levels[::-1, :, 1] // 3], axis=-1
    )
    return (
        _photo(
            "orientation.jpg",
            "its EXIF orientation is 6: turn it clockwise by 90 degrees",
            upright.transpose(Image.Transpose.ROTATE_90),
            quality=95,
            subsampling=0,
            exif=exif,
        ),
        _photo(
            "cmyk.jpg",
            "CMYK, inverted as Adobe writes it: R = 255 (1 - C) (1 - K) and so on, without a colour profile",
            Image.fromarray(inks.astype(np.uint8), "CMYK"),
            quality=95,
            subsampling=0,
        ),
        _photo(
            "transparency.png",
            "its alpha is dropped: no colour shines through",
            Image.fromarray(np.dstack([levels, alpha]).astype(np.uint8), "RGBA"),
        ),
        _photo("narrow.png", "one pixel wide and 40 high", Image.fromarray(_scene(40, 40)[:, 20:21])),
        _photo(
            "large.png",
            f"{LARGE[0]} x {LARGE[1]} pixels with lines of one pixel: resized with antialiasing they are grey",
            Image.fromarray(_striped(*LARGE)),
        ),
    )


def _photo(file: str, about: str, image: Image.Image, **options: Any) -> KitPhoto:
    content = io.BytesIO()
    image.save(content, "JPEG" if file.endswith(".jpg") else "PNG", **options)
    return KitPhoto(file=file, about=about, content=content.getvalue())


def _scene(width: int, height: int) -> NDArray[np.uint8]:
    """A dusk of slow colours, two discs and rings that get finer outwards, (height, width, 3)."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    levels = np.stack([60 + 150 * x, 40 + 120 * y, 200 - 130 * x * y], axis=-1)
    for centre, radius, colour in (((0.25, 0.3), 0.15, (240, 60, 30)), ((0.7, 0.75), 0.2, (30, 200, 90))):
        levels[np.hypot(x - centre[0], y - centre[1]) < radius] = colour
    rings = np.hypot(x - 0.8, y - 0.2)
    levels[rings < 0.18] += 60 * np.sin(2500 * rings[rings < 0.18, None] ** 2)
    return levels.clip(0, 255).astype(np.uint8)


def _striped(width: int, height: int) -> NDArray[np.uint8]:
    """Broad bands of colour; one quarter has lines of a pixel, another a chequerboard of them. Packs well."""
    levels = np.empty((height, width, 3), np.uint8)
    levels[:] = np.array([[50, 90, 160], [200, 140, 60], [90, 170, 110], [220, 210, 190]])[
        np.arange(width) * 4 // width
    ]
    levels[: height // 5] //= 2
    levels[: height // 2, : width // 2 : 2] = 255
    chequered = levels[height // 2 :, width // 2 :]
    chequered[::2, ::2] = chequered[1::2, 1::2] = 0
    return levels
