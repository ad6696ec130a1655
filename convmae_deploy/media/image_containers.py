"""The outside of image files, checked before Pillow sees them: dimensions, frames, completeness, absurd structure.

Pillow reads most headers well, but it lets some truncated files pass, it allocates the canvas of a WebP before anyone
can look at its size, it unpacks and keeps metadata that nobody reads, and it reports odd metadata through `warnings`,
which are global to the process and so cannot be silenced for one thread. What could do harm is refused or left out.
"""

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from convmae_deploy.media.exif import MAX_EXIF_BYTES, UPRIGHT, read_orientation
from convmae_deploy.media.image_errors import ImageError, corrupt, truncated, unsupported
from convmae_deploy.media.png_texts import PLAIN_EXIF, RAW_EXIF, TEXT_KINDS, XMP, raw_profile, read_text, text_name

CheckSize = Callable[[int, int], None]  # (width, height) -> None, raises when over a limit

# Walking chunks holds the interpreter lock, so their number is bounded. A 20 MB file in the usual chunks (PNG 8 kB, GIF
# 255 bytes) stays well below both.
_MAX_PNG_CHUNKS = 100_000
_MAX_GIF_BLOCKS = 400_000
_PNG_PIXELS = (b"IHDR", b"PLTE", b"IDAT", b"IEND")  # all that the first picture's colours depend on
_GIF_GRAPHIC_CONTROL = 0xF9
_BMP_HEADER_BYTES = 54  # the common version's
_BMP_CORE_HEADER_BYTES = 12  # the oldest version's, which has shorter fields
_BMP_RUN_LENGTH = (1, 2)  # compressions, of 8 and 4 bits
# Pillow decodes these in Python: up to a tenth of a microsecond for each pixel, and one for each byte.
_MAX_RUN_LENGTH_BMP_PIXELS = 4_000_000
_MAX_RUN_LENGTH_BMP_BYTES = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Container:
    """What the outside of a file says."""

    data: bytes  # what Pillow is to read: the file itself, or an equivalent without its metadata
    pixels: int  # that a decoder makes room for: those of the picture at least
    frames: int = 1
    orientation: int = UPRIGHT  # as EXIF numbers them
    # whether a decoder can give the picture at half its size without holding all of it
    halves: bool = False
    unusual: str = ""  # what it is, where decoders may well not know its kind


def read_png(data: bytes, check_size: CheckSize) -> Container:
    """Checks every chunk's extent and checksum up to IEND (Pillow skips those of IDAT, and does not miss IEND).

    Texts, colour profiles and the later frames of an animation are left out: Pillow would unpack them.
    """
    if len(data) < 33:
        raise truncated("a PNG that ends inside its header")
    if data[12:16] == b"CgBI":
        raise unsupported("a PNG of Apple's own kind (CgBI), as it is in apps for iOS")
    if data[8:16] != b"\x00\x00\x00\rIHDR":
        raise corrupt("a PNG that does not begin with its header")
    width, height = struct.unpack(">II", data[16:24])
    check_size(width, height)
    view = memoryview(data)
    kept = [view[:8]]
    position, chunks, animations, frames = 8, 0, 0, 1
    exif, texts = b"", {}  # texts: name -> kind, start and end of the last one
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
        if kind in _PNG_PIXELS:
            kept.append(view[position : end + 4])
        elif kind == b"acTL":
            animations += 1
            frames = int.from_bytes(view[position + 8 : position + 12], "big")
        elif kind == b"eXIf":
            exif = data[position + 8 : min(end, position + 8 + MAX_EXIF_BYTES)]
        elif kind in TEXT_KINDS and (name := text_name(data, position + 8, end)) is not None:
            texts[name] = kind, position + 8, end
        chunks += 1
        if chunks > _MAX_PNG_CHUNKS:
            raise corrupt("a PNG with an absurd number of chunks")
        position = end + 4
    if animations > 1 or not 0 < frames <= 0x80000000:
        raise corrupt("a PNG whose animation header is invalid")
    found = {name: read_text(kind, data[start:end]) for name, (kind, start, end) in texts.items()}
    exif = exif or found.get(PLAIN_EXIF, b"") or raw_profile(found.get(RAW_EXIF, b""))
    orientation = read_orientation(exif, found.get(XMP, b""))
    return Container(data=b"".join(kept), pixels=width * height, frames=frames, orientation=orientation)


def read_gif(data: bytes, check_size: CheckSize) -> Container:
    """Walks the blocks; the first frame must be complete, later ones are counted as far as they go.

    Only the first frame is kept, without comments and the like.
    """
    if len(data) < 13:
        raise truncated("a GIF that ends inside its header")
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    if width and height:  # else the first frame says both
        check_size(width, height)
    position = 13 + (3 << ((flags & 7) + 1) if flags & 0x80 else 0)
    kept, sides = [data[:position]], (width, height)
    frames, budget = 0, _MAX_GIF_BLOCKS
    while position < len(data) and data[position] != 0x3B:
        budget -= 1
        start = position
        if data[position] == 0x21:
            position, budget = _skip_gif_blocks(data, position + 2, budget)
            if data[start + 1 : start + 2] == bytes((_GIF_GRAPHIC_CONTROL,)) and frames == 0:
                kept[1:] = [data[start:position]]  # the last one before the frame counts
        elif data[position] == 0x2C:
            if position + 10 <= len(data):
                left, top, frame_width, frame_height, frame_flags = struct.unpack_from("<HHHHB", data, position + 1)
                if frames == 0:
                    # The canvas grows to hold a first frame that exceeds it.
                    sides = max(width, left + frame_width), max(height, top + frame_height)
                    check_size(*sides)
                    kept[0] = data[:6] + struct.pack("<HH", *(min(side, 0xFFFF) for side in sides)) + kept[0][10:]
                position += 11 + (3 << ((frame_flags & 7) + 1) if frame_flags & 0x80 else 0)
                position, budget = _skip_gif_blocks(data, position, budget)
            else:
                position = len(data) + 1
            if position > len(data):
                break
            if frames == 0:
                kept.append(data[start:position])
            frames += 1
        else:
            position += 1  # padding between blocks
        if budget <= 0:
            raise corrupt("a GIF with an absurd number of blocks")
    if frames == 0:
        raise (truncated if position >= len(data) else corrupt)("a GIF without a complete first frame")
    return Container(data=b"".join((*kept, b";")), pixels=sides[0] * sides[1], frames=frames)


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
    return Container(data=data, pixels=width * height)


def read_bmp(data: bytes, check_size: CheckSize) -> Container:
    """Checks the size, and refuses what Pillow decodes slowly."""
    if len(data) < 26:
        raise truncated("a BMP that ends inside its header")
    header_bytes = int.from_bytes(data[14:18], "little")
    if header_bytes == _BMP_CORE_HEADER_BYTES:
        width, height = struct.unpack_from("<HH", data, 18)
    else:
        width, height = struct.unpack_from("<ii", data, 18)
        if len(data) < _BMP_HEADER_BYTES:
            raise truncated("a BMP that ends inside its header")
    height = abs(height)  # negative: the rows go from the top to the bottom
    check_size(width, height)
    if header_bytes != _BMP_CORE_HEADER_BYTES and int.from_bytes(data[30:34], "little") in _BMP_RUN_LENGTH:
        if width * height > _MAX_RUN_LENGTH_BMP_PIXELS or len(data) > _MAX_RUN_LENGTH_BMP_BYTES:
            raise ImageError("unsupported_format", "the image is a large run-length coded BMP; convert it to PNG")
    return Container(data=data, pixels=width * height)
