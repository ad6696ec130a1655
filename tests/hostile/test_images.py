"""Photos that are made to cost much: each is refused, or decoded within the memory that its header says, and soon."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.hostile import photos
from tests.hostile.bounds import MEGABYTE, bounded
from tests.hostile.decoding import decode_photo

pytestmark = pytest.mark.slow  # together

SIZE = (2000, 1600)  # (width, height)
SMALL = (2000, 1500)
NOISE = 8 * MEGABYTE  # what a first use of a decoder takes, and what malloc keeps
PROCESSOR_SECONDS = 8  # a limit of the kernel, in whole seconds


def encode(mode: str, kind: str, *, flat: bool = False, **options: Any) -> bytes:
    """A photo of 3 megapixels as a file, flat or of random cells."""
    width, height = SIZE
    if mode in ("1", "I;16", "I"):
        pixels = np.arange(width * height).reshape(height, width) % (2 if mode == "1" else 256)
        image = Image.fromarray(pixels.astype(np.int32 if mode == "I" else np.uint16 if mode == "I;16" else np.bool_))
    else:
        channels = len(Image.new(mode, (1, 1)).getbands())
        cells = np.random.default_rng(0).integers(0, 256, (channels, height // 20, width // 20), dtype=np.uint8)
        bands = [Image.fromarray(band * (not flat)).resize(SIZE, Image.Resampling.NEAREST) for band in cells]
        image = bands[0].convert("P") if mode == "P" else Image.merge(mode, bands)
    if options.pop("turned", False):
        exif = Image.Exif()
        exif[0x0112] = 6
        options["exif"] = exif
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


COSTLY: dict[str, Callable[[], bytes]] = {
    "grey JPEG, turned": lambda: encode("L", "JPEG", turned=True),
    "progressive JPEG of full colour, turned": lambda: encode(
        "RGB", "JPEG", progressive=True, subsampling=0, turned=True
    ),
    "progressive CMYK JPEG, turned": lambda: encode("CMYK", "JPEG", progressive=True, subsampling=0, turned=True),
    "PNG with alpha, turned": lambda: encode("RGBA", "PNG", compress_level=1, turned=True),
    "PNG of 16 bits, turned": lambda: encode("I;16", "PNG", compress_level=1, turned=True),
    "WebP with alpha, turned": lambda: encode("RGBA", "WEBP", method=0, turned=True),
    "lossless WebP with alpha": lambda: encode("RGBA", "WEBP", method=0, lossless=True, quality=0),
    "WebP of two frames": lambda: encode(
        "RGB", "WEBP", method=0, flat=True, save_all=True, append_images=[Image.new("RGB", SIZE, "red")]
    ),
    "GIF of two frames": lambda: encode("P", "GIF", flat=True, save_all=True, append_images=[Image.new("P", SIZE, 3)]),
    "BMP with alpha": lambda: encode("RGBA", "BMP"),
    "BMP in runs": lambda: photos.bmp_of_runs((2500, 1600)),
    "TIFF of one strip": lambda: encode("RGBA", "TIFF", compression="tiff_adobe_deflate", strip_size=1 << 30),
    "CMYK TIFF": lambda: encode("CMYK", "TIFF", compression="tiff_lzw"),
    "TIFF of JPEGs": lambda: encode("RGB", "TIFF", compression="jpeg", strip_size=1 << 30),
    "TIFF of 16 bits": lambda: encode("I;16", "TIFF", compression="tiff_lzw"),
    "TIFF of 32 bits": lambda: encode("I", "TIFF", compression="tiff_adobe_deflate", strip_size=1 << 30),
    "AVIF": lambda: encode("RGB", "AVIF", speed=10, subsampling="4:4:4"),
    "AVIF with alpha, turned": lambda: encode("RGBA", "AVIF", speed=10, subsampling="4:4:4", turned=True),
}


HOSTILE: dict[str, tuple[Callable[[], bytes], bool]] = {  # and whether they are decoded
    "too many scans": (lambda: photos.jpeg_of_scans(101, SMALL), False),
    "many scans": (lambda: photos.jpeg_of_scans(100, SMALL), True),
    "parts of EXIF": (lambda: photos.jpeg_of_segments(9_000, 0xE1, b"Exif\0\0" + bytes(60)), True),
    "too many parts of EXIF": (lambda: photos.jpeg_of_segments(100_000, 0xE1, b"Exif\0\0" + bytes(60)), False),
    "colour profile of 20 MB": (
        lambda: photos.jpeg_of_segments(300, 0xE2, b"ICC_PROFILE\0\1\1" + bytes(65_000)),
        True,
    ),
    "comments of a JPEG": (lambda: photos.jpeg_of_segments(500_000, 0xFE, b""), False),
    "tables": (lambda: photos.jpeg_of_segments(100_000, 0xDB, b"\0" + bytes(64)), False),
    "colour profile bomb": (lambda: photos.png((64, 48), (b"iCCP", photos.BOMB)), True),
    "texts of 6 GB": (lambda: photos.png((64, 48), *[(b"zTXt", photos.BOMB)] * 100), True),
    "animation": (lambda: photos.png((64, 48), *[(b"fdAT", bytes(4))] * 90_000), True),
    "frames of a WebP": (lambda: photos.webp_of_frames(100_000), True),
    "comments of a GIF": (lambda: photos.gif(*[b"!\xfe" + b"\xff" + bytes(255) + b"\0"] * 40_000), True),
    "comment of 10 MB": (lambda: photos.gif(b"!\xfe" + (b"\xff" + bytes(255)) * 40_000 + b"\0"), True),
    "tile of 2 GB": (photos.tiff_of_huge_tiles, False),
    "strips that are all the same": (lambda: photos.tiff_of_the_same_strip(16_000), False),
    "directories in a loop": (lambda: photos.tiff_of_directories(100_000), True),
    "dictionary of 4 GB": (photos.tiff_of_lzma, False),
    "JPEG scans in a TIFF": (photos.tiff_of_jpeg_scans, False),
    "runs of 49 megapixels": (lambda: photos.bmp_of_runs((7000, 7000)), False),
    "runs of 4 megapixels": (lambda: photos.bmp_of_runs((16_000, 250)), True),
    "strips that are twice the same": (lambda: photos.tiff_of_the_same_strip(2, width=60), True),
    "strips that are three times the same": (lambda: photos.tiff_of_the_same_strip(3, width=60), False),
}


@pytest.mark.parametrize("name", COSTLY)
def test_decoding_takes_no_more_memory_than_was_reserved(name: str) -> None:
    ending = bounded(decode_photo, COSTLY[name](), processor_seconds=PROCESSOR_SECONDS)
    assert ending.how == "returned", ending
    reserved, size = ending.value
    assert set(size) in (set(SIZE), {2500, 1600})
    assert ending.grown <= reserved + NOISE


@pytest.mark.parametrize("name", HOSTILE)
def test_a_photo_that_is_made_to_cost_much_does_not(name: str) -> None:
    make, accepted = HOSTILE[name]
    data = make()
    ending = bounded(decode_photo, data, memory=100 * MEGABYTE, processor_seconds=PROCESSOR_SECONDS)
    assert ending.how == ("returned" if accepted else "refused"), ending
    assert ending.grown <= 100 * MEGABYTE
    if not accepted:
        assert "\n" not in ending.sentence and ending.grown <= 3 * len(data) + NOISE
