"""The outside of image files, checked before Pillow sees them: dimensions, frames, completeness, absurd structure.

Pillow reads most headers well, but it lets some truncated files pass, it allocates the canvas of a WebP before anyone
can look at its size, and it reports odd metadata through `warnings`, which are global to the process and so cannot be
silenced for one thread. What could trigger such a warning is refused or removed here.
"""

import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from convmae_deploy.media.image_errors import ImageError, corrupt, truncated

CheckSize = Callable[[int, int], None]  # (width, height) -> None, raises when over a limit

# Walking chunks holds the interpreter lock, so their number is bounded. A 20 MB file in the usual chunks (PNG 8 kB, GIF
# 255 bytes) stays well below both.
_MAX_PNG_CHUNKS = 100_000
_MAX_PNG_COMPRESSED_TEXTS = 100  # each may cost the decompression of a megabyte
_MAX_GIF_BLOCKS = 400_000
_MAX_JPEG_SCANS = 100  # each costs a pass over the whole picture, however short it is; encoders write about ten
_MAX_JPEG_SEGMENTS = 10_000


@dataclass(frozen=True, kw_only=True)
class Container:
    """What the outside of a file says."""

    data: bytes  # what Pillow is to read: the file itself, or an equivalent without its metadata
    frames: int = 1


def read_png(data: bytes, check_size: CheckSize) -> Container:
    """Checks every chunk's extent and checksum up to IEND (Pillow skips those of IDAT, and does not miss IEND)."""
    if len(data) < 33:
        raise truncated("a PNG that ends inside its header")
    if data[8:16] != b"\x00\x00\x00\rIHDR":
        raise corrupt("a PNG that does not begin with its header")
    check_size(*struct.unpack(">II", data[16:24]))
    view = memoryview(data)
    position, chunks, compressed_texts, animations, frames = 8, 0, 0, 0, 1
    kind = b""
    while kind != b"IEND":
        if position + 8 > len(data):
            raise truncated("a PNG without its end")
        length, kind = struct.unpack_from(">I4s", data, position)
        if not kind.isalpha():
            raise corrupt("a PNG with a chunk of no known kind")
        end = position + 8 + length
        if end + 4 > len(data):
            raise truncated(f"a PNG that ends inside a chunk {kind.decode('ascii')}")
        if zlib.crc32(view[position + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise corrupt(f"a PNG with a wrong checksum in a chunk {kind.decode('ascii')}")
        if kind == b"acTL":
            animations += 1
            frames = int.from_bytes(view[position + 8 : position + 12], "big")
        chunks += 1
        compressed_texts += kind in (b"zTXt", b"iTXt", b"iCCP")
        if chunks > _MAX_PNG_CHUNKS or compressed_texts > _MAX_PNG_COMPRESSED_TEXTS:
            raise corrupt("a PNG with an absurd number of chunks")
        position = end + 4
    if animations > 1 or not 0 < frames <= 0x80000000:
        raise corrupt("a PNG whose animation header is invalid")
    return Container(data=data, frames=frames)


def read_gif(data: bytes, check_size: CheckSize) -> Container:
    """Walks the blocks; the first frame must be complete, later ones are counted as far as they go."""
    if len(data) < 13:
        raise truncated("a GIF that ends inside its header")
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    check_size(width, height)
    position = 13 + (3 << ((flags & 7) + 1) if flags & 0x80 else 0)
    frames, budget = 0, _MAX_GIF_BLOCKS
    while position < len(data) and data[position] != 0x3B:
        budget -= 1
        if data[position] == 0x21:
            position, budget = _skip_gif_blocks(data, position + 2, budget)
        elif data[position] == 0x2C:
            if position + 10 <= len(data):
                left, top, frame_width, frame_height, frame_flags = struct.unpack_from("<HHHHB", data, position + 1)
                if frames == 0:
                    # Pillow grows the canvas to hold a first frame that exceeds it.
                    check_size(max(width, left + frame_width), max(height, top + frame_height))
                position += 11 + (3 << ((frame_flags & 7) + 1) if frame_flags & 0x80 else 0)
                position, budget = _skip_gif_blocks(data, position, budget)
            else:
                position = len(data) + 1
            if position > len(data):
                break
            frames += 1
        else:
            position += 1  # padding between blocks
        if budget <= 0:
            raise corrupt("a GIF with an absurd number of blocks")
    if frames == 0:
        raise (truncated if position >= len(data) else corrupt)("a GIF without a complete first frame")
    return Container(data=data, frames=frames)


def _skip_gif_blocks(data: bytes, position: int, budget: int) -> tuple[int, int]:
    """Position after the sub-blocks at `position` (beyond the data when they do not end) and the budget left."""
    while position < len(data):
        length = data[position]
        position += 1 + length
        budget -= 1
        if length == 0 or budget <= 0:
            return position, budget
    return len(data) + 1, budget


def read_webp(data: bytes, check_size: CheckSize) -> Container:
    """Checks canvas size and length before libwebp allocates the canvas; Pillow counts the frames."""
    if len(data) < 30:
        raise truncated("a WebP that ends inside its header")
    kind = data[12:16]
    if kind == b"VP8X":
        width = 1 + int.from_bytes(data[24:27], "little")
        height = 1 + int.from_bytes(data[27:30], "little")
    elif kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    elif kind == b"VP8L" and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        raise corrupt("a WebP without a valid picture header")
    check_size(width, height)
    if 8 + int.from_bytes(data[4:8], "little") > len(data):
        raise truncated("a WebP shorter than its header says")
    return Container(data=data)


# Segment kinds of a JPEG header and the largest length field each can have; APPn and comments may have any.
_JPEG_LIMITS = {0xC4: 2 + 8 * 273, 0xDB: 2 + 4 * 129, 0xDD: 4, 0xDA: 14, 0xCC: 2 + 64}
_JPEG_FREE = {*range(0xE0, 0xF0), 0xFE}
# How the APPn segments in use begin.
_JPEG_WORDS = (
    b"JFIF",
    b"JFXX",
    b"Exif",
    b"http",
    b"ICC_",
    b"MPF\0",
    b"Adob",
    b"Phot",
    b"Duck",
    b"FPXR",
    b"urn:",
    b"AROT",
)
_JPEG_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}

_JPEG_SCAN, _JPEG_END, _JPEG_TEMPORARY = 0xDA, 0xD9, 0x01
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # neither stuffed nor padding nor a restart


def check_jpeg_scans(data: bytes) -> None:
    """Refuses a JPEG of so many scans that decoding it would take minutes; nothing stops a decoder once it runs.

    Counting the scans' marker is enough for nearly every file. Where it is frequent it may be chance, for instance in
    the video that a phone appends to its photo, so then the segments are walked as libjpeg does.

    Raises:
        ImageError: `image_corrupt`.
    """
    if data.count(b"\xff\xda") <= _MAX_JPEG_SCANS:
        return
    position, scans, segments = 2, 0, 0
    while (marker := _JPEG_MARKER.search(data, position)) is not None:
        kind, position = data[marker.start() + 1], marker.end()
        if kind == _JPEG_END:
            return
        segments += 1
        scans += kind == _JPEG_SCAN
        if scans > _MAX_JPEG_SCANS or segments > _MAX_JPEG_SEGMENTS:
            raise corrupt("a JPEG with an absurd number of scans")
        if kind != _JPEG_TEMPORARY:
            position += int.from_bytes(data[position : position + 2], "big")


def jpeg_header_error(data: bytes, reason: str) -> ImageError:
    """Why Pillow could not read a JPEG's header: cut short, or broken.

    Args:
        data: the file.
        reason: what Pillow said.
    """
    position = 2
    while position < len(data) and data[position] == 0xFF:
        if position + 4 > len(data):
            return truncated("a JPEG that ends inside its header")
        kind = data[position + 1]
        if kind == 0xFF:  # padding
            position += 1
            continue
        (length,) = struct.unpack_from(">H", data, position + 2)
        limit = 2 + 6 + 3 * 4 if kind in _JPEG_FRAMES else _JPEG_LIMITS.get(kind, 0xFFFF if kind in _JPEG_FREE else 0)
        if not 2 <= length <= limit:
            break
        if position + 2 + length > len(data):
            # Random bytes after the magic, too, name a segment that runs off the end.
            word = data[position + 4 : position + 8]
            if 0xE0 <= kind <= 0xEF and not any(known.startswith(word) for known in _JPEG_WORDS):
                break
            return truncated("a JPEG that ends inside its header")
        if kind == 0xDA:
            return corrupt(f"a JPEG that cannot be decoded ({reason})")
        position += 2 + length
    if 2 < position and position >= len(data):
        return truncated("a JPEG that ends inside its header")
    return corrupt(f"a JPEG that cannot be decoded ({reason})")
