"""Odd photo files, made in memory."""

import io
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convmae_deploy.media.images import ImageError, decode_image


def photo(width: int = 96, height: int = 64, seed: int = 0) -> Image.Image:
    """A smooth RGB picture without any symmetry."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def encode(image: Image.Image, file_format: str, **options: Any) -> bytes:
    """The image as the content of a file."""
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def orientation_exif(orientation: int) -> bytes:
    """An EXIF block with this orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """One PNG chunk with its checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def packed_zeros(count: int) -> bytes:
    """Zeros as zlib packs them, the same piece again and again: packing a hundred million of them takes a second."""
    size = 1_000_000
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    piece = packer.compress(bytes(size)) + packer.flush(zlib.Z_FULL_FLUSH)
    end = packer.compress(bytes(count % size)) + packer.flush()
    check_sum = count % 65521 << 16 | 1  # Adler-32 of so many zeros
    return b"\x78\xda" + count // size * piece + end + struct.pack(">I", check_sum)


def png_header(width: int, height: int) -> bytes:
    """Signature and header of an 8-bit grey PNG."""
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))


def grey_png(width: int, height: int, *chunks: bytes) -> bytes:
    """A black PNG with further chunks between header and data."""
    rows = zlib.compress(bytes((width + 1) * height), 9)
    return png_header(width, height) + b"".join(chunks) + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")


def insert_after_jpeg_start(jpeg: bytes, segment: bytes) -> bytes:
    """The JPEG with a further segment right after its first two bytes."""
    return jpeg[:2] + segment + jpeg[2:]


def jpeg_segment(kind: int, content: bytes) -> bytes:
    """One JPEG segment."""
    return bytes((0xFF, kind)) + struct.pack(">H", len(content) + 2) + content


def refusal(data: bytes, **options: Any) -> str:
    """The code with which the bytes are refused."""
    with pytest.raises(ImageError) as caught:
        decode_image(data, **options)
    message = str(caught.value)
    assert message and "\n" not in message and "object at 0x" not in message
    return caught.value.code


def pillow(data: bytes) -> np.ndarray[Any, Any]:
    """What timm's loader makes of the bytes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
