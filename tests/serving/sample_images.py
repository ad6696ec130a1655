"""Image files, good, odd and bad, made in memory."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image


def photo(width: int = 96, height: int = 64, seed: int = 0) -> Image.Image:
    """Smooth seeded colours, so that compression leaves them recognisable."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The bytes of a file of the format `kind`."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg(width: int = 96, height: int = 64, seed: int = 0, **options: Any) -> bytes:
    """A JPEG file."""
    return encode(photo(width, height, seed), "JPEG", **options)


def chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG file with its check sum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, data: bytes = b"", *extra: bytes) -> bytes:
    """A PNG file of 8-bit RGB whose header claims that size; `data` is its compressed content."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def animated(kind: str, frames: int = 3) -> bytes:
    """A file of several frames or pages."""
    first, *others = (photo(seed=seed) for seed in range(frames))
    return encode(first, kind, save_all=True, append_images=others)


def jpeg_with_orientation(value: int) -> bytes:
    """A JPEG file whose EXIF orientation is `value`."""
    exif = Image.Exif()
    exif[0x0112] = value
    return jpeg(exif=exif.tobytes())


def blank_png(side: int) -> bytes:
    """A valid PNG of side x side black pixels, about a thousandth of them in bytes."""
    compressor = zlib.compressobj(9)
    row = bytes(1 + 3 * side)
    data = b"".join([*(compressor.compress(row) for _ in range(side)), compressor.flush()])
    return png(side, side, data)
