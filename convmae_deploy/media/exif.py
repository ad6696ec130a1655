"""The one entry of a photo's metadata that matters here: the orientation, in EXIF, or else in XMP as Pillow reads it.

Read by hand because Pillow's EXIF reader issues warnings on broken data, which cannot be silenced in one thread alone,
and because it reads every entry.
"""

import re
import struct
from typing import Final

UPRIGHT = 1  # the orientation that needs no change
MAX_EXIF_BYTES = 0x10000  # a JPEG cannot hold more, and the orientation stands near its beginning
MAX_XMP_BYTES = 0x100000  # as much as Pillow reads of a text
_ORIENTATION = 0x0112
_SHORT, _LONG = 3, 4
_XMP_ORIENTATION: Final = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


def read_orientation(exif: bytes, xmp: bytes = b"") -> int:
    """The orientation, 1 to 8; 1 when neither block says one, or one that is out of range.

    Args:
        exif: an EXIF block, with or without the prefix "Exif\\0\\0"; empty where there is none.
        xmp: an XMP packet, which counts where the EXIF block says none.
    """
    found = _exif_orientation(exif)
    if found is None and (match := _XMP_ORIENTATION.search(xmp[:MAX_XMP_BYTES])) is not None:
        found = int(match[1])
    return UPRIGHT if found is None else valid_orientation(found)


def _exif_orientation(exif: bytes) -> int | None:
    block = exif.removeprefix(b"Exif\x00\x00")
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return None
    try:
        (directory,) = struct.unpack_from(order + "I", block, 4)
        (count,) = struct.unpack_from(order + "H", block, directory)
        for entry in range(count):
            tag, kind, length, value = struct.unpack_from(order + "HHI4s", block, directory + 2 + 12 * entry)
            if tag == _ORIENTATION and length == 1 and kind in (_SHORT, _LONG):
                (orientation,) = struct.unpack_from(order + ("H" if kind == _SHORT else "I"), value)
                return int(orientation)
    except struct.error:  # an offset that points outside the block
        return None
    return None


def valid_orientation(value: int) -> int:
    """`value` where EXIF defines it (1 to 8), else 1."""
    return value if 1 <= value <= 8 else UPRIGHT
