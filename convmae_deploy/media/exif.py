"""The one EXIF entry that matters here: the orientation.

Read by hand because Pillow's EXIF reader issues warnings on broken data, which cannot be silenced in one thread alone,
and because it reads every entry.
"""

import struct

UPRIGHT = 1  # the orientation that needs no change
MAX_EXIF_BYTES = 0x10000  # a JPEG cannot hold more, and the orientation stands near its beginning
_ORIENTATION = 0x0112
_SHORT, _LONG = 3, 4


def read_orientation(exif: bytes) -> int:
    """The orientation, 1 to 8; 1 when there is none, when it is out of range, or when the EXIF block is broken.

    Args:
        exif: an EXIF block, with or without the prefix "Exif\\0\\0".
    """
    block = exif.removeprefix(b"Exif\x00\x00")
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return UPRIGHT
    try:
        (directory,) = struct.unpack_from(order + "I", block, 4)
        (count,) = struct.unpack_from(order + "H", block, directory)
        for entry in range(count):
            tag, kind, length, value = struct.unpack_from(order + "HHI4s", block, directory + 2 + 12 * entry)
            if tag == _ORIENTATION and length == 1 and kind in (_SHORT, _LONG):
                (orientation,) = struct.unpack_from(order + ("H" if kind == _SHORT else "I"), value)
                return valid_orientation(orientation)
    except struct.error:  # an offset that points outside the block
        return UPRIGHT
    return UPRIGHT


def valid_orientation(value: int) -> int:
    """`value` where EXIF defines it (1 to 8), else 1."""
    return value if 1 <= value <= 8 else UPRIGHT
