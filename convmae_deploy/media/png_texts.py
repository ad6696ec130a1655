"""The texts of a PNG that can hold its orientation: XMP, and EXIF as ImageMagick writes it.

Pillow unpacks every text. Here only one of each name is, the last, and never more than a photo's metadata can be.
"""

import zlib
from typing import Final

from convmae_deploy.media.exif import MAX_EXIF_BYTES, MAX_XMP_BYTES

XMP: Final = b"XML:com.adobe.xmp"
RAW_EXIF: Final = b"Raw profile type exif"
PLAIN_EXIF: Final = b"exif"  # a text that is an EXIF block
TEXT_KINDS: Final = (b"tEXt", b"zTXt", b"iTXt")
_NAMES: Final = (XMP, RAW_EXIF, PLAIN_EXIF)
_LINES_BEFORE_DIGITS: Final = 3  # of a raw profile: an empty one, its name, its length


def text_name(data: bytes, start: int, end: int) -> bytes | None:
    """Which of the texts that matter a chunk's content is; None: none of them."""
    stop = data.find(b"\0", start, min(end, start + max(map(len, _NAMES)) + 1))
    name = data[start:stop] if stop >= 0 else b""
    return name if name in _NAMES else None


def read_text(kind: bytes, content: bytes) -> bytes:
    """The text of a chunk, up to a limit; empty where it is broken.

    Args:
        kind: of the chunk, one of `TEXT_KINDS`.
        content: of the chunk, with the name.
    """
    _, _, rest = content.partition(b"\0")
    if kind == b"tEXt":
        return rest[:MAX_XMP_BYTES]
    packed = kind == b"zTXt"
    method, rest = rest[:1], rest[1:]
    if kind == b"iTXt":
        packed = method != b"\0"
        method, rest = rest[:1], rest[1:]
        _, found, rest = rest.partition(b"\0")  # the language
        _, found_too, rest = rest.partition(b"\0")  # the name in that language
        if not found or not found_too:
            return b""
    if not packed:
        return rest[:MAX_XMP_BYTES]
    if method != b"\0":
        return b""
    try:
        return zlib.decompressobj().decompress(rest, MAX_XMP_BYTES)
    except zlib.error:
        return b""


def raw_profile(text: bytes) -> bytes:
    """The EXIF block in a text of hexadecimal digits; empty where it is broken."""
    lines = text.split(b"\n", _LINES_BEFORE_DIGITS)  # not all: there may be as many as bytes, and each takes far more
    digits = lines[-1].replace(b"\n", b"") if len(lines) > _LINES_BEFORE_DIGITS else b""
    try:
        return bytes.fromhex(digits[: 2 * MAX_EXIF_BYTES].decode("ascii"))
    except ValueError:
        return b""
