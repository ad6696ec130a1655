"""Image files, good, odd and bad, made in memory."""

import struct
from typing import Any

from tests.media.photo_files import encode, orientation_exif, packed_zeros, photo, png_chunk


def jpeg(width: int = 96, height: int = 64, seed: int = 0, **options: Any) -> bytes:
    """A JPEG file."""
    return encode(photo(width, height, seed), "JPEG", **options)


def png(width: int, height: int, data: bytes = b"", *extra: bytes) -> bytes:
    """A PNG file of 8-bit RGB whose header claims that size; `data` is its compressed content."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")


def animated(kind: str, frames: int = 3) -> bytes:
    """A file of several frames or pages."""
    first, *others = (photo(seed=seed) for seed in range(frames))
    return encode(first, kind, save_all=True, append_images=others)


def jpeg_with_orientation(value: int) -> bytes:
    """A JPEG file whose EXIF orientation is `value`."""
    return jpeg(exif=orientation_exif(value))


def blank_png(side: int) -> bytes:
    """A valid PNG of side x side black pixels, about a thousandth of them in bytes."""
    return png(side, side, packed_zeros(side * (1 + 3 * side)))
